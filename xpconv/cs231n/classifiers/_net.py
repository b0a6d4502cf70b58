"""The base class of the assignment's nets."""

from typing import Any

from xpconv.backend import Array
from xpconv.nn import Sequential


class CourseNet(Sequential):
    """A net whose `params` may be set to NumPy arrays of any real dtype and to lists, as notebooks do."""

    def loss(self, X: Array, y: Array | None = None) -> Any:
        """Return the scores of `X`, or with labels the loss and the gradients; see `xpconv.Sequential.loss`."""
        self.params.update({name: self.backend.upload(name, w, self.dtype) for name, w in self.params.items()})
        return super().loss(X, y)

"""The base class of the assignment's nets."""

import os
from typing import Any

from xpconv._validation import check_nonnegative
from xpconv.backend import Array
from xpconv.cs231n._adapt import plain_number
from xpconv.cs231n.classifiers._files import load_if_available, pickle_advice
from xpconv.errors import CheckpointError
from xpconv.io import load_model, save_model
from xpconv.nn import Sequential

NUMPY_MAGIC = b"\x93NUMPY"


class CourseNet(Sequential):
    """A net whose `params` may be set to NumPy arrays of any real dtype and to lists, as notebooks do.

    `reg` may be an array of one element.
    """

    @property
    def reg(self) -> float:
        """Weight of the L2 penalty in the loss: a finite number, 0 or more."""
        return self._reg

    @reg.setter
    def reg(self, value: Any) -> None:
        self._reg = check_nonnegative("reg", plain_number(value))

    def loss(self, X: Array, y: Array | None = None) -> Any:
        """Return the scores of `X`, or with labels the loss and the gradients; see `xpconv.Sequential.loss`."""
        self._upload_params()
        return super().loss(X, y)

    def _upload_params(self) -> None:
        self.params.update({name: self.backend.upload(name, w, self.dtype) for name, w in self.params.items()})

    def save(self, fname: str | os.PathLike[str]) -> None:
        """Write the net to a file, in the format of `xpconv.save_model` whatever the name's suffix."""
        self._upload_params()
        save_model(self, fname)
        print(f"{os.fspath(fname)} saved.")

    def load(self, fname: str | os.PathLike[str]) -> bool:
        """Take the parameters and running averages from a file of `save` or `xpconv.save_model`.

        Returns
        -------
        bool
            Whether there is such a file.

        Raises
        ------
        CheckpointError
            If the file is damaged, belongs to a net of other sizes, or is a pickle, which could run any code.
        """
        return load_if_available(fname, self._load)

    def _load(self, name: str) -> None:
        if _starts_with_numpy_magic(name):
            raise CheckpointError(f"{name} is {pickle_advice(name, 'params')}")
        net = load_model(name, self.backend)
        state = {key: a for key, a in net.state.items() if not key.startswith("num_batches")}
        for own, loaded in ((self.params, net.params), (self.state, state)):
            _check_same_shapes(name, own, loaded)
        self.params, self.state = net.params, state


def _starts_with_numpy_magic(name: str) -> bool:
    try:
        with open(name, "rb") as file:
            return file.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC
    except OSError:  # load_model says why it cannot be read
        return False


def _check_same_shapes(name: str, own: dict[str, Array], loaded: dict[str, Array]) -> None:
    if own.keys() != loaded.keys():
        raise CheckpointError(f"{name} has the arrays {', '.join(sorted(loaded))}; expected {', '.join(sorted(own))}")
    for key, w in own.items():
        if tuple(loaded[key].shape) != tuple(w.shape):
            raise CheckpointError(
                f"{name}: {key} has shape {tuple(loaded[key].shape)}; expected {tuple(w.shape)}, that of this net"
            )

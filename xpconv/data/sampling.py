"""Which rows make the next minibatch: drawn with replacement, or each once an epoch."""

from typing import Any

import numpy as np

from xpconv.data.batches import Sampler
from xpconv.random import RandomStream, restore, state_of

__all__ = ["SAMPLINGS", "EpochSampler"]


class EpochSampler(Sampler):
    """Draw the rows of minibatches without replacement: each epoch is a new random order, cut in pieces.

    The rows that are left over when an epoch's pieces are full, fewer than `size`, wait for another epoch.

    Parameters
    ----------
    stream : Generator or RandomState
    count : int
        How many rows there are.
    size : int
        How many to draw for a minibatch; where it is more than `count`, each minibatch is all rows.

    Examples
    --------
    >>> sampler = EpochSampler(np.random.default_rng(0), 5, 2)
    >>> sampler(), sampler(), sampler()
    (array([2, 4]), array([3, 0]), array([4, 1]))
    """

    def __init__(self, stream: RandomStream, count: int, size: int) -> None:
        super().__init__(stream, count, size)
        self._done = 0  # minibatches of this epoch
        self._start: dict[str, Any] = {}  # the stream's state when the order was drawn
        self._order = np.empty(0, np.int64)

    def __call__(self) -> np.ndarray:
        """Return the indices (size,) of the next minibatch."""
        if self._done == 0:
            self._shuffle()
        rows = self._order[self._done * self.size : (self._done + 1) * self.size]
        self._done = (self._done + 1) % max(self.count // self.size, 1)
        return rows

    def _shuffle(self) -> None:
        self._start = state_of(self.stream)
        self._order = self.stream.permutation(self.count)

    @property
    def state(self) -> Any:
        """What the following draws depend on, as plain data for JSON; assign it to have them again."""
        return {"stream": self._start if self._done else state_of(self.stream), "done": self._done}

    @state.setter
    def state(self, state: Any) -> None:
        restore(self.stream, state["stream"])
        self._done = state["done"]
        if self._done:
            self._shuffle()


SAMPLINGS: dict[str, type[Sampler]] = {"replacement": Sampler, "epoch": EpochSampler}
"""The ways to draw minibatches by name."""

"""Samplers, which choose the rows of each minibatch: with replacement, or each row once per epoch."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from xpconv.random import RandomStream, restore, state_of

__all__ = ["SAMPLERS", "EpochSampler", "ReplacementSampler", "Sampler"]


class Sampler(ABC):
    """Draws the rows of successive minibatches.

    Parameters
    ----------
    stream : Generator or RandomState
        The source of random numbers.
    num_rows : int
        Number of rows in the data.
    batch_size : int
        Number of rows in a minibatch.

    Examples
    --------
    >>> sampler = SAMPLERS["epoch"](np.random.default_rng(0), 5, 2)
    >>> isinstance(sampler, Sampler), sampler()
    (True, array([2, 4]))
    """

    def __init__(self, stream: RandomStream, num_rows: int, batch_size: int) -> None:
        self.stream, self.num_rows, self.batch_size = stream, num_rows, batch_size

    @abstractmethod
    def __call__(self) -> np.ndarray:
        """Return the indices of the next minibatch's rows."""

    @property
    def state(self) -> Any:
        """The sampler's position as plain data for JSON; assign it to return to that position."""
        return state_of(self.stream)

    @state.setter
    def state(self, state: Any) -> None:
        restore(self.stream, state)


class ReplacementSampler(Sampler):
    """Draws rows with replacement: every draw may return any row.

    Parameters
    ----------
    stream, num_rows, batch_size
        As for `Sampler`.

    Examples
    --------
    >>> sampler = ReplacementSampler(np.random.default_rng(0), 100, 4)
    >>> sampler()
    array([85, 63, 51, 26])
    """

    def __call__(self) -> np.ndarray:
        """Return the indices (batch_size,) of the next minibatch's rows."""
        return self.stream.choice(self.num_rows, self.batch_size)


class EpochSampler(Sampler):
    """Draws rows without replacement: each epoch is a new random order, cut into minibatches.

    Rows that do not fill a last minibatch are left out of that epoch.

    Parameters
    ----------
    stream, num_rows, batch_size
        As for `Sampler`; if `batch_size` exceeds `num_rows`, each minibatch holds all rows.

    Examples
    --------
    >>> sampler = EpochSampler(np.random.default_rng(0), 5, 2)
    >>> sampler(), sampler(), sampler()
    (array([2, 4]), array([3, 0]), array([4, 1]))
    """

    def __init__(self, stream: RandomStream, num_rows: int, batch_size: int) -> None:
        super().__init__(stream, num_rows, batch_size)
        self._num_drawn = 0  # minibatches drawn in this epoch
        self._epoch_state: dict[str, Any] = {}  # the stream's state before this epoch's order was drawn
        self._order = np.empty(0, np.int64)

    def __call__(self) -> np.ndarray:
        """Return the indices (min(batch_size, num_rows),) of the next minibatch's rows."""
        if self._num_drawn == 0:
            self._shuffle()
        start = self._num_drawn * self.batch_size
        self._num_drawn = (self._num_drawn + 1) % max(self.num_rows // self.batch_size, 1)
        return self._order[start : start + self.batch_size]

    def _shuffle(self) -> None:
        self._epoch_state = state_of(self.stream)
        self._order = self.stream.permutation(self.num_rows)

    @property
    def state(self) -> Any:
        """The sampler's position as plain data for JSON; assign it to return to that position."""
        return {"stream": self._epoch_state if self._num_drawn else state_of(self.stream), "done": self._num_drawn}

    @state.setter
    def state(self, state: Any) -> None:
        restore(self.stream, state["stream"])
        self._num_drawn = state["done"]
        if self._num_drawn:
            self._shuffle()


SAMPLERS: dict[str, type[Sampler]] = {"replacement": ReplacementSampler, "epoch": EpochSampler}
"""The samplers by name."""

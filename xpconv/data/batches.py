"""Minibatches, gathered and moved to the device while the one before is still computed on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from xpconv.backend import Array, Backend, to_host
from xpconv.errors import ArgumentError
from xpconv.random import RandomStream, restore, state_of

__all__ = ["Batches", "Sampler"]


class Sampler:
    """Draw the rows of minibatches with replacement.

    Parameters
    ----------
    stream : Generator or RandomState
    count : int
        How many rows there are.
    size : int
        How many to draw for a minibatch.

    Examples
    --------
    >>> sampler = Sampler(np.random.default_rng(0), 100, 4)
    >>> sampler()
    array([85, 63, 51, 26])
    """

    def __init__(self, stream: RandomStream, count: int, size: int) -> None:
        self.stream, self.count, self.size = stream, count, size

    def __call__(self) -> np.ndarray:
        """Return the indices (size,) of the next minibatch."""
        return self.stream.choice(self.count, self.size)

    @property
    def state(self) -> Any:
        """What the following draws depend on, as plain data for JSON; assign it to have them again."""
        return state_of(self.stream)

    @state.setter
    def state(self, state: Any) -> None:
        restore(self.stream, state)


class Batches:
    """Endless minibatches on a backend's device, in the order in which they were drawn.

    Data on the host is gathered and moved by one background thread. Data that is not on the host stays on the
    device, and only the drawn indices travel.

    Parameters
    ----------
    X : Array
        Images or features (N, ...), in the dtype that the batches shall have.
    y : Array
        Labels (N,).
    draw : callable
        Takes nothing and returns the indices (B,) of the next minibatch, on the host. It is called in the
        thread that iterates. One that has a `state`, as `Sampler`, is put back at the end of the block: draws of
        minibatches that nobody asked for are made again.
    backend : Backend
        Where the batches are wanted.
    ahead : int
        How many minibatches to draw and prepare before they are asked for. With 0 each is drawn when it is
        asked for and not earlier, as is needed where other draws of the same stream come between.

    Raises
    ------
    ArgumentError
        If `X` and `y` differ in length or `ahead` is negative.

    Examples
    --------
    >>> from xpconv.backend import get_backend
    >>> X, y = np.arange(8.0).reshape(4, 2), np.arange(4)
    >>> with Batches(X, y, lambda: np.array([2, 0]), get_backend("numpy")) as batches:
    ...     print(*next(batches))
    [[4. 5.]
     [0. 1.]] [2 0]
    """

    def __init__(self, X: Array, y: Array, draw: Callable[[], np.ndarray], backend: Backend, *, ahead: int = 2) -> None:
        if X.shape[0] != y.shape[0]:
            raise ArgumentError(f"X has {X.shape[0]} rows but y has {y.shape[0]}: give each row one label")
        if ahead < 0:
            raise ArgumentError(f"ahead is {ahead}; expected 0 or more")
        self._on_host, self._stream = isinstance(X, np.ndarray), backend.stream()
        place = to_host if self._on_host else backend.asarray
        self._arrays = place(X), place(y)
        self._draw, self._backend, self._ahead = draw, backend, ahead
        self._ready: deque[tuple[Any, Future[tuple[Array, Array]]]] = deque()  # and the state before its draw
        # On the device a gather is one short launch, and the device selected is a property of the thread.
        self._pool = ThreadPoolExecutor(1, "xpconv-batches") if self._on_host and ahead else None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Array, Array]:
        if self._pool is None:
            return self._gather(self._draw())
        while len(self._ready) <= self._ahead:
            state = getattr(self._draw, "state", None)
            self._ready.append((state, self._pool.submit(self._gather, self._draw())))
        return self._ready.popleft()[1].result()

    @property
    def state(self) -> Any:
        """The state of `draw` as if no minibatch but those asked for had been drawn, or None if it has none."""
        return self._ready[0][0] if self._ready else getattr(self._draw, "state", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._ready and self.state is not None:
            self._draw.state = self.state  # type: ignore[attr-defined]
        self._ready.clear()

    def _gather(self, indices: np.ndarray) -> tuple[Array, Array]:
        X, y = self._arrays
        if self._on_host:
            images, labels = X[indices], y[indices]
            with self._backend.current(self._stream):  # in the order of what is computed with them
                return self._backend.asarray(images), self._backend.asarray(labels)
        indices = self._backend.asarray(indices)
        take = self._backend.xp.take
        return take(X, indices, axis=0), take(y, indices, axis=0)

"""Minibatches, gathered and moved to the device while the one before is still computed on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from xpconv._validation import check_count
from xpconv.backend import Array, Backend, to_host
from xpconv.errors import ArgumentError

__all__ = ["Batches"]


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
    prefetch : int
        How many minibatches to draw and prepare before they are asked for. With 0 each is drawn when it is
        asked for and not earlier, as is needed where other draws of the same stream come between.

    Raises
    ------
    ArgumentError
        If `X` and `y` differ in length or `prefetch` is negative.

    Examples
    --------
    >>> from xpconv.backend import get_backend
    >>> X, y = np.arange(8.0).reshape(4, 2), np.arange(4)
    >>> with Batches(X, y, lambda: np.array([2, 0]), get_backend("numpy")) as batches:
    ...     print(*next(batches))
    [[4. 5.]
     [0. 1.]] [2 0]
    """

    def __init__(
        self, X: Array, y: Array, draw: Callable[[], np.ndarray], backend: Backend, *, prefetch: int = 2
    ) -> None:
        if X.shape[0] != y.shape[0]:
            raise ArgumentError(f"X has {X.shape[0]} rows but y has {y.shape[0]}: give each row one label")
        self._on_host, self._stream = isinstance(X, np.ndarray), backend.stream()
        place = to_host if self._on_host else backend.asarray
        self._arrays = place(X), place(y)
        self._draw, self._backend, self._prefetch = draw, backend, check_count("prefetch", prefetch, 0)
        self._ready: deque[tuple[Any, Future[tuple[Array, Array]]]] = deque()  # and the state before its draw
        # On the device a gather is one short launch, and the device selected is a property of the thread.
        self._pool = ThreadPoolExecutor(1, "xpconv-batches") if self._on_host and self._prefetch else None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Array, Array]:
        if self._pool is None:
            return self._gather(self._draw())
        while len(self._ready) <= self._prefetch:
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

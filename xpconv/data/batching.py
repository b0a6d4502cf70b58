"""Minibatches, gathered and moved to the device while the one before is still computed on."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np

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
        thread that iterates.
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

    def __init__(self, X: Array, y: Array, draw: Callable[[], np.ndarray], backend: Backend, *,
                 ahead: int = 2) -> None:
        if X.shape[0] != y.shape[0]:
            raise ArgumentError(f"X has {X.shape[0]} rows but y has {y.shape[0]}: give each row one label")
        if ahead < 0:
            raise ArgumentError(f"ahead is {ahead}; expected 0 or more")
        self._on_host = isinstance(X, np.ndarray)
        place = to_host if self._on_host else backend.asarray
        self._arrays = place(X), place(y)
        self._draw, self._backend, self._ahead = draw, backend, ahead
        self._ready: deque[Future[tuple[Array, Array]]] = deque()
        # On the device a gather is one short launch, and the device selected is a property of the thread.
        self._pool = ThreadPoolExecutor(1, "xpconv-batches") if self._on_host and ahead else None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Array, Array]:
        if self._pool is None:
            return self._gather(self._draw())
        while len(self._ready) <= self._ahead:
            self._ready.append(self._pool.submit(self._gather, self._draw()))
        return self._ready.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _gather(self, indices: np.ndarray) -> tuple[Array, Array]:
        X, y = self._arrays
        if self._on_host:
            return self._backend.asarray(X[indices]), self._backend.asarray(y[indices])
        indices = self._backend.asarray(indices)
        take = self._backend.xp.take
        return take(X, indices, axis=0), take(y, indices, axis=0)

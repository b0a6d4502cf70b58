"""Minibatches, gathered and moved to the device while the device computes earlier ones."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from xpconv._validation import check_count
from xpconv.backend import Array, Backend, to_host
from xpconv.data.rows import Rows, as_rows
from xpconv.errors import ArgumentError

__all__ = ["Batches"]


class Batches:
    """Endless minibatches on a backend's device, in the order in which they were drawn.

    One background thread gathers rows of host arrays and moves them to the device; of memory-mapped arrays and other
    objects with a length and ``[indices]`` it reads only these rows. Other arrays stay on the device, and only the
    indices of the rows move.

    Parameters
    ----------
    X : Array, Rows or object
        Images or features (N, ...), or an object that `as_rows` takes; minibatches have the same dtype.
    y : Array
        Labels (N,).
    sampler : callable
        ``sampler()`` returns the indices (B,) of the next minibatch, on the host. It is called in the thread that
        iterates. If it has a `state`, as a `Sampler` has, leaving the ``with`` block sets the state to that after the
        last minibatch taken, so that prefetched minibatches are drawn again.
    backend : Backend
        The backend to which minibatches move.
    positions : slice
        The rows of each minibatch to gather; all by default.
    prefetch : int
        Number of minibatches to draw and prepare in advance. With 0, each minibatch is drawn when it is taken,
        which is needed if other code draws from the same random stream.

    Attributes
    ----------
    rows : numpy.ndarray
        The indices (B,) of the last minibatch taken, also of rows that are not gathered.

    Raises
    ------
    ArgumentError
        If `X` and `y` differ in length or `prefetch` is negative.
    ArgumentTypeError
        If `prefetch` is not an integer.

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
        self,
        X: Array,
        y: Array,
        sampler: Callable[[], np.ndarray],
        backend: Backend,
        *,
        prefetch: int = 2,
        positions: slice = slice(None),
    ) -> None:
        X = as_rows(X)
        if X.shape[0] != y.shape[0]:
            raise ArgumentError(f"X has {X.shape[0]} rows but y has {y.shape[0]}: give each row one label")
        self._on_host, self._stream = isinstance(X, np.ndarray | Rows), backend.stream()
        convert: Callable[[Any], Any] = to_host if self._on_host else backend.asarray
        self._arrays: tuple[Any, Any] = X if isinstance(X, Rows) else convert(X), convert(y)
        self._sampler, self._backend, self._prefetch = sampler, backend, check_count("prefetch", prefetch, 0)
        self.rows, self._positions = np.empty(0, np.int64), positions
        # Minibatches in preparation, each with its rows and the sampler's state from before it was drawn.
        self._pending: deque[tuple[Any, np.ndarray, Future[tuple[Array, Array]]]] = deque()
        # Device arrays need no thread: a gather is one short launch, and each thread has its own current device.
        self._pool = ThreadPoolExecutor(1, "xpconv-batches") if self._on_host and self._prefetch else None

    def __iter__(self) -> Self:
        return self

    @property
    def arrays(self) -> tuple[Array, Array] | None:
        """The images and labels if they are on the device, else None."""
        return None if self._on_host else self._arrays

    def draw_rows(self) -> np.ndarray:
        """Return the rows of the next minibatch of arrays on the device, which the caller gathers."""
        self.rows = self._sampler()
        return self.rows

    def __next__(self) -> tuple[Array, Array]:
        if self._pool is None:
            return self.gather(self.draw_rows())
        while len(self._pending) <= self._prefetch:
            state, rows = getattr(self._sampler, "state", None), self._sampler()
            self._pending.append((state, rows, self._pool.submit(self.gather, rows)))
        _, self.rows, minibatch = self._pending.popleft()
        return minibatch.result()

    @property
    def state(self) -> Any:
        """The sampler's state after the last minibatch taken, or None if the sampler has no state."""
        return self._pending[0][0] if self._pending else getattr(self._sampler, "state", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if self._pending and self.state is not None:
            self._sampler.state = self.state  # type: ignore[attr-defined]
        self._pending.clear()

    def gather(self, indices: np.ndarray) -> tuple[Array, Array]:
        """Return the images and labels of these rows, on the device."""
        X, y = self._arrays
        indices = indices[self._positions]
        if self._on_host:
            images, labels = X[indices], y[indices]
            with self._backend.current(self._stream):  # the stream on which the minibatch is used
                return self._backend.asarray(images), self._backend.asarray(labels)
        take, rows = self._backend.xp.take, self._backend.asarray(indices)
        return take(X, rows, axis=0), take(y, rows, axis=0)

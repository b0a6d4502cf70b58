"""New NumPy arrays in the memory of earlier ones.

The system maps new memory page by page, which can take longer than the work on it, and the C library gives large
arrays back to the system when they are freed.
"""

from math import prod
from threading import Lock
from typing import Any

import numpy as np

__all__ = ["BlockPool", "aligned_block", "empty", "free_blocks"]

Array = np.ndarray

_CACHE_LINE_BYTES = 64
_SMALLEST_BYTES = 1 << 16  # The C library itself keeps the memory of smaller arrays.
_KEPT_BYTES = 1 << 27


class BlockPool:
    """Blocks of memory whose arrays are gone, kept for new arrays of the same size.

    Parameters
    ----------
    limit : int
        Most bytes to keep; beyond it, the blocks that were given back first are freed.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._blocks: list[Array] = []  # in the order in which they were given back
        self._bytes = 0
        self._lock = Lock()

    def take(self, size: int) -> Array:
        """Return a block of `size` bytes: the last of that size given back, perhaps still in the cache, or a new one.

        If the lock is taken, the block is new.
        """
        if self._lock.acquire(blocking=False):
            try:
                for k in reversed(range(len(self._blocks))):
                    if self._blocks[k].nbytes == size:
                        self._bytes -= size
                        return self._blocks.pop(k)
            finally:
                self._lock.release()
        return aligned_block(size)

    def give_back(self, block: Array) -> None:
        """Keep the block for `take`.

        The garbage collector may call this while the same thread holds the lock, so it never waits: if the lock is
        taken, the block is freed.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._blocks.append(block)
                self._bytes += block.nbytes
                self._free_down_to(self._limit)
            finally:
                self._lock.release()

    def free(self) -> None:
        """Free all blocks that no array uses."""
        with self._lock:
            self._free_down_to(0)

    def _free_down_to(self, limit: int) -> None:
        while self._bytes > limit:
            self._bytes -= self._blocks.pop(0).nbytes


class _Lease:
    """A block that `np.asarray` makes an array of.

    The lease is the base of that array, so it lives until the array and its views are gone.
    """

    def __init__(self, pool: BlockPool, block: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._pool, self._block = pool, block
        address = block.__array_interface__["data"]
        self.__array_interface__ = {"version": 3, "data": address, "shape": shape, "typestr": dtype.str}

    def __del__(self) -> None:
        self._pool.give_back(self._block)


_pool = BlockPool(_KEPT_BYTES)
free_blocks = _pool.free


def empty(shape: tuple[int, ...], dtype: Any, pool: BlockPool = _pool) -> Array:
    """Return an uninitialised array; if it is large, its memory may be that of an earlier array which is gone.

    Examples
    --------
    >>> first = empty((256, 256), np.float32)
    >>> address = first.ctypes.data
    >>> del first
    >>> empty((65536,), np.float32).ctypes.data == address
    True
    """
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    if size < _SMALLEST_BYTES:
        return np.empty(shape, dtype)
    return np.asarray(_Lease(pool, pool.take(size), shape, dtype))


def aligned_block(size: int) -> Array:
    """Return that many bytes of new memory, aligned to cache lines."""
    memory = np.empty(size + _CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE_BYTES
    return memory[start : start + size]

"""New NumPy arrays in the memory of earlier ones.

The system maps new memory page by page, which can take longer than the work on it, and the C library gives large
arrays back to the system when they are freed.
"""

from math import prod
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
        # By id, in the order in which they were given back. There is no lock: another thread, Ctrl-C or the garbage
        # collector may come between any two steps, and each step is one operation on this dict.
        self._blocks: dict[int, Array] = {}

    def take(self, size: int) -> Array:
        """Return a block of `size` bytes: the last of them given back, perhaps still in the cache, or a new one."""
        for key, block in reversed(list(self._blocks.items())):
            if len(block) == size and self._blocks.pop(key, None) is not None:  # else another thread took it
                return block
        try:
            return aligned_block(size)
        except MemoryError:
            self.free()
            return aligned_block(size)

    def give_back(self, block: Array) -> None:
        """Keep the block for `take`, within the limit."""
        self._blocks[id(block)] = block
        self._free_down_to(self._limit)

    def free(self) -> None:
        """Free all blocks that no array uses."""
        self._free_down_to(0)

    def _free_down_to(self, limit: int) -> None:
        excess = sum(map(len, list(self._blocks.values()))) - limit
        if excess > 0:
            for key, block in list(self._blocks.items()):
                self._blocks.pop(key, None)
                excess -= len(block)
                if excess <= 0:
                    break


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
    if size < _SMALLEST_BYTES or dtype.kind not in "biufc":  # A lease can describe only NumPy's own numbers.
        return np.empty(shape, dtype)
    return np.asarray(_Lease(pool, pool.take(size), shape, dtype))


def aligned_block(size: int) -> Array:
    """Return that many bytes of new memory, aligned to cache lines."""
    memory = np.empty(size + _CACHE_LINE_BYTES, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE_BYTES
    return memory[start : start + size]

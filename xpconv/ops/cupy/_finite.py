"""The check for NaN and infinity, on CuPy."""

import cupy

from xpconv.ops.cupy._launch import THREADS, Array, grid_of, launch, reduction_blocks
from xpconv.ops.dispatch import accelerate


@accelerate("cupy")
def largest_finite(a: Array, out: Array | None = None) -> Array:
    """Reduce the array to one pair of results per block, then these pairs to one."""
    grid, dtype = grid_of(1, a.size, reduction_blocks()), a.dtype
    blocks = grid[0][1]
    pieces, out = cupy.empty((2, blocks), dtype), cupy.empty(2, dtype) if out is None else out
    launch("largest_finite", dtype, grid, cupy.ascontiguousarray(a), pieces, a.size)
    launch("largest_finite_of_pieces", dtype, ((1,), (THREADS,)), pieces, out, blocks)
    return out

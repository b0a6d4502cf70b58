"""The check for NaN and infinity, on CuPy."""

import cupy

from xpconv.ops.cupy._launch import THREADS, Array, grid_of, launch, reduction_blocks
from xpconv.ops.dispatch import accelerate

ARRAYS = 8  # that one kernel takes, as in kernels.cu


@accelerate("cupy")
def largest_finite(*arrays: Array, out: Array | None = None) -> Array:
    """Reduce up to 8 arrays in one kernel to a pair of results per block, then all of these to one pair per array."""
    dtype, K = arrays[0].dtype, len(arrays)
    (_, blocks), threads = grid_of(1, max(a.size for a in arrays), reduction_blocks())
    pieces, out = cupy.empty((K, 2, blocks), dtype), cupy.empty(2 * K, dtype) if out is None else out
    for start in range(0, K, ARRAYS):
        some = [cupy.ascontiguousarray(a) for a in arrays[start : start + ARRAYS]]
        grid, empty = (len(some), blocks), ARRAYS - len(some)
        counts = [a.size for a in some]
        launch("largest_finite", dtype, (grid, threads), *some, *[None] * empty, *counts, *[0] * empty, pieces[start:])
    launch("largest_finite_of_pieces", dtype, ((K,), (THREADS,)), pieces, out, blocks)
    return out

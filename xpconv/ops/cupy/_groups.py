"""The struct Groups, which tells a kernel which values of an array are summed together."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from xpconv.ops.cupy import _launch
from xpconv.ops.cupy._launch import DIVISOR, THREADS, WARP, Grid, Shape, divisor, grid_of, struct, width

_GROUPS = np.dtype(
    [*((name, np.uint32) for name in ("A", "S", "pieces", "channels")), ("B", DIVISOR), ("inner", DIVISOR)]
)
_LOADS = 4  # of a thread, at least


class Sums(NamedTuple):
    """How kernels sum groups of an array: the grid, the struct Groups, the shape of the sums, and values per load."""

    grid: Grid
    groups: np.ndarray
    shape: Shape
    wide: int


def plan_sums(shape: Shape, dtype: np.dtype, axes: tuple[int, ...], gamma_shape: Shape = (), pieces: int = 0) -> Sums:
    """Return how to sum over `axes`.

    The axes that are not summed over must be adjacent, and so must the axes of gamma that have more than one value. The
    struct's number of pieces is `pieces`, or the number of blocks per sum in the grid if `pieces` is 0.
    """
    return _plan_sums(shape, dtype, axes, gamma_shape, pieces, _launch.reduction_blocks())


@lru_cache(maxsize=4096)
def _plan_sums(
    shape: Shape, dtype: np.dtype, axes: tuple[int, ...], gamma_shape: Shape, pieces: int, blocks: int
) -> Sums:
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    A, S, B = prod(shape[: kept[0]]), prod(shape[axis] for axis in kept), prod(shape[kept[-1] + 1 :])
    last = max((axis for axis, count in enumerate(gamma_shape) if count > 1), default=None)
    inner = B if last is None else prod(shape[last + 1 :])  # For a single gamma, any number >= B is correct.
    wide = width(B, dtype)
    threads, count = THREADS, A * B
    if blocks <= S:  # A block has a sum of its own. If the sum is small, fewer threads have fewer results to add up.
        while threads > WARP and count < threads * wide * _LOADS:
            threads //= 2
    grid = grid_of(S, count, max(1, blocks // S), wide, threads)
    groups = struct(
        _GROUPS,
        A=A,
        S=S,
        pieces=pieces or grid[0][1],
        channels=prod(gamma_shape),
        B=divisor(B),
        inner=divisor(inner),
    )
    return Sums(grid, groups, tuple(1 if axis in axes else count for axis, count in enumerate(shape)), wide)

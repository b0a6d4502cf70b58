"""Losses on CuPy."""

from collections.abc import Sequence
from itertools import accumulate

import cupy

from xpconv.ops.cupy._launch import THREADS, Array, grid_of, launch, reduction_blocks
from xpconv.ops.dispatch import accelerate


@accelerate("cupy")
def add_l2_penalty(loss: Array, weights: Sequence[Array], grads: Sequence[Array], reg: float) -> Array:
    """Read each weight once, then add up the pieces of all weights' sums of squares in one more kernel."""
    weights, grads = ([a for a in arrays if a.size] for arrays in (weights, grads))
    dtype, grids = loss.dtype, [grid_of(1, W.size, reduction_blocks()) for W in weights]
    *starts, count = accumulate((grid[1] for grid, _ in grids), initial=0)
    pieces, out = cupy.empty(count, dtype), cupy.empty((), dtype)
    for W, grad, grid, start in zip(weights, grads, grids, starts, strict=True):
        flat = cupy.ascontiguousarray(grad)
        launch("decay", dtype, grid, cupy.ascontiguousarray(W), flat, pieces[start:], float(reg), W.size)
        if flat is not grad:
            grad[...] = flat
    launch("penalty", dtype, ((1,), (THREADS,)), loss, pieces, out, float(reg), pieces.size)
    return out


@accelerate("cupy")
def softmax_cross_entropy(x: Array, y: Array) -> tuple[Array, Array]:
    """Let the 32 threads of a warp share each sample."""
    (N, C), warps = x.shape, THREADS // 32
    losses, dx = cupy.empty(N, x.dtype), cupy.empty((N, C), x.dtype)
    labels = cupy.ascontiguousarray(y, dtype="int64")
    grid = (-(-N // warps),), (32, warps)
    launch("softmax", x.dtype, grid, cupy.ascontiguousarray(x), labels, losses, dx, N, C)
    return losses, dx


@accelerate("cupy")
def cross_entropy(x: Array, targets: Array, divisor: Array) -> tuple[Array, Array]:
    """Let the 32 threads of a warp share each sample."""
    (N, C), warps = x.shape, THREADS // 32
    losses, dx = cupy.empty(N, x.dtype), cupy.empty((N, C), x.dtype)
    x, targets = cupy.ascontiguousarray(x), cupy.ascontiguousarray(targets)
    launch("cross_entropy", x.dtype, ((-(-N // warps),), (32, warps)), x, targets, divisor, losses, dx, N, C)
    return losses, dx

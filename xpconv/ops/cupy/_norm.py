"""Normalisation on CuPy."""

from collections.abc import Sequence

import cupy

from xpconv.ops.cupy._groups import plan_sums
from xpconv.ops.cupy._launch import Array, aligned, launch
from xpconv.ops.dispatch import accelerate


@accelerate("cupy")
def normalise(
    x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], tile_axis: int, eps: float
) -> tuple[Array, Array, Array, Array]:
    """Sum x and its squares in one pass, in pieces; a second kernel normalises, scales and shifts."""
    grid, groups, shape, wide = plan_sums(x.shape, x.dtype, tuple(axes), gamma.shape)
    x, gamma, beta = aligned(x), cupy.ascontiguousarray(gamma), cupy.ascontiguousarray(beta)
    dtype = x.dtype
    out, mean, var, inv_std = cupy.empty(x.shape, dtype), *(cupy.empty(shape, gamma.dtype) for _ in range(3))
    moments = cupy.empty((2, *grid[0]), "float64")
    launch("sum_moments", dtype, grid, x, moments, groups, wide=wide)
    launch("normalise", dtype, grid, x, gamma, beta, moments, float(eps), out, mean, var, inv_std, groups, wide=wide)
    return out, mean, var, inv_std


@accelerate("cupy")
def normalise_backward(
    dout: Array,
    x: Array,
    mean: Array,
    inv_std: Array,
    gamma: Array,
    *,
    axes: Sequence[int],
    param_axes: Sequence[int],
    tile_axis: int,
) -> tuple[Array, Array, Array]:
    """Sum over `param_axes` in one kernel; a second kernel adds those sums up to the sums over `axes`."""
    params = plan_sums(x.shape, x.dtype, tuple(param_axes), gamma.shape)
    wholes = plan_sums(x.shape, x.dtype, tuple(axes), gamma.shape, pieces=params.grid[0][1])
    params_per_group = params.grid[0][0] // wholes.grid[0][0]
    mean, inv_std, gamma = (cupy.ascontiguousarray(a) for a in (mean, inv_std, gamma))
    inputs, dtype = (aligned(dout), aligned(x), mean, inv_std, gamma), x.dtype
    dx, dgamma, dbeta = cupy.empty(x.shape, dtype), *(cupy.empty(params.shape, gamma.dtype) for _ in range(2))
    pieces = cupy.empty((5, *params.grid[0]), gamma.dtype)
    launch("gradient_sums", dtype, params.grid, *inputs, pieces, params_per_group, params.groups, wide=params.wide)
    outputs = pieces, dx, dgamma, dbeta
    launch(
        "normalise_backward", dtype, wholes.grid, *inputs, *outputs, params_per_group, wholes.groups, wide=wholes.wide
    )
    return dx, dgamma, dbeta

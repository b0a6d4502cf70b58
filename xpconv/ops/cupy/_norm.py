"""Normalisation on CuPy."""

from collections.abc import Sequence

import cupy

from xpconv.ops.cupy._groups import groups_and_grid
from xpconv.ops.cupy._launch import Array, launch
from xpconv.ops.dispatch import accelerate


@accelerate("cupy")
def normalise(
    x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], tile_axis: int, eps: float
) -> tuple[Array, Array, Array, Array]:
    """Sum x and its squares in one pass, in pieces; a second kernel scales and shifts."""
    grid, groups, shape = groups_and_grid(x.shape, gamma.shape, tuple(axes))
    x, gamma, beta = (cupy.ascontiguousarray(a) for a in (x, gamma, beta))
    dtype = x.dtype
    out, mean, var, inv_std = cupy.empty(x.shape, dtype), *(cupy.empty(shape, dtype) for _ in range(3))
    moments = cupy.empty((2, *grid[0]), "float64")
    launch("sum_moments", dtype, grid, x, moments, groups)
    launch("normalise", dtype, grid, x, gamma, beta, moments, float(eps), out, mean, var, inv_std, groups)
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
    param_grid, param_groups, shape = groups_and_grid(x.shape, gamma.shape, tuple(param_axes))
    grid, groups, _ = groups_and_grid(x.shape, gamma.shape, tuple(axes), pieces=param_grid[0][1])
    params_per_group = param_grid[0][0] // grid[0][0]
    dout, x, mean, inv_std, gamma = (cupy.ascontiguousarray(a) for a in (dout, x, mean, inv_std, gamma))
    dtype = x.dtype
    dx, dgamma, dbeta = cupy.empty(x.shape, dtype), cupy.empty(shape, dtype), cupy.empty(shape, dtype)
    pieces = cupy.empty((5, *param_grid[0]), dtype)
    inputs = dout, x, mean, inv_std, gamma
    launch("gradient_sums", dtype, param_grid, *inputs, pieces, params_per_group, param_groups)
    launch("normalise_backward", dtype, grid, *inputs, pieces, dx, dgamma, dbeta, params_per_group, groups)
    return dx, dgamma, dbeta

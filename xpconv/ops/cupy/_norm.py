"""Normalisation on CuPy."""

from collections.abc import Sequence

import cupy

from xpconv.ops.cupy._groups import plan_sums
from xpconv.ops.cupy._launch import Array, aligned, launch
from xpconv.ops.dispatch import accelerate

Signs = tuple[Array, Array]  # beta and the rounding errors of the means, from which the signs of outputs follow


@accelerate("cupy")
def normalise(
    x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], tile_axis: int, eps: float
) -> tuple[Array, Array, Array, Array]:
    """Sum x and its squares in one pass, in pieces; a second kernel normalises, scales and shifts."""
    return _normalise("normalise", x, gamma, beta, axes, eps, 3)


@accelerate("cupy")
def normalise_relu(
    x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], tile_axis: int, eps: float
) -> tuple[Array, Array, Array, Array, Signs]:
    """Write max(0, normalised) instead; the backward pass computes again where that is positive."""
    *results, errors = _normalise("normalise_relu", x, gamma, beta, axes, eps, 4)
    return *results, (beta, errors)


def _normalise(
    kernel: str, x: Array, gamma: Array, beta: Array, axes: Sequence[int], eps: float, results: int
) -> tuple[Array, ...]:
    """Return the output of a kernel and its results for each group."""
    grid, groups, shape, wide = plan_sums(x.shape, x.dtype, tuple(axes), gamma.shape)
    x, gamma, beta = aligned(x), cupy.ascontiguousarray(gamma), cupy.ascontiguousarray(beta)
    dtype = x.dtype
    outputs = cupy.empty(x.shape, dtype), *(cupy.empty(shape, gamma.dtype) for _ in range(results))
    moments = cupy.empty((2, *grid[0]), "float64")
    launch("sum_moments", dtype, grid, x, moments, groups, wide=wide)
    launch(kernel, dtype, grid, x, gamma, beta, moments, float(eps), *outputs, groups, wide=wide)
    return outputs


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
    return _backward(("gradient_sums", "normalise_backward"), dout, x, (mean, inv_std, gamma), axes, param_axes)


@accelerate("cupy")
def normalise_relu_backward(
    dout: Array,
    signs: Signs,
    x: Array,
    mean: Array,
    inv_std: Array,
    gamma: Array,
    *,
    axes: Sequence[int],
    param_axes: Sequence[int],
    tile_axis: int,
) -> tuple[Array, Array, Array]:
    """Let both kernels compute again where the outputs are positive."""
    kernels = "relu_gradient_sums", "normalise_relu_backward"
    return _backward(kernels, dout, x, (mean, inv_std, gamma, *signs), axes, param_axes)


def _backward(
    kernels: tuple[str, str],
    dout: Array,
    x: Array,
    statistics: tuple[Array, ...],
    axes: Sequence[int],
    param_axes: Sequence[int],
) -> tuple[Array, Array, Array]:
    """Return the gradients; of `statistics`, the third is gamma."""
    gamma, dtype = statistics[2], x.dtype
    params = plan_sums(x.shape, dtype, tuple(param_axes), gamma.shape)
    wholes = plan_sums(x.shape, dtype, tuple(axes), gamma.shape, pieces=params.grid[0][1])
    params_per_group = params.grid[0][0] // wholes.grid[0][0]
    inputs = aligned(dout), aligned(x), *map(cupy.ascontiguousarray, statistics)
    dx, dgamma, dbeta = cupy.empty(x.shape, dtype), *(cupy.empty(params.shape, gamma.dtype) for _ in range(2))
    pieces = cupy.empty((5, *params.grid[0]), gamma.dtype)
    launch(kernels[0], dtype, params.grid, *inputs, pieces, params_per_group, params.groups, wide=params.wide)
    outputs = pieces, dx, dgamma, dbeta
    launch(kernels[1], dtype, wholes.grid, *inputs, *outputs, params_per_group, wholes.groups, wide=wholes.wide)
    return dx, dgamma, dbeta

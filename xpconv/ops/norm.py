"""What all normalisation layers have in common: ``out = gamma * (x - mean) / sqrt(var + eps) + beta``.

Arrays have the same number of axes; mean and variance are taken over `axes`, which they keep, of size 1. Slices along
`tile_axis` are independent, so arrays may be cut there into tiles.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation
from xpconv.ops.tiling import map_tiles

__all__ = ["normalise", "normalise_backward", "update_running_average", "variance_and_inverse_std"]

_HUGE = 1e15  # float32 has a place for its square


@operation
def normalise(
    x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], tile_axis: int, eps: float
) -> tuple[Array, Array, Array, Array]:
    """Return out, mean, var and 1 / sqrt(var + eps)."""

    def tile(x: Array, gamma: Array, beta: Array) -> tuple[Array, Array, Array, Array]:
        xp = array_api_compat.array_namespace(x)
        mean = xp.mean(x, axis=axes, keepdims=True)
        out = x - mean
        rest = xp.mean(out, axis=axes, keepdims=True)  # by so much the mean was rounded
        mean, out = mean + rest, out - rest
        var, inv_std = variance_and_inverse_std(xp, out, axes, eps)
        out *= inv_std
        out *= gamma
        out += beta
        return out, mean, var, inv_std

    out, mean, var, inv_std = map_tiles(x, gamma, beta, function=tile, axis=tile_axis)
    return out, mean, var, inv_std


def variance_and_inverse_std(xp: Any, centered: Array, axes: Sequence[int], eps: float) -> tuple[Array, Array]:
    """Return the variance of values whose mean is 0, and 1 / sqrt(var + eps).

    Where values are so large that their squares would overflow, they are scaled first. A variance for which their dtype
    has no place becomes the largest that it has.
    """
    largest = xp.max(xp.abs(centered), axis=axes, keepdims=True)
    scale = xp.where(largest > _HUGE, largest, xp.ones_like(largest))
    scaled = centered / scale
    std = scale * xp.sqrt(xp.mean(scaled * scaled, axis=axes, keepdims=True))
    inv_std = 1 / xp.hypot(std, xp.full_like(std, sqrt(eps)))
    std = xp.minimum(std, xp.full_like(std, 0.99 * sqrt(xp.finfo(std.dtype).max)))
    return std * std, inv_std


@operation
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
    """Return the gradients of x, and of gamma and beta summed over `param_axes`, which they keep."""

    def tile(dout: Array, x: Array, mean: Array, inv_std: Array, gamma: Array) -> tuple[Array, Array, Array]:
        xp = array_api_compat.array_namespace(dout)
        xhat = (x - mean) * inv_std
        product = dout * xhat
        dgamma, dbeta = xp.sum(product, axis=param_axes, keepdims=True), xp.sum(dout, axis=param_axes, keepdims=True)
        product *= gamma
        dx = dout * gamma
        center = xp.mean(dx, axis=axes, keepdims=True)
        dx -= xhat * xp.mean(product, axis=axes, keepdims=True)
        dx -= center
        dx *= inv_std
        return dx, dgamma, dbeta

    dx, dgamma, dbeta = map_tiles(dout, x, mean, inv_std, gamma, function=tile, axis=tile_axis)
    return dx, dgamma, dbeta


@operation
def update_running_average(old: Array, new: Array, momentum: float) -> Array:
    """Return the next running average, ``momentum * old + (1 - momentum) * new``."""
    return momentum * old + (1 - momentum) * new

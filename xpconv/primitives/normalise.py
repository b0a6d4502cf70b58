"""What all normalisation layers have in common: ``out = gamma * (x - mean) / sqrt(var + eps) + beta``.

Arrays have the same number of axes; mean and variance are taken over `axes`, which they keep, of size 1. Whatever is
`along` one axis is independent, and so may be cut into tiles.
"""

from collections.abc import Sequence

import array_api_compat

from xpconv.backend import Array
from xpconv.primitives import primitive
from xpconv.primitives.tiling import over_tiles

__all__ = ["normalise", "normalise_backward"]


@primitive
def normalise(x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], along: int, eps: float
              ) -> tuple[Array, Array, Array, Array]:
    """Return out, mean, var and 1 / sqrt(var + eps)."""
    def tile(x: Array, gamma: Array, beta: Array) -> tuple[Array, Array, Array, Array]:
        xp = array_api_compat.array_namespace(x)
        mean = xp.mean(x, axis=axes, keepdims=True)
        out = x - mean
        var = xp.mean(out * out, axis=axes, keepdims=True)
        inv_std = 1 / xp.sqrt(var + eps)
        out *= inv_std
        out *= gamma
        out += beta
        return out, mean, var, inv_std

    out, mean, var, inv_std = over_tiles(tile, along, x, gamma, beta)
    return out, mean, var, inv_std


@primitive
def normalise_backward(dout: Array, x: Array, mean: Array, inv_std: Array, gamma: Array, *, axes: Sequence[int],
                       sums: Sequence[int], along: int) -> tuple[Array, Array, Array]:
    """Return the gradients of x, and of gamma and beta summed over `sums`, which they keep."""
    def tile(dout: Array, x: Array, mean: Array, inv_std: Array, gamma: Array) -> tuple[Array, Array, Array]:
        xp = array_api_compat.array_namespace(dout)
        xhat = (x - mean) * inv_std
        product = dout * xhat
        dgamma, dbeta = xp.sum(product, axis=sums, keepdims=True), xp.sum(dout, axis=sums, keepdims=True)
        product *= gamma
        dx = dout * gamma
        center = xp.mean(dx, axis=axes, keepdims=True)
        dx -= xhat * xp.mean(product, axis=axes, keepdims=True)
        dx -= center
        dx *= inv_std
        return dx, dgamma, dbeta

    dx, dgamma, dbeta = over_tiles(tile, along, dout, x, mean, inv_std, gamma)
    return dx, dgamma, dbeta

"""Fast NumPy versions of the primitives on windows; those of the convolution are in mec.py."""

import numpy as np

from xpconv.ops.dispatch import accelerate
from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import map_tiles

Array = np.ndarray


def keep_where_mask(values: Array, mask: Array, out: Array) -> None:
    """Write values where the mask is, else 0: the product of their bits, since inf * 0 would be NaN."""
    bits = f"i{values.itemsize}"
    np.multiply(values.view(bits), mask, out=out.view(bits))


@accelerate("numpy")
def adam_step(w: Array, dw: Array, m: Array, v: Array, beta1: float, beta2: float, step: float, epsilon: float) -> None:
    """Keep what is between in one scratch array, which stays in the cache."""
    a = scratch("adam", w.shape, w.dtype)
    np.multiply(dw, 1 - beta1, out=a)
    m *= beta1
    m += a
    np.multiply(dw, dw, out=a)
    a *= 1 - beta2
    v *= beta2
    v += a
    np.sqrt(v, out=a)
    a += epsilon
    np.divide(m, a, out=a)
    a *= step
    w -= a


@accelerate("numpy")
def softmax_cross_entropy(x: Array, y: Array) -> tuple[Array, Array]:
    """Work in the gradient's own memory."""
    N = len(x)

    def tile(dx: Array, x: Array, y: Array) -> tuple[Array]:
        np.subtract(x, x.max(axis=1, keepdims=True), out=dx)
        rows = np.arange(len(y))
        own = dx[rows, y]
        np.exp(dx, out=dx)
        total = dx.sum(axis=1, keepdims=True)
        dx *= 1 / (total * N)
        dx[rows, y] -= x.dtype.type(1 / N)
        return (np.log(total[:, 0]) - own,)

    dx = np.empty(x.shape, x.dtype)
    return map_tiles(dx, x, y, function=tile, axis=0)[0], dx


@accelerate("numpy")
def relu(x: Array) -> tuple[Array, Array]:
    """Write both results at once, while the input is in the cache; clip is several times as fast as maximum at it."""
    out, mask = np.empty(x.shape, x.dtype), np.empty(x.shape, bool)

    def tile(out: Array, mask: Array, x: Array) -> tuple[()]:
        np.clip(x, 0, np.inf, out=out)
        np.greater(x, 0, out=mask)
        return ()

    map_tiles(out, mask, x, function=tile, axis=0)
    return out, mask


@accelerate("numpy")
def relu_backward(dout: Array, mask: Array) -> Array:
    """Multiply: a choice by random conditions costs twenty times as much."""
    dx = np.empty(dout.shape, dout.dtype)

    def tile(dx: Array, dout: Array, mask: Array) -> tuple[()]:
        keep_where_mask(dout, mask, dx)
        return ()

    map_tiles(dx, dout, mask, function=tile, axis=0)
    return dx

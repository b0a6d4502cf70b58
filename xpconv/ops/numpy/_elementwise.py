"""Elementwise operations and losses on NumPy."""

import numpy as np

from xpconv.ops.dispatch import accelerate
from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import map_tiles
from xpconv.ops.update import flush_threshold

Array = np.ndarray


def write_where(mask: Array, values: Array, out: Array) -> None:
    """Write ``where(mask, values, 0)`` to `out`.

    The bit patterns of the values are multiplied by 0 or 1 as integers, since inf * 0 would be NaN as floats. np.where
    is slow for random masks.
    """
    bits = f"i{values.itemsize}"
    np.multiply(values.view(bits), mask, out=out.view(bits))


@accelerate("numpy")
def flush_denormals(a: Array) -> None:
    """Write only if there are such values: they are rare, and writing takes twice as long as comparing."""
    magnitude, tiny = scratch("magnitude", a.shape, a.dtype), scratch("tiny", a.shape, np.bool_)
    np.abs(a, out=magnitude)
    np.less(magnitude, flush_threshold(np, a), out=tiny)
    if tiny.any():
        np.copyto(a, a.dtype.type(0), where=tiny)


@accelerate("numpy")
def adam_step(
    w: Array,
    dw: Array,
    m: Array,
    v: Array,
    beta1: float,
    beta2: float,
    step: float,
    epsilon: float,
    decay: float = 1.0,
) -> None:
    """Keep intermediate results in one scratch array, which stays in the cache."""
    a = scratch("adam", w.shape, w.dtype)
    np.multiply(dw, 1 - beta1, out=a)
    m *= beta1
    m += a
    np.multiply(dw, 1 - beta2, out=a)  # First, since dw * dw may overflow.
    a *= dw
    v *= beta2
    v += a
    np.sqrt(v, out=a)
    a += epsilon
    np.divide(m, a, out=a)
    a *= step
    if decay != 1:
        w *= decay
    w -= a


@accelerate("numpy")
def move_toward(a: Array, target: Array, rate: float) -> None:
    """Keep the difference in a scratch array, which stays in the cache."""
    difference = np.subtract(target, a, out=scratch("difference", a.shape, a.dtype))
    difference *= rate
    a += difference


@accelerate("numpy")
def softmax_cross_entropy(x: Array, y: Array) -> tuple[Array, Array]:
    """Use the memory of the gradient for the intermediate results."""
    N = len(x)

    def tile(dx: Array, x: Array, y: Array) -> tuple[Array]:
        np.subtract(x, x.max(axis=1, keepdims=True), out=dx)
        rows = np.arange(len(y))
        correct = dx[rows, y]
        np.exp(dx, out=dx)
        total = dx.sum(axis=1, keepdims=True)
        dx *= 1 / (total * N)
        dx[rows, y] -= x.dtype.type(1 / N)
        return (np.log(total[:, 0]) - correct,)

    dx = np.empty(x.shape, x.dtype)
    return map_tiles(dx, x, y, function=tile, axis=0)[0], dx


@accelerate("numpy")
def add(a: Array, b: Array) -> Array:
    """Add on all threads."""
    out = np.empty(a.shape, a.dtype)

    def tile(out: Array, a: Array, b: Array) -> tuple[()]:
        np.add(a, b, out=out)
        return ()

    map_tiles(out, a, b, function=tile, axis=0)
    return out


@accelerate("numpy")
def relu(x: Array) -> tuple[Array, Array]:
    """Write both results while the input is in the cache; np.clip is several times as fast as np.maximum."""
    out, mask = np.empty(x.shape, x.dtype), np.empty(x.shape, bool)

    def tile(out: Array, mask: Array, x: Array) -> tuple[()]:
        np.clip(x, 0, np.inf, out=out)
        np.greater(x, 0, out=mask)
        return ()

    map_tiles(out, mask, x, function=tile, axis=0)
    return out, mask


@accelerate("numpy")
def relu_backward(dout: Array, mask: Array) -> Array:
    """Multiply by the mask: for a random mask, np.where takes twenty times as long."""
    dx = np.empty(dout.shape, dout.dtype)

    def tile(dx: Array, dout: Array, mask: Array) -> tuple[()]:
        write_where(mask, dout, dx)
        return ()

    map_tiles(dx, dout, mask, function=tile, axis=0)
    return dx

"""Elementwise operations and losses on NumPy."""

from collections.abc import Callable
from functools import cache
from math import copysign, log, pi, sqrt
from typing import Any

import numpy as np
from numpy.lib.introspect import opt_func_info

from xpconv.backend._blocks import empty
from xpconv.ops.dispatch import accelerate
from xpconv.ops.elementwise import MILLS, TANH_GATE
from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import for_each_block, map_tiles
from xpconv.ops.update import flush_threshold

Array = np.ndarray


def write_where(mask: Array, values: Array, out: Array) -> None:
    """Write ``where(mask, values, 0)`` to `out`.

    The bit patterns of the values are multiplied by 0 or 1 as integers, since inf * 0 would be NaN as floats. np.where
    is slow for random masks, and np.multiply is slow if it must convert the mask. `values` must not be `out`.
    """
    bits = f"i{values.itemsize}"
    factors = out.view(bits)
    factors[...] = mask
    np.multiply(values.view(bits), factors, out=factors)


@accelerate("numpy")
def flush_denormals(a: Array) -> None:
    """Write only if there are denormals: they are rare, and writing takes twice as long as comparing."""
    magnitude, tiny = scratch("magnitude", a.shape, a.dtype), scratch("tiny", a.shape, np.bool_)
    np.abs(a, out=magnitude)
    np.less(magnitude, flush_threshold(np, a), out=tiny)
    if tiny.any():
        np.copyto(a, a.dtype.type(0), where=tiny)


@accelerate("numpy")
def sign(a: Array) -> Array:
    """Use one pass."""
    return np.asarray(np.sign(a))


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
    flush: bool = False,
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
    if flush:
        flush_denormals(m)
        flush_denormals(v)


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

    dx = empty(x.shape, x.dtype)
    return map_tiles(dx, x, y, function=tile, axis=0)[0], dx


@accelerate("numpy")
def add(a: Array, b: Array) -> Array:
    """Add on all threads."""
    out = empty(a.shape, a.dtype)

    def tile(out: Array, a: Array, b: Array) -> tuple[()]:
        np.add(a, b, out=out)
        return ()

    map_tiles(out, a, b, function=tile, axis=0)
    return out


@accelerate("numpy")
def relu(x: Array) -> tuple[Array, Array]:
    """Write both results while the input is in the cache; np.clip is several times as fast as np.maximum."""
    out, mask = empty(x.shape, x.dtype), empty(x.shape, bool)

    def tile(out: Array, mask: Array, x: Array) -> tuple[()]:
        np.clip(x, 0, np.inf, out=out)
        np.greater(x, 0, out=mask)
        return ()

    map_tiles(out, mask, x, function=tile, axis=0)
    return out, mask


@accelerate("numpy")
def relu_backward(dout: Array, mask: Array) -> Array:
    """Multiply by the mask: for a random mask, np.where takes twenty times as long."""
    dx = empty(dout.shape, dout.dtype)

    def tile(dx: Array, dout: Array, mask: Array) -> tuple[()]:
        write_where(mask, dout, dx)
        return ()

    map_tiles(dx, dout, mask, function=tile, axis=0)
    return dx


@accelerate("numpy")
def leaky_relu(x: Array, negative_slope: float) -> tuple[Array, Array]:
    """Write both results while the input is in the cache."""
    out, mask = empty(x.shape, x.dtype), empty(x.shape, bool)

    def tile(out: Array, mask: Array, x: Array) -> tuple[()]:
        np.greater(x, 0, out=mask)
        _scale_negative(x, mask, negative_slope, out)
        return ()

    map_tiles(out, mask, x, function=tile, axis=0)
    return out, mask


@accelerate("numpy")
def leaky_relu_backward(dout: Array, mask: Array, negative_slope: float) -> Array:
    """Multiply by 1 or by the slope, whichever the mask selects."""
    dx = empty(dout.shape, dout.dtype)

    def tile(dx: Array, dout: Array, mask: Array) -> tuple[()]:
        _scale_negative(dout, mask, negative_slope, dx)
        return ()

    map_tiles(dx, dout, mask, function=tile, axis=0)
    return dx


def _scale_negative(values: Array, mask: Array, negative_slope: float, out: Array) -> None:
    """Write ``where(mask, values, negative_slope * values)`` to `out`.

    The mask selects the bit patterns of the factors by integer arithmetic; np.where is slow for random masks.
    """
    bits = out.view(f"i{out.itemsize}")
    low, high = np.array([negative_slope, 1], out.dtype).view(bits.dtype)
    np.multiply(mask, high - low, out=bits)
    bits += low
    out *= values


@accelerate("numpy")
def gated(x: Array, gate: str) -> tuple[Array, Array]:
    """Compute both results in blocks that stay in the cache."""
    out, derivative = empty(x.shape, x.dtype), empty(x.shape, x.dtype)

    def update(x: Array, out: Array, derivative: Array) -> None:
        _GATES[gate](x, out, derivative, scratch("gate", x.shape, x.dtype))

    with np.errstate(over="ignore"):  # The square of x may be infinite.
        for_each_block(x, out, derivative, update=update)
    return out, derivative


@accelerate("numpy")
def gated_backward(dout: Array, derivative: Array) -> Array:
    """Multiply on all threads."""
    dx = empty(dout.shape, dout.dtype)

    def tile(dx: Array, dout: Array, derivative: Array) -> tuple[()]:
        np.multiply(dout, derivative, out=dx)
        return ()

    map_tiles(dx, dout, derivative, function=tile, axis=0)
    return dx


@cache
def _normal_constants(dtype: np.dtype) -> tuple[Callable[..., Array], list[Array], list[Array]]:
    """Return the power function, [factor, peak, k, scale, centre] and the polynomial's coefficients, lowest first.

    The tail of the normal distribution is its density times a polynomial of r; here r is scaled so that the highest
    power has the coefficient 1. The constants are arrays, since NumPy keeps the GIL for longer to convert a float.
    """
    power, factor = _power_of_density(dtype)
    peak = 1 / sqrt(2 * pi)  # Largest value of the density.
    k, centre, coefficients = MILLS[dtype.name]
    leading = coefficients[-1] / peak
    scale = copysign(abs(leading) ** (1 / len(coefficients)), leading)  # An odd root, which keeps the sign.
    scaled = [c / peak / scale ** (exponent + 1) for exponent, c in enumerate(coefficients[:-1])]
    others = factor, peak, k, scale, centre * scale
    return power, [np.array(c, dtype) for c in others], [np.array(c, dtype) for c in scaled]


def _power_of_density(dtype: np.dtype) -> tuple[Callable[..., Array], float]:
    """Return NumPy's fastest power, 2**t or e**t, and the factor f for which ``power(f * x**2) = exp(-x**2 / 2)``."""
    versions: dict[str, Any] = opt_func_info(func_name="^exp2$", signature=dtype.name).get("exp2", {})
    if versions.get(2 * dtype.char, {"current": "baseline"})["current"].startswith("baseline"):
        return np.exp, -1 / 2  # NumPy has no vector version of exp2 for this processor.
    return np.exp2, -1 / (2 * log(2))


def _normal(x: Array, out: Array, derivative: Array, P: Array) -> None:
    """Write ``x * P`` to `out` and ``P + x * density`` to `derivative`, for the normal distribution P.

    The array `P` is scratch memory.
    """
    power, (factor, peak, k, scale, centre), (*coefficients, highest) = _normal_constants(x.dtype)
    r, density, tail = out, derivative, P  # Intermediate results use the memory of the results.
    np.abs(x, out=r)
    r += k
    np.divide(scale, r, out=r)
    v = np.subtract(r, centre, out=density) if centre else r
    np.add(v, highest, out=tail)
    for coefficient in reversed(coefficients):
        tail *= v
        tail += coefficient
    tail *= r
    np.multiply(x, x, out=density)
    density *= factor
    power(density, out=density)
    density *= peak
    tail *= density  # Now the tail of the normal distribution at abs(x).
    # P is the tail where x <= 0, and 1 - tail elsewhere.
    tail -= np.greater(x, 0, out=scratch("positive", x.shape, np.bool_))
    np.abs(tail, out=P)
    np.multiply(x, P, out=out)
    np.multiply(x, density, out=derivative)
    derivative += P


def _tanh(x: Array, out: Array, derivative: Array, growth: Array) -> None:
    """Gate by the approximation of the normal distribution by tanh; `growth` is scratch memory."""
    a, b = TANH_GATE
    # Beyond these limits, P rounds to 0 or 1; at the upper limit, exp(z) is still finite.
    inside = np.clip(x, -30, 10 if x.itemsize == 4 else 21, out=derivative)
    np.square(inside, out=growth)
    z = np.multiply(growth, a * b, out=out)
    z += a
    z *= inside
    np.exp(z, out=out)
    growth *= 3 * a * b
    growth += a
    growth *= inside
    _gate_by_power(x, out, derivative, growth, tail=derivative)


def _logistic(x: Array, out: Array, derivative: Array, tail: Array) -> None:
    """Gate by the logistic distribution; `tail` is scratch memory."""
    inside = np.clip(x, -750, 88 if x.itemsize == 4 else 709, out=derivative)  # As in `_tanh`.
    np.exp(inside, out=out)
    _gate_by_power(x, out, derivative, inside, tail)


def _gate_by_power(x: Array, out: Array, derivative: Array, growth: Array, tail: Array) -> None:
    """Write the results for ``P = exp(z) / (1 + exp(z))``, given ``exp(z)`` in `out` and ``x * dz/dx`` in `growth`.

    The derivative is ``P * (1 + growth * (1 - P))``; `tail`, ``1 - P``, may be in the memory of `derivative`.
    """
    np.add(out, 1, out=tail)
    out /= tail
    np.divide(1, tail, out=tail)
    growth *= tail
    growth += 1
    np.multiply(growth, out, out=derivative)
    out *= x


_GATES: dict[str, Callable[[Array, Array, Array, Array], None]] = {
    "normal": _normal,
    "normal-tanh": _tanh,
    "logistic": _logistic,
}

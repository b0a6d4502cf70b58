"""Elementwise operations: rectifiers and gated activations, their gradients, and sums."""

from math import pi, sqrt
from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["add", "gated", "gated_backward", "leaky_relu", "leaky_relu_backward", "relu", "relu_backward"]

TANH_GATE = sqrt(8 / pi), 0.044715  # "normal-tanh" is the logistic gate of ``a * (x + b * x**3)``.
MILLS = {  # k, the centre of r, and the coefficients of powers of v, for `mills`
    "float32": (3.02, 0.0, (0.369626045, 1.85592055, -2.45406055, 31.0564194, -27.6688976)),
    "float64": (
        4.0,
        0.125,
        (
            0.7552851304157514, 4.863173135775144, 24.7767936475025, 95.4991912753043, 247.38437075091832,
            247.07691213264056, -912.1804731420515, -3420.074248447901, 2237.14459942898, 31017.064345656887,
            -2048.351540825946, -301898.42546062457, 49107.086037368266, 3256145.289243381,
            -2748581.631271814, -36133789.653091624, 74515919.97932889, 365313158.89619863,
            -1419239228.147312, -2820277872.719091, 18524435945.664963, 11780414902.004255,
            -124600945427.94617,
        ),
    ),
}  # fmt: skip


@operation
def add(a: Array, b: Array) -> Array:
    """Return ``a + b``, on all threads with NumPy.

    Parameters
    ----------
    a, b : array of the same shape

    Examples
    --------
    >>> import numpy as np
    >>> add(np.ones(2), np.ones(2))
    array([2., 2.])
    """
    return a + b


@operation
def relu(x: Array) -> tuple[Array, Array]:
    """Return ``max(x, 0)`` and the mask ``x > 0``, which the backward pass needs.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    out : array of the shape of `x`
    mask : array of bool, of the shape of `x`

    Examples
    --------
    >>> import numpy as np
    >>> relu(np.array([-1.0, 0.0, 2.0]))
    (array([0., 0., 2.]), array([False, False,  True]))
    """
    xp = array_api_compat.array_namespace(x)
    return xp.asarray(xp.maximum(x, _zero(xp, x))), xp.asarray(x > 0)  # NumPy turns arrays of shape () into scalars


@operation
def relu_backward(dout: Array, mask: Array) -> Array:
    """Return ``dout`` where the mask is True and 0 elsewhere.

    Parameters
    ----------
    dout : array of any shape
        Gradient of the output.
    mask : array of bool, of the shape of `dout`
        As returned by `relu`.

    Returns
    -------
    array of the shape of `dout`

    Examples
    --------
    >>> import numpy as np
    >>> relu_backward(np.array([1.0, 2.0, 3.0]), np.array([False, False, True]))
    array([0., 0., 3.])
    """
    xp = array_api_compat.array_namespace(dout)
    return xp.asarray(xp.where(mask, dout, _zero(xp, dout)))


@operation
def leaky_relu(x: Array, negative_slope: float) -> tuple[Array, Array]:
    """Return ``x`` where it is positive and ``negative_slope * x`` elsewhere, and the mask ``x > 0``.

    Parameters
    ----------
    x : array of any shape
    negative_slope : float

    Returns
    -------
    out : array of the shape of `x`
    mask : array of bool, of the shape of `x`

    Examples
    --------
    >>> import numpy as np
    >>> leaky_relu(np.array([-1.0, 0.0, 2.0]), 0.1)
    (array([-0.1,  0. ,  2. ]), array([False, False,  True]))
    """
    mask = array_api_compat.array_namespace(x).asarray(x > 0)
    return leaky_relu_backward(x, mask, negative_slope), mask


@operation
def leaky_relu_backward(dout: Array, mask: Array, negative_slope: float) -> Array:
    """Return ``dout`` where the mask is True and ``negative_slope * dout`` elsewhere.

    Parameters
    ----------
    dout : array of any shape
        Gradient of the output.
    mask : array of bool, of the shape of `dout`
        As returned by `leaky_relu`.
    negative_slope : float

    Returns
    -------
    array of the shape of `dout`

    Examples
    --------
    >>> import numpy as np
    >>> leaky_relu_backward(np.array([1.0, 2.0]), np.array([False, True]), 0.1)
    array([0.1, 2. ])
    """
    xp = array_api_compat.array_namespace(dout)
    return xp.asarray(xp.where(mask, dout, dout * negative_slope))


@operation
def gated(x: Array, gate: str) -> tuple[Array, Array]:
    """Return ``x * P(x)``, where P is the distribution function of a symmetric distribution, and its derivative.

    With the density p of the distribution, the derivative is ``P(x) + x * p(x)``. P is accurate to the dtype's rounding
    error, relative to 1.

    Parameters
    ----------
    x : array of any shape
    gate : {"normal", "normal-tanh", "logistic"}
        The distribution: standard normal (GELU), its approximation by tanh, or logistic (SiLU).

    Returns
    -------
    out : array of the shape of `x`
    derivative : array of the shape of `x`
        For `gated_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> out, derivative = gated(np.array([-1.0, 0.0, 1.0]), "normal")
    >>> out.round(4), derivative.round(4)
    (array([-0.1587,  0.    ,  0.8413]), array([-0.0833,  0.5   ,  1.0833]))
    """
    xp = array_api_compat.array_namespace(x)
    limit = xp.asarray(750.0, dtype=x.dtype, device=array_api_compat.device(x))  # exp(-750) is 0.
    t = xp.minimum(xp.abs(x), limit)
    square = t * t
    if gate == "normal":
        power = xp.exp(-0.5 * square)
        tail, density = power * mills(t), power / sqrt(2 * pi)
    else:
        a, b = TANH_GATE if gate == "normal-tanh" else (1.0, 0.0)
        power = xp.exp(-(a * t) * (1 + b * square))
        tail = power / (1 + power)
        density = (a + 3 * a * b * square) * tail / (1 + power)
    P = xp.where(x > 0, 1 - tail, tail)
    return xp.asarray(x * P), xp.asarray(P + x * density)


def mills(t: Array) -> Array:
    """Return the tail of the standard normal distribution at t, 0 or more, divided by ``exp(-t * t / 2)``.

    With ``r = 1 / (t + k)``, the result divided by r is a polynomial in ``v = r - centre``, found by Chebyshev
    interpolation for float64, and for float32 by minimising the largest error of the tail itself.

    References
    ----------
    Shepherd and Laframboise, "Chebyshev Approximation of (1 + 2x) exp(x^2) erfc x in 0 <= x < inf", 1981.

    Examples
    --------
    >>> import numpy as np
    >>> mills(np.asarray([0.0, 100.0])).round(6)
    array([0.5     , 0.003989])
    """
    k, centre, coefficients = MILLS["float64" if "64" in str(t.dtype) else "float32"]
    r = 1 / (t + k)
    v = r - centre
    last, *others = reversed(coefficients)
    total: Any = last
    for coefficient in others:
        total = total * v + coefficient
    return total * r


@operation
def gated_backward(dout: Array, derivative: Array) -> Array:
    """Return ``dout * derivative``.

    Parameters
    ----------
    dout : array of any shape
        Gradient of the output.
    derivative : array of the shape of `dout`
        As returned by `gated`.

    Returns
    -------
    array of the shape of `dout`

    Examples
    --------
    >>> import numpy as np
    >>> gated_backward(np.array([2.0, 2.0]), np.array([0.5, 1.0]))
    array([1., 2.])
    """
    return array_api_compat.array_namespace(dout).asarray(dout * derivative)


def _zero(xp: Any, like: Array) -> Array:
    return xp.zeros((), dtype=like.dtype, device=array_api_compat.device(like))

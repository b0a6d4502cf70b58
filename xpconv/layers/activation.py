"""Activations: ReLU, leaky ReLU, GELU and SiLU; and scaling by a constant."""

from typing import NamedTuple

from xpconv import ops
from xpconv._validation import check_choice, check_nonnegative, check_positive
from xpconv.backend import Array, array_namespace
from xpconv.layers._checks import check_arrays, check_cache, check_gradient_shape

__all__ = [
    "GeluCache",
    "LeakyReluCache",
    "ReluCache",
    "ScaleCache",
    "SiluCache",
    "gelu_backward",
    "gelu_forward",
    "leaky_relu_backward",
    "leaky_relu_forward",
    "relu_backward",
    "relu_forward",
    "scale_backward",
    "scale_forward",
    "silu_backward",
    "silu_forward",
]


class ReluCache(NamedTuple):
    """What the backward pass of ReLU needs: a mask of the positive inputs.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = relu_forward(np.asarray([-1.0, 2.0]))
    >>> cache.mask.tolist()
    [False, True]
    """

    mask: Array


def relu_forward(x: Array) -> tuple[Array, ReluCache]:
    """Compute ``out = max(x, 0)``.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    out : array in the shape of `x`
    cache : ReluCache
        For `relu_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> relu_forward(np.asarray([-1.0, 0.0, 2.0]))[0]
    array([0., 0., 2.])
    """
    check_arrays(x=x)
    out, mask = ops.relu(x)
    return out, ReluCache(mask)


def relu_backward(dout: Array, cache: ReluCache) -> Array:
    """Compute ``dx = dout where x > 0, else 0``; the gradient at exactly 0 is 0.

    Parameters
    ----------
    dout : array in the shape of the layer's output
    cache : ReluCache
        From `relu_forward`.

    Returns
    -------
    dx : array in the shape of `dout`

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = relu_forward(np.asarray([-1.0, 0.0, 2.0]))
    >>> relu_backward(np.ones(3), cache)
    array([0., 0., 1.])
    """
    check_cache(cache, ReluCache)
    _check_gradient(dout, mask=cache.mask)
    return ops.relu_backward(dout, cache.mask)


class LeakyReluCache(NamedTuple):
    """What the backward pass of leaky ReLU needs: a mask of the positive inputs, and the slope elsewhere.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = leaky_relu_forward(np.asarray([-1.0, 2.0]))
    >>> cache.mask.tolist(), cache.negative_slope
    ([False, True], 0.01)
    """

    mask: Array
    negative_slope: float


def leaky_relu_forward(x: Array, *, negative_slope: float = 0.01) -> tuple[Array, LeakyReluCache]:
    """Compute ``out = x where x > 0, else negative_slope * x``.

    Parameters
    ----------
    x : array of any shape
    negative_slope : float
        0 or more.

    Returns
    -------
    out : array in the shape of `x`
    cache : LeakyReluCache
        For `leaky_relu_backward`.

    References
    ----------
    Maas, Hannun and Ng, "Rectifier Nonlinearities Improve Neural Network Acoustic Models", 2013.

    Examples
    --------
    >>> import numpy as np
    >>> leaky_relu_forward(np.asarray([-1.0, 0.0, 2.0]), negative_slope=0.1)[0]
    array([-0.1,  0. ,  2. ])
    """
    check_arrays(x=x)
    negative_slope = check_nonnegative("negative_slope", negative_slope)
    out, mask = ops.leaky_relu(x, negative_slope)
    return out, LeakyReluCache(mask, negative_slope)


def leaky_relu_backward(dout: Array, cache: LeakyReluCache) -> Array:
    """Compute ``dx = dout where x > 0, else negative_slope * dout``.

    Parameters
    ----------
    dout : array in the shape of the layer's output
    cache : LeakyReluCache
        From `leaky_relu_forward`.

    Returns
    -------
    dx : array in the shape of `dout`

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = leaky_relu_forward(np.asarray([-1.0, 0.0, 2.0]), negative_slope=0.1)
    >>> leaky_relu_backward(np.ones(3), cache)
    array([0.1, 0.1, 1. ])
    """
    check_cache(cache, LeakyReluCache)
    _check_gradient(dout, mask=cache.mask)
    return ops.leaky_relu_backward(dout, cache.mask, cache.negative_slope)


class ScaleCache(NamedTuple):
    """What the backward pass of scaling needs: the factor, and the shape of the output.

    Examples
    --------
    >>> import numpy as np
    >>> scale_forward(np.ones(3), factor=2)[1]
    ScaleCache(factor=2.0, shape=(3,))
    """

    factor: float
    shape: tuple[int, ...]


def scale_forward(x: Array, *, factor: float) -> tuple[Array, ScaleCache]:
    """Compute ``out = factor * x``.

    Parameters
    ----------
    x : array of any shape
    factor : float
        Above 0.

    Returns
    -------
    out : array in the shape of `x`
    cache : ScaleCache
        For `scale_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> scale_forward(np.asarray([-1.0, 2.0]), factor=0.5)[0]
    array([-0.5,  1. ])
    """
    check_arrays(x=x)
    factor = check_positive("factor", factor)
    return factor * x, ScaleCache(factor, tuple(x.shape))


def scale_backward(dout: Array, cache: ScaleCache) -> Array:
    """Compute ``dx = factor * dout``.

    Parameters
    ----------
    dout : array in the shape of the layer's output
    cache : ScaleCache
        From `scale_forward`.

    Returns
    -------
    dx : array in the shape of `dout`

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = scale_forward(np.asarray([-1.0, 2.0]), factor=0.5)
    >>> scale_backward(np.ones(2), cache)
    array([0.5, 0.5])
    """
    check_cache(cache, ScaleCache)
    check_arrays(dout=dout)
    check_gradient_shape(dout, cache.shape)
    return cache.factor * dout


class GeluCache(NamedTuple):
    """What the backward pass of GELU needs: the derivative of each output with respect to its input.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = gelu_forward(np.asarray([0.0, 100.0]))
    >>> cache.derivative
    array([0.5, 1. ])
    """

    derivative: Array


def gelu_forward(x: Array, *, approximate: str = "none") -> tuple[Array, GeluCache]:
    """Compute the Gaussian error linear unit, ``out = x * P(x)`` with the standard normal distribution function P.

    Parameters
    ----------
    x : array of any shape
    approximate : {"none", "tanh"}
        "none" computes ``P(x) = (1 + erf(x / sqrt(2))) / 2`` to the dtype's rounding error; "tanh" is the approximation
        ``P(x) = (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2``, which differs by up to 3e-4.

    Returns
    -------
    out : array in the shape of `x`
    cache : GeluCache
        For `gelu_backward`.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.asarray([-1.0, 0.0, 2.0])
    >>> gelu_forward(x)[0].round(4), gelu_forward(x, approximate="tanh")[0].round(4)
    (array([-0.1587,  0.    ,  1.9545]), array([-0.1588,  0.    ,  1.9546]))
    """
    check_arrays(x=x)
    check_choice("approximate", approximate, ("none", "tanh"))
    out, derivative = ops.gated(x, "normal" if approximate == "none" else "normal-tanh")
    return out, GeluCache(derivative)


def gelu_backward(dout: Array, cache: GeluCache) -> Array:
    """Compute ``dx = dout * (P(x) + x * p(x))``, where p is the derivative of P.

    Parameters
    ----------
    dout : array in the shape of the layer's output
    cache : GeluCache
        From `gelu_forward`.

    Returns
    -------
    dx : array in the shape of `dout`

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = gelu_forward(np.asarray([-1.0, 0.0, 2.0]))
    >>> gelu_backward(np.ones(3), cache).round(4)
    array([-0.0833,  0.5   ,  1.0852])
    """
    check_cache(cache, GeluCache)
    check_arrays(dout=dout, derivative=cache.derivative)
    _check_gradient(dout, derivative=cache.derivative)
    return ops.gated_backward(dout, cache.derivative)


class SiluCache(NamedTuple):
    """What the backward pass of SiLU needs: the derivative of each output with respect to its input.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = silu_forward(np.asarray([0.0, 100.0]))
    >>> cache.derivative
    array([0.5, 1. ])
    """

    derivative: Array


def silu_forward(x: Array) -> tuple[Array, SiluCache]:
    """Compute the sigmoid linear unit (also called swish), ``out = x / (1 + exp(-x))``.

    Parameters
    ----------
    x : array of any shape

    Returns
    -------
    out : array in the shape of `x`
    cache : SiluCache
        For `silu_backward`.

    References
    ----------
    Elfwing, Uchibe and Doya, "Sigmoid-Weighted Linear Units for Neural Network Function Approximation in Reinforcement
    Learning", 2017.

    Examples
    --------
    >>> import numpy as np
    >>> silu_forward(np.asarray([-1.0, 0.0, 2.0]))[0].round(4)
    array([-0.2689,  0.    ,  1.7616])
    """
    check_arrays(x=x)
    out, derivative = ops.gated(x, "logistic")
    return out, SiluCache(derivative)


def silu_backward(dout: Array, cache: SiluCache) -> Array:
    """Compute ``dx = dout * s * (1 + x * (1 - s))`` with the sigmoid ``s = 1 / (1 + exp(-x))``.

    Parameters
    ----------
    dout : array in the shape of the layer's output
    cache : SiluCache
        From `silu_forward`.

    Returns
    -------
    dx : array in the shape of `dout`

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = silu_forward(np.asarray([-1.0, 0.0, 2.0]))
    >>> silu_backward(np.ones(3), cache).round(4)
    array([0.0723, 0.5   , 1.0908])
    """
    check_cache(cache, SiluCache)
    check_arrays(dout=dout, derivative=cache.derivative)
    _check_gradient(dout, derivative=cache.derivative)
    return ops.gated_backward(dout, cache.derivative)


def _check_gradient(dout: Array, **cached: Array) -> None:
    """Check the upstream gradient against the array in the cache."""
    check_arrays(dout=dout)
    array_namespace(dout=dout, **cached)
    (array,) = cached.values()
    check_gradient_shape(dout, array.shape)

"""Updates of parameters and of their running averages, in place."""

from contextlib import AbstractContextManager
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["adam_step", "flush_denormals", "ignore_underflow", "move_toward", "sign"]


def ignore_underflow() -> AbstractContextManager[object]:
    """Return a context in which tiny results become 0, even if the program has told NumPy to raise on underflow.

    Examples
    --------
    >>> import numpy as np
    >>> with np.errstate(all="raise"), ignore_underflow():
    ...     np.full(1, 1e-200) * 1e-200
    array([0.])
    """
    return np.errstate(under="ignore")


@operation
def flush_denormals(a: Array) -> None:
    """Set denormal and nearly denormal values to 0, in place: those below 2**16 times the smallest normal number.

    If gradients become 0, their running averages shrink until they are denormal, and arithmetic on denormal numbers is
    up to a hundred times slower on some processors. A value that is kept can be halved 16 times before it is denormal,
    so an average need not be flushed at every step. NaN stays.

    Parameters
    ----------
    a : array of any shape

    Examples
    --------
    >>> import numpy as np
    >>> a = np.array([1e-310, -1e-310, 1e-300, np.nan])
    >>> flush_denormals(a)
    >>> a
    array([0.e+000, 0.e+000, 1.e-300,     nan])
    """
    xp = array_api_compat.array_namespace(a)
    zero = xp.zeros((), dtype=a.dtype, device=array_api_compat.device(a))
    a[...] = xp.where(xp.abs(a) < flush_threshold(xp, a), zero, a)


def flush_threshold(xp: Any, a: Array) -> float:
    """Return the number below which `flush_denormals` sets values to 0."""
    return float(2**16 * xp.finfo(a.dtype).smallest_normal)


@operation
def adam_step(
    w: Array,
    dw: Array,
    m: Array,
    v: Array,
    beta1: float,
    beta2: float,
    step: float | Array,
    epsilon: float | Array,
    decay: float | Array = 1.0,
) -> None:
    """Take a step of Adam: update the averages `m` and `v` and the parameter `w` in place.

    ``m = beta1 * m + (1 - beta1) * dw``, ``v = beta2 * v + (1 - beta2) * dw**2``,
    ``w = decay * w - step * m / (sqrt(v) + epsilon)``.

    Parameters
    ----------
    w, dw, m, v : array of one shape
    beta1, beta2 : float
        Decay rates of the averages.
    step, epsilon : float or array () on the device
        Including Adam's bias corrections, as `xpconv.training.optim.adam` computes them.
    decay : float or array () on the device
        Factor of the parameter, for decoupled weight decay.

    References
    ----------
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015. Loshchilov and Hutter, "Decoupled Weight Decay
    Regularization", 2019.

    Examples
    --------
    >>> import numpy as np
    >>> w, m, v = np.ones(2), np.zeros(2), np.zeros(2)
    >>> adam_step(w, np.array([1.0, -4.0]), m, v, 0.9, 0.99, 0.1, 0.0)
    >>> w, m
    (array([0.9, 1.1]), array([ 0.1, -0.4]))
    """
    xp = array_api_compat.array_namespace(w)
    m *= beta1
    m += (1 - beta1) * dw
    v *= beta2
    v += (1 - beta2) * dw * dw
    if not isinstance(decay, float) or decay != 1:
        w *= decay
    w -= step * m / (xp.sqrt(v) + epsilon)


@operation
def move_toward(a: Array, target: Array, rate: float | Array) -> None:
    """Move an array toward a target in place: ``a += rate * (target - a)``.

    Parameters
    ----------
    a, target : array of one shape
    rate : float or array () on the device
        0 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> a = np.zeros(2)
    >>> move_toward(a, np.array([1.0, 4.0]), 0.25)
    >>> a
    array([0.25, 1.  ])
    """
    a += rate * (target - a)


@operation
def sign(a: Array) -> Array:
    """Return the sign of each element: -1, 0 or 1, and NaN for NaN.

    Unlike array_api_compat's sign with CuPy, this does not wait for the device.

    Parameters
    ----------
    a : array of any shape

    Examples
    --------
    >>> import numpy as np
    >>> sign(np.array([-2.0, 0.0, 3.0, np.nan]))
    array([-1.,  0.,  1., nan])
    """
    xp = array_api_compat.array_namespace(a)
    signs = xp.astype(a > 0, a.dtype) - xp.astype(a < 0, a.dtype)
    return xp.asarray(xp.where(a == a, signs, a))

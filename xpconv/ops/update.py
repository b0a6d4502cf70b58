"""Updates of parameters and of their running averages, in place."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = [
    "adam_numbers",
    "adam_step",
    "copy_all",
    "flush_denormals",
    "ignore_underflow",
    "lion_step",
    "momentum_step",
    "move_toward",
    "nesterov_direction",
    "nesterov_step",
    "restore_unless",
    "rmsprop_step",
    "sgd_step",
    "sign",
]


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
    flush: bool = False,
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
    flush : bool
        Whether to call `flush_denormals` for both averages at the end.

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
    if flush:
        flush_denormals(m)
        flush_denormals(v)


@operation
def sgd_step(w: Array, dw: Array, rate: float | Array, decay: float) -> None:
    """Take a step down the gradient in place: ``w -= rate * (dw + decay * w)``.

    Parameters
    ----------
    w, dw : array of one shape
    rate : float or array () on the device
    decay : float
        Of coupled weight decay.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.ones(2)
    >>> sgd_step(w, np.array([1.0, -1.0]), 0.5, decay=1.0)
    >>> w
    array([0., 1.])
    """
    w -= rate * _penalised(w, dw, decay)


@operation
def momentum_step(w: Array, dw: Array, velocity: Array, rate: float | Array, momentum: float, decay: float) -> None:
    """Step along a decaying sum of gradients: ``v = momentum * v - rate * (dw + decay * w); w += v``, in place.

    Parameters
    ----------
    w, dw, velocity : array of one shape
    rate, decay
        As for `sgd_step`.
    momentum : float

    Examples
    --------
    >>> import numpy as np
    >>> w, velocity = np.ones(1), np.ones(1)
    >>> momentum_step(w, np.ones(1), velocity, 0.25, 0.5, decay=0.0)
    >>> w, velocity
    (array([1.25]), array([0.25]))
    """
    velocity *= momentum
    velocity -= rate * _penalised(w, dw, decay)
    flush_denormals(velocity)
    w += velocity


@operation
def nesterov_step(w: Array, dw: Array, velocity: Array, rate: float | Array, momentum: float, decay: float) -> None:
    """Step along the gradient that momentum anticipates, in place.

    With ``g = dw + decay * w``: ``v = momentum * v + g; w -= rate * (g + momentum * v)``.

    Parameters
    ----------
    w, dw, velocity, rate, momentum, decay
        As for `momentum_step`.

    Examples
    --------
    >>> import numpy as np
    >>> w, velocity = np.ones(1), np.ones(1)
    >>> nesterov_step(w, np.ones(1), velocity, 0.25, 0.5, decay=0.0)
    >>> w, velocity
    (array([0.5625]), array([1.5]))
    """
    dw = _penalised(w, dw, decay)
    _accumulate(dw, velocity, momentum)
    w -= rate * (dw + momentum * velocity)


@operation
def nesterov_direction(direction: Array, dw: Array, velocity: Array, momentum: float) -> None:
    """Write the direction of `nesterov_step` to an array: ``v = momentum * v + dw; direction = dw + momentum * v``.

    Parameters
    ----------
    direction, dw, velocity : array of one shape
        `velocity` is updated in place, too.
    momentum : float

    Examples
    --------
    >>> import numpy as np
    >>> direction, velocity = np.zeros(1), np.ones(1)
    >>> nesterov_direction(direction, np.ones(1), velocity, 0.5)
    >>> direction, velocity
    (array([1.75]), array([1.5]))
    """
    _accumulate(dw, velocity, momentum)
    direction[...] = dw + momentum * velocity


@operation
def rmsprop_step(
    w: Array, dw: Array, cache: Array, decay_rate: float, rate: float | Array, epsilon: float, decay: float
) -> None:
    """Divide the step by the gradient's recent magnitude, in place.

    With ``g = dw + decay * w``: ``cache = decay_rate * cache + (1 - decay_rate) * g**2``;
    ``w -= rate * g / (sqrt(cache) + epsilon)``.

    Parameters
    ----------
    w, dw, cache : array of one shape
    decay_rate, epsilon : float
    rate, decay
        As for `sgd_step`.

    Examples
    --------
    >>> import numpy as np
    >>> w, cache = np.ones(1), np.zeros(1)
    >>> rmsprop_step(w, np.ones(1), cache, 0.75, 0.25, 0.0, decay=0.0)
    >>> w, cache
    (array([0.5]), array([0.25]))
    """
    xp, dw = array_api_compat.array_namespace(w), _penalised(w, dw, decay)
    cache *= decay_rate
    cache += (1 - decay_rate) * dw * dw
    flush_denormals(cache)
    w -= rate * dw / (xp.sqrt(cache) + epsilon)


@operation
def lion_step(w: Array, dw: Array, m: Array, beta1: float, beta2: float, rate: float | Array) -> None:
    """Step along the sign of a running mean, in place.

    ``w -= rate * sign(beta1 * m + (1 - beta1) * dw)``, then ``m = beta2 * m + (1 - beta2) * dw``.

    Parameters
    ----------
    w, dw, m : array of one shape
    beta1, beta2 : float
    rate : float or array () on the device

    Examples
    --------
    >>> import numpy as np
    >>> w, m = np.ones(1), np.ones(1)
    >>> lion_step(w, -np.ones(1), m, 0.25, 0.5, 0.25)
    >>> w, m
    (array([1.25]), array([0.]))
    """
    w -= rate * sign(beta1 * m + (1 - beta1) * dw)
    m *= beta2
    m += (1 - beta2) * dw
    flush_denormals(m)


def _penalised(w: Array, dw: Array, decay: float) -> Array:
    """Return the gradient with that of the penalty ``decay / 2 * sum(w**2)``: coupled weight decay."""
    return dw + decay * w if decay else dw


def _accumulate(dw: Array, velocity: Array, momentum: float) -> None:
    """Add a gradient to a decaying sum in place."""
    velocity *= momentum
    velocity += dw
    flush_denormals(velocity)


@operation
def adam_numbers(
    t: Array, like: Array, learning_rate: float | Array, beta1: float, beta2: float, epsilon: float
) -> tuple[Array, Array, Array]:
    """Return the count of Adam's next step, and that step's `step` and `epsilon` for `adam_step`.

    Parameters
    ----------
    t : array () of float64
        The number of steps taken.
    like : array
        Determines the dtype of the step size and of epsilon.
    learning_rate, beta1, beta2, epsilon : float
        As for `xpconv.training.optim.adam`; the learning rate may be an array ().

    Examples
    --------
    >>> import numpy as np
    >>> t, step, epsilon = adam_numbers(
    ...     np.asarray(0.0), np.zeros(3, np.float32), 0.1, 0.9, 0.75, 1e-8
    ... )
    >>> float(t), step
    (1.0, array(0.5, dtype=float32))
    """
    xp = array_api_compat.array_namespace(t)
    t = t + 1
    root = (1 - beta2**t) ** 0.5
    step = learning_rate * root / (1 - beta1**t)
    return t, xp.astype(xp.asarray(step), like.dtype), xp.astype(xp.asarray(epsilon * root), like.dtype)


@operation
def copy_all(*arrays: Array) -> tuple[Array, ...]:
    """Return copies of arrays of one shape.

    Examples
    --------
    >>> import numpy as np
    >>> copy_all(np.zeros(2), np.ones(2))
    (array([0., 0.]), array([1., 1.]))
    """
    return tuple(array_api_compat.array_namespace(a).asarray(a, copy=True) for a in arrays)


@operation
def restore_unless(condition: Array, arrays: Sequence[Array], copies: Sequence[Array]) -> None:
    """Write the copies to the arrays, all of one shape, unless a condition on the device is True.

    Parameters
    ----------
    condition : boolean array ()
    arrays, copies : sequence of array

    Examples
    --------
    >>> import numpy as np
    >>> a = np.ones(2)
    >>> restore_unless(np.asarray(False), [a], [np.zeros(2)])
    >>> a
    array([0., 0.])
    """
    for a, copy in zip(arrays, copies, strict=True):
        a[...] = array_api_compat.array_namespace(a).where(condition, a, copy)


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

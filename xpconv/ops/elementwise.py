"""Elementwise operations: the rectifier, its gradient, and sums."""

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["add", "relu", "relu_backward"]


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


def _zero(xp: object, like: Array) -> Array:
    return xp.zeros((), dtype=like.dtype, device=array_api_compat.device(like))  # type: ignore[attr-defined]

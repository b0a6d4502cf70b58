"""The rectified linear unit (ReLU)."""

from typing import NamedTuple

from xpconv import ops
from xpconv.backend import Array, array_namespace
from xpconv.layers._checks import check_arrays, check_cache, check_gradient_shape

__all__ = ["ReluCache", "relu_backward", "relu_forward"]


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
    check_arrays(dout=dout)
    array_namespace(dout=dout, mask=cache.mask)
    check_gradient_shape(dout, cache.mask.shape)
    return ops.relu_backward(dout, cache.mask)

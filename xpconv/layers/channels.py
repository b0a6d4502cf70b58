"""Layers that change the number of channels of images."""

from typing import NamedTuple

import array_api_compat

from xpconv._validation import MOST_PIXELS, check_count
from xpconv.backend import Array
from xpconv.errors import ArgumentError
from xpconv.layers._checks import check_arrays, check_cache, check_gradient_shape, check_shape

__all__ = ["PadChannelsCache", "pad_channels_backward", "pad_channels_forward"]


class PadChannelsCache(NamedTuple):
    """What the backward pass of channel padding needs.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = pad_channels_forward(np.ones((2, 3, 4, 4)), channels=5)
    >>> cache
    PadChannelsCache(shape=(2, 3, 4, 4), channels=5)
    """

    shape: tuple[int, ...]
    channels: int


def pad_channels_forward(x: Array, *, channels: int) -> tuple[Array, PadChannelsCache]:
    """Append channels of zeros: ``out[:, :C] = x`` and ``out[:, C:] = 0``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    channels : int
        Number of channels of the output, at least C.

    Returns
    -------
    out : array (N, channels, H, W)
    cache : PadChannelsCache
        For `pad_channels_backward`.

    Raises
    ------
    ArgumentError
        If `x` has more channels.

    References
    ----------
    He et al., "Deep Residual Learning for Image Recognition", 2016: the shortcuts without parameters (option A).

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = pad_channels_forward(np.ones((1, 1, 1, 1)), channels=3)
    >>> out.ravel()
    array([1., 0., 0.])
    """
    xp = check_arrays(x=x)
    check_shape("x", x, ("N", "C", "H", "W"))
    channels = check_count("channels", channels)
    N, C, H, W = x.shape
    if channels < C:
        raise ArgumentError(f"channels is {channels}; expected at least the {C} channels of x")
    if channels * H * W > MOST_PIXELS:
        raise ArgumentError(f"channels is {channels}; expected less, since an image has at most {MOST_PIXELS} values")
    zeros = xp.zeros((N, channels - C, H, W), dtype=x.dtype, device=array_api_compat.device(x))
    return xp.concat([x, zeros], axis=1), PadChannelsCache((N, C, H, W), channels)


def pad_channels_backward(dout: Array, cache: PadChannelsCache) -> Array:
    """Return the gradients of the channels that are not padding.

    Parameters
    ----------
    dout : array (N, channels, H, W)
        Gradient of the loss with respect to the layer's output.
    cache : PadChannelsCache
        From `pad_channels_forward`.

    Returns
    -------
    dx : array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = pad_channels_forward(np.ones((1, 1, 1, 1)), channels=2)
    >>> pad_channels_backward(np.full((1, 2, 1, 1), 3.0), cache)
    array([[[[3.]]]])
    """
    check_cache(cache, PadChannelsCache)
    xp = check_arrays(dout=dout)
    N, C, H, W = cache.shape
    check_gradient_shape(dout, (N, cache.channels, H, W))
    return xp.asarray(dout[:, :C, ...], copy=True)

"""Pooling layers.

Letters: N images, C channels, (H, W) image, (KH, KW) window, (OH, OW) output.
"""

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple

import array_api_compat

from xpconv import ops
from xpconv._validation import check_pair
from xpconv.backend import Array, array_namespace
from xpconv.errors import ArgumentError
from xpconv.layers._checks import check_arrays, check_cache, check_gradient_shape, check_shape, window_output
from xpconv.ops.windows import Pair, add_windows, output_size, pad, windows

__all__ = [
    "AvgPoolCache",
    "GlobalAvgPoolCache",
    "MaxPoolCache",
    "avg_pool_backward",
    "avg_pool_forward",
    "global_avg_pool_backward",
    "global_avg_pool_forward",
    "max_pool_backward",
    "max_pool_forward",
]


class MaxPoolCache(NamedTuple):
    """What the backward pass of max pooling needs: the position of each window's maximum.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = max_pool_forward(np.asarray([[[[1.0, 2.0], [4.0, 3.0]]]]), kernel_size=2)
    >>> cache.argmax.item(), cache.stride
    (2, (2, 2))
    """

    argmax: Array
    shape: tuple[int, ...]
    kernel_size: Pair
    stride: Pair
    padding: Pair


class AvgPoolCache(NamedTuple):
    """What the backward pass of average pooling needs.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = avg_pool_forward(np.ones((1, 1, 4, 4)), kernel_size=2)
    >>> cache.shape, cache.kernel_size
    ((1, 1, 4, 4), (2, 2))
    """

    shape: tuple[int, ...]
    kernel_size: Pair
    stride: Pair
    padding: Pair


class GlobalAvgPoolCache(NamedTuple):
    """What the backward pass of global average pooling needs.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = global_avg_pool_forward(np.ones((2, 3, 4, 4)))
    >>> cache.shape
    (2, 3, 4, 4)
    """

    shape: tuple[int, ...]


def max_pool_forward(
    x: Array,
    *,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
) -> tuple[Array, MaxPoolCache]:
    """Take the maximum of each window: ``out[n, c, i, j] = max(window of x[n, c] at (i, j))``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    kernel_size : int or (int, int)
        Height and width of the window.
    stride : int or (int, int), optional
        Pixels from one window to the next; by default `kernel_size`, so windows do not overlap.
    padding : int or (int, int)
        Rows and columns of minus infinity added on each side of the images; less than `kernel_size`.

    Returns
    -------
    out : array (N, C, OH, OW)
        With ``OH = 1 + (H + 2 * PH - KH) // SH`` and OW likewise; pixels that do not fill a window are ignored.
    cache : MaxPoolCache
        For `max_pool_backward`.

    Raises
    ------
    ArgumentError
        If the window is larger than the padded image, or the padding is not less than the window.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.reshape(np.arange(16.0), (1, 1, 4, 4))
    >>> max_pool_forward(x, kernel_size=2)[0]
    array([[[[ 5.,  7.],
             [13., 15.]]]])
    """
    check_arrays(x=x)
    kernel_size, stride, padding, _ = _geometry(x, kernel_size, stride, padding)
    out, argmax = ops.max_pool(x, kernel_size, stride, padding)
    return out, MaxPoolCache(argmax, tuple(x.shape), kernel_size, stride, padding)


def max_pool_backward(dout: Array, cache: MaxPoolCache) -> Array:
    """Pass each gradient to the maximum of its window, the first one if several are equal.

    Parameters
    ----------
    dout : array (N, C, OH, OW)
        Gradient of the loss with respect to the layer's output.
    cache : MaxPoolCache
        From `max_pool_forward`.

    Returns
    -------
    dx : array (N, C, H, W)
        The gradients of overlapping windows are added.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = max_pool_forward(np.zeros((1, 1, 2, 2)), kernel_size=2)
    >>> max_pool_backward(np.ones((1, 1, 1, 1)), cache)
    array([[[[1., 0.],
             [0., 0.]]]])
    """
    check_cache(cache, MaxPoolCache)
    check_arrays(dout=dout)
    array_namespace(dout=dout, argmax=cache.argmax)
    check_gradient_shape(dout, cache.argmax.shape)
    return ops.max_pool_backward(dout, *cache)


def avg_pool_forward(
    x: Array,
    *,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
) -> tuple[Array, AvgPoolCache]:
    """Take the mean of each window: ``out[n, c, i, j] = sum(window of x[n, c] at (i, j)) / (KH * KW)``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    kernel_size, stride, padding : int or (int, int)
        As for `max_pool_forward`, but the padding is zeros, which count in the mean.

    Returns
    -------
    out : array (N, C, OH, OW)
    cache : AvgPoolCache
        For `avg_pool_backward`.

    Raises
    ------
    ArgumentError
        As for `max_pool_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> avg_pool_forward(np.reshape(np.arange(4.0), (1, 1, 2, 2)), kernel_size=2)[0]
    array([[[[1.5]]]])
    """
    check_arrays(x=x)
    kernel_size, stride, padding, output = _geometry(x, kernel_size, stride, padding)
    views = windows(pad(x, padding), kernel_size, stride, output)
    total = next(views) + 0.0
    for view in views:
        total += view
    return total / (kernel_size[0] * kernel_size[1]), AvgPoolCache(tuple(x.shape), kernel_size, stride, padding)


def avg_pool_backward(dout: Array, cache: AvgPoolCache) -> Array:
    """Spread each gradient evenly over the pixels of its window.

    Parameters
    ----------
    dout : array (N, C, OH, OW)
        Gradient of the loss with respect to the layer's output.
    cache : AvgPoolCache
        From `avg_pool_forward`.

    Returns
    -------
    dx : array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = avg_pool_forward(np.zeros((1, 1, 2, 2)), kernel_size=2)
    >>> avg_pool_backward(np.ones((1, 1, 1, 1)), cache)
    array([[[[0.25, 0.25],
             [0.25, 0.25]]]])
    """
    check_cache(cache, AvgPoolCache)
    check_arrays(dout=dout)
    shape, kernel_size, stride, padding = cache
    check_gradient_shape(dout, (*shape[:2], *output_size(shape[2:], kernel_size, stride, padding)))
    area = kernel_size[0] * kernel_size[1]
    return add_windows(repeat(dout / area, area), *cache, like=dout)


def global_avg_pool_forward(x: Array) -> tuple[Array, GlobalAvgPoolCache]:
    """Take the mean of each channel: ``out[n, c] = mean(x[n, c])``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.

    Returns
    -------
    out : array (N, C)
    cache : GlobalAvgPoolCache
        For `global_avg_pool_backward`.

    References
    ----------
    Lin, Chen and Yan, "Network In Network", 2013.

    Examples
    --------
    >>> import numpy as np
    >>> global_avg_pool_forward(np.ones((2, 3, 4, 4)))[0].shape
    (2, 3)
    """
    xp = check_arrays(x=x)
    check_shape("x", x, ("N", "C", "H", "W"))
    return xp.mean(x, axis=(2, 3)), GlobalAvgPoolCache(tuple(x.shape))


def global_avg_pool_backward(dout: Array, cache: GlobalAvgPoolCache) -> Array:
    """Spread each gradient evenly over the pixels of its channel.

    Parameters
    ----------
    dout : array (N, C)
        Gradient of the loss with respect to the layer's output.
    cache : GlobalAvgPoolCache
        From `global_avg_pool_forward`.

    Returns
    -------
    dx : array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = global_avg_pool_forward(np.ones((1, 1, 2, 2)))
    >>> global_avg_pool_backward(np.ones((1, 1)), cache)
    array([[[[0.25, 0.25],
             [0.25, 0.25]]]])
    """
    check_cache(cache, GlobalAvgPoolCache)
    xp = check_arrays(dout=dout)
    N, C, H, W = cache.shape
    check_gradient_shape(dout, (N, C))
    gradient = xp.reshape(dout / (H * W), (N, C, 1, 1))
    return gradient + xp.zeros((1, 1, H, W), dtype=dout.dtype, device=array_api_compat.device(dout))


def _geometry(
    x: Array, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None, padding: int | Sequence[int]
) -> tuple[Pair, Pair, Pair, Pair]:
    """Check the options of a pooling layer; return kernel_size, stride, padding and output size as pairs."""
    check_shape("x", x, ("N", "C", "H", "W"))
    kernel_size = check_pair("kernel_size", kernel_size, 1)
    stride, padding = (
        check_pair("stride", kernel_size if stride is None else stride, 1),
        check_pair("padding", padding, 0),
    )
    output = window_output(x.shape, kernel_size, stride, padding)
    if padding[0] >= kernel_size[0] or padding[1] >= kernel_size[1]:
        raise ArgumentError(
            f"padding is {padding}; expected less than kernel_size {kernel_size}, since every window needs a pixel"
        )
    return kernel_size, stride, padding, output

"""Pooling layers.

Letters: N images, C channels, (H, W) image, (KH, KW) window, (OH, OW) output.
"""

from collections.abc import Sequence
from typing import NamedTuple

import array_api_compat

from xpconv import ops
from xpconv._validation import check_flag
from xpconv.backend import Array, array_namespace
from xpconv.errors import ArgumentError
from xpconv.layers._checks import (
    Padding,
    check_arrays,
    check_cache,
    check_gradient_shape,
    check_shape,
    make_window,
    window_output,
)
from xpconv.ops.windows import Pair, Sides, Window

__all__ = [
    "AvgPoolCache",
    "GlobalAvgPoolCache",
    "GlobalMaxPoolCache",
    "MaxPoolCache",
    "avg_pool_backward",
    "avg_pool_forward",
    "global_avg_pool_backward",
    "global_avg_pool_forward",
    "global_max_pool_backward",
    "global_max_pool_forward",
    "max_pool_backward",
    "max_pool_forward",
]


class MaxPoolCache(NamedTuple):
    """What the backward pass of max pooling needs: the position of each window's maximum.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = max_pool_forward(
    ...     np.asarray([[[[1.0, 2.0], [4.0, 3.0]]]]), kernel_size=2
    ... )
    >>> cache.argmax.item(), cache.window.stride
    (2, (2, 2))
    """

    argmax: Array
    shape: tuple[int, ...]
    window: Window


class AvgPoolCache(NamedTuple):
    """What the backward pass of average pooling needs: `counts` holds how many rows, and columns, each window has.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = avg_pool_forward(np.ones((1, 1, 4, 4)), kernel_size=2)
    >>> cache.shape, cache.window.kernel_size
    ((1, 1, 4, 4), (2, 2))
    """

    shape: tuple[int, ...]
    window: Window
    counts: tuple[Pair, Pair]


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


class GlobalMaxPoolCache(NamedTuple):
    """What the backward pass of global max pooling needs: `argmax` counts pixels row by row.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = global_max_pool_forward(np.asarray([[[[1.0, 2.0], [4.0, 3.0]]]]))
    >>> cache.argmax.item(), cache.shape
    (2, (1, 1, 2, 2))
    """

    argmax: Array
    shape: tuple[int, ...]


def max_pool_forward(
    x: Array,
    *,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
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
    padding : int, (int, int), ((int, int), (int, int)) or "same"
        Rows and columns of minus infinity added to the images, as for `conv_forward`. Each window must contain a pixel
        of the image.
    dilation : int or (int, int)
        Pixels of the image from one pixel of the window to the next.
    ceil_mode : bool
        Whether a last window may reach beyond the padded image, so that fewer pixels are ignored. It starts within
        the image or its padding above or at the left.

    Returns
    -------
    out : array (N, C, OH, OW)
        With ``OH = 1 + (H + top + bottom - DH * (KH - 1) - 1) // SH``, rounded up in `ceil_mode`, and OW likewise;
        pixels that do not fill a window are ignored.
    cache : MaxPoolCache
        For `max_pool_backward`.

    Raises
    ------
    ArgumentError
        If the window is larger than the padded image, or a window lies in the padding.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.reshape(np.arange(16.0), (1, 1, 4, 4))
    >>> max_pool_forward(x, kernel_size=2)[0]
    array([[[[ 5.,  7.],
             [13., 15.]]]])
    >>> max_pool_forward(x, kernel_size=3, stride=2, ceil_mode=True)[0]
    array([[[[10., 11.],
             [14., 15.]]]])
    """
    check_arrays(x=x)
    check_shape("x", x, ("N", "C", "H", "W"))
    window = make_window(kernel_size, kernel_size if stride is None else stride, padding, dilation)
    window = fit_to_images(window, x.shape, ceil_mode)
    out, argmax = ops.max_pool(x, window)
    return out, MaxPoolCache(argmax, tuple(x.shape), window)


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
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> tuple[Array, AvgPoolCache]:
    """Take the mean of each window: ``out[n, c, i, j] = sum(window of x[n, c] at (i, j)) / count``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    kernel_size, stride, padding, ceil_mode
        As for `max_pool_forward`, but the padding is zeros.
    count_include_pad : bool
        Whether `count` is that of the window's pixels in the padded image, or only of those in the image.

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
    check_shape("x", x, ("N", "C", "H", "W"))
    check_flag("count_include_pad", count_include_pad)
    window = make_window(kernel_size, kernel_size if stride is None else stride, padding)
    counted = window.padding if count_include_pad else ((0, 0), (0, 0))
    window = fit_to_images(window, x.shape, ceil_mode)
    cache = AvgPoolCache(tuple(x.shape), window, _counts(x.shape[2:], window, counted))
    return ops.avg_pool(x, window, cache.counts), cache


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
    shape, window, _ = cache
    check_gradient_shape(dout, (*shape[:2], *window.output_size(shape[2:])))
    return ops.avg_pool_backward(dout, *cache)


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


def global_max_pool_forward(x: Array) -> tuple[Array, GlobalMaxPoolCache]:
    """Take the maximum of each channel: ``out[n, c] = max(x[n, c])``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.

    Returns
    -------
    out : array (N, C)
    cache : GlobalMaxPoolCache
        For `global_max_pool_backward`.

    References
    ----------
    Oquab et al., "Is Object Localization for Free?", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> global_max_pool_forward(np.reshape(np.arange(8.0), (1, 2, 2, 2)))[0]
    array([[3., 7.]])
    """
    xp = check_arrays(x=x)
    check_shape("x", x, ("N", "C", "H", "W"))
    channels = xp.reshape(x, (*x.shape[:2], -1))
    return xp.max(channels, axis=2), GlobalMaxPoolCache(xp.argmax(channels, axis=2), tuple(x.shape))


def global_max_pool_backward(dout: Array, cache: GlobalMaxPoolCache) -> Array:
    """Pass each gradient to the maximum of its channel, the first one if several are equal.

    Parameters
    ----------
    dout : array (N, C)
        Gradient of the loss with respect to the layer's output.
    cache : GlobalMaxPoolCache
        From `global_max_pool_forward`.

    Returns
    -------
    dx : array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = global_max_pool_forward(np.zeros((1, 1, 2, 2)))
    >>> global_max_pool_backward(np.ones((1, 1)), cache)
    array([[[[1., 0.],
             [0., 0.]]]])
    """
    check_cache(cache, GlobalMaxPoolCache)
    xp = check_arrays(dout=dout)
    array_namespace(dout=dout, argmax=cache.argmax)
    N, C, H, W = cache.shape
    check_gradient_shape(dout, (N, C))
    device = array_api_compat.device(dout)
    pixels = xp.arange(H * W, dtype=cache.argmax.dtype, device=device)
    zero = xp.zeros((), dtype=dout.dtype, device=device)
    return xp.reshape(xp.where(pixels == cache.argmax[:, :, None], dout[:, :, None], zero), cache.shape)


def fit_to_images(window: Window, shape: Sequence[int], ceil_mode: bool) -> Window:
    """Check that a pool's windows fit images (..., H, W); return the window with the padding that `ceil_mode` adds."""
    check_flag("ceil_mode", ceil_mode)
    window_output(shape, window)
    image = shape[-2], shape[-1]
    if ceil_mode:
        rows, columns = map(_ceil_sides, image, window.extent, window.stride, window.padding)
        window = window._replace(padding=(rows, columns))
    for size, kernel, stride, (before, _), dilation, count in zip(
        image, *window, window.output_size(image), strict=True
    ):
        for first in range(-before, count * stride - before, stride):  # the image's pixel that a window starts at
            if max(-(first // dilation), 0) >= min(kernel, -((first - size) // dilation)):
                raise ArgumentError(
                    f"padding is {window.padding} with windows of {window.extent} pixels; expected less padding, since "
                    "every window needs a pixel of the image"
                )
    return window


def _ceil_sides(size: int, extent: int, stride: int, sides: Pair) -> Pair:
    """Return the padding before and after an axis that lets a last window reach beyond the image and its padding."""
    before, after = sides
    steps = -(-(size + before + after - extent) // stride)
    if steps * stride >= size + before:  # It would start behind the image.
        steps -= 1
    return before, max(steps * stride + extent - size - before, after)


def _counts(image: Pair, window: Window, counted: Sides) -> tuple[Pair, Pair]:
    """Return for each row of windows how many of its rows lie in the image or the padding that counts; then columns."""
    rows, columns = (
        tuple(min(k * stride + kernel, before + size + last) - max(k * stride, before - first) for k in range(count))
        for size, kernel, stride, (before, _), (first, last), count in zip(
            image, *window[:3], counted, window.output_size(image), strict=True
        )
    )
    return rows, columns

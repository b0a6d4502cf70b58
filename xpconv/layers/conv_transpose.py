"""The transposed convolution: a layer that enlarges images by what a convolution's backward pass does to gradients.

Letters: N images, C channels, F filters (channels of the output), (H, W) image, (KH, KW) window, (OH, OW) output.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from xpconv import ops
from xpconv._validation import MOST_PIXELS, check_count, check_pair
from xpconv.backend import Array
from xpconv.errors import ArgumentError
from xpconv.layers._checks import (
    Padding,
    check_arrays,
    check_cache,
    check_channels_first,
    check_gradient_shape,
    check_shape,
    make_window,
)
from xpconv.ops.tiling import sum_rows
from xpconv.ops.windows import Pair, Window

__all__ = ["ConvTransposeCache", "conv_transpose_backward", "conv_transpose_forward"]


class ConvTransposeCache(NamedTuple):
    """What the backward pass of a transposed convolution needs; `size` is that of the output (OH, OW).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((2, 3, 4, 4))
    >>> out, cache = conv_transpose_forward(x, np.ones((3, 5, 2, 2)), None, stride=2)
    >>> cache.x is x, cache.size
    (True, (8, 8))
    """

    x: Array
    w: Array
    has_bias: bool
    window: Window
    groups: int
    size: Pair


def conv_transpose_forward(
    x: Array,
    w: Array,
    b: Array | None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> tuple[Array, ConvTransposeCache]:
    """Add each pixel times the filters to the window of the output that belongs to the pixel.

    ``padded[n, f, p, q] = sum of x[n, c, i, j] * w[c, f, k, l]`` over all c and all i, j, k, l with
    ``p = i * SH + k * DH`` and ``q = j * SW + l * DW``; `out` is ``padded`` without its border, plus ``b[f]``. Without
    the bias it is the gradient of a convolution's images, if `x` is the gradient of that convolution's output.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    w : array (C, F / groups, KH, KW)
        Filters.
    b : array (F,) or None
        Bias.
    stride : int or (int, int)
        Pixels of the output from one window to the next: (SH, SW).
    padding : int, (int, int), ((int, int), (int, int)) or "same"
        Rows and columns removed from the border of the output, as `conv_forward` would add them to its images.
    output_padding : int or (int, int)
        Rows that the output has more at the bottom, and columns at the right; less than the stride. Of the sizes that a
        convolution maps to (H, W), it chooses one.
    dilation : int or (int, int)
        Pixels of the output from one pixel of the window to the next: (DH, DW).
    groups : int
        Cut the channels of `x` and of the output into this many equal groups; each group depends on its own channels
        alone.

    Returns
    -------
    out : array (N, F, OH, OW)
        With ``OH = (H - 1) * SH - top - bottom + DH * (KH - 1) + 1 + output_padding`` and OW likewise.
    cache : ConvTransposeCache
        For `conv_transpose_backward`.

    Raises
    ------
    ArgumentError
        If the shapes do not match, groups does not divide C, output_padding is not less than the stride, or the padding
        leaves no output.

    References
    ----------
    Zeiler et al., "Deconvolutional Networks", 2010.
    Dumoulin and Visin, "A Guide to Convolution Arithmetic for Deep Learning", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.asarray([[[[1.0, 2.0]]]]), np.ones((1, 1, 1, 3))
    >>> conv_transpose_forward(x, w, None, stride=2)[0]
    array([[[[1., 1., 3., 2., 2.]]]])
    """
    check_arrays(x=x, w=w, b=b)
    check_shape("x", x, ("N", "C", "H", "W"))
    groups = check_count("groups", groups)
    check_channels_first(x, w.shape[:1] if len(w.shape) == 4 else ())
    check_shape("w", w, (x.shape[1], "F / groups", "KH", "KW"))
    if x.shape[1] % groups:
        raise ArgumentError(f"groups is {groups}; expected a divisor of the {x.shape[1]} channels of x")
    filters = w.shape[1] * groups
    if b is not None:
        check_shape("b", b, (filters,))
    window = make_window(tuple(w.shape[2:]), stride, padding, dilation)
    size = enlarged_size(tuple(x.shape[2:]), window, output_padding)
    out = ops.convolve_transposed(x, w, b, size, window, groups, "im2col")
    return out, ConvTransposeCache(x, w, b is not None, window, groups, size)


def conv_transpose_backward(
    dout: Array, cache: ConvTransposeCache, *, need_dx: bool = True, need_dw: bool = True, need_db: bool = True
) -> tuple[Any, Any, Any]:
    """Compute the gradients of a transposed convolution: `dx` is the convolution of `dout` with the filters.

    Parameters
    ----------
    dout : array (N, F, OH, OW)
        Gradient of the loss with respect to the layer's output.
    cache : ConvTransposeCache
        From `conv_transpose_forward`.
    need_dx : bool
        Whether to compute `dx`; a network's first layer does not need it.
    need_dw, need_db : bool
        Whether to compute `dw` and `db`; frozen parameters do not need them.

    Returns
    -------
    dx : array (N, C, H, W) or None
        None if it is not needed, as the others.
    dw : array (C, F / groups, KH, KW) or None
    db : array (F,) or None
        None also if the layer has no bias.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((2, 3, 4, 4)), np.ones((3, 5, 2, 2)), np.zeros(5)
    >>> out, cache = conv_transpose_forward(x, w, b, stride=2)
    >>> [
    ...     gradient.shape
    ...     for gradient in conv_transpose_backward(np.ones_like(out), cache)
    ... ]
    [(2, 3, 4, 4), (3, 5, 2, 2), (5,)]
    """
    check_cache(cache, ConvTransposeCache)
    x, w, has_bias, window, groups, size = cache
    xp = check_arrays(dout=dout, x=x)
    check_gradient_shape(dout, (x.shape[0], w.shape[1] * groups, *size))
    dx = ops.convolve(dout, w, None, window, groups, "auto") if need_dx else None
    # In the convolution that this layer transposes, dout takes the place of the images, and x that of the gradient.
    dw = ops.convolve_backward(x, dout, w, window, groups, "auto", need_dx=False, need_db=False)[1] if need_dw else None
    return dx, dw, sum_rows(xp.sum(dout, axis=(2, 3), dtype=w.dtype)) if has_bias and need_db else None


def enlarged_size(image: Pair, window: Window, output_padding: int | Sequence[int]) -> Pair:
    """Check the options of a transposed convolution of images (H, W); return its output's height and width."""
    extra = check_pair("output_padding", output_padding, 0)
    if any(more >= stride for more, stride in zip(extra, window.stride, strict=True)):
        raise ArgumentError(f"output_padding is {output_padding!r}; expected less than the stride, {window.stride}")
    height, width = (
        (size - 1) * stride + extent - sum(sides) + more
        for size, stride, extent, sides, more in zip(
            image, window.stride, window.extent, window.padding, extra, strict=True
        )
    )
    if min(height, width) < 1:
        raise ArgumentError(
            f"padding is {window.padding}; expected less, since it leaves no output: {height} rows, {width} columns"
        )
    if prod(window.padded_size((height, width))) > MOST_PIXELS:
        raise ArgumentError(
            f"stride is {window.stride} with dilation {window.dilation}; expected less, since an image of the output, "
            f"with its padding, has at most {MOST_PIXELS} pixels"
        )
    return height, width

"""The convolution layer, computed as one matrix product per tile of images (im2col).

Letters: N images, C channels, (H, W) image, F filters, (KH, KW) window, (OH, OW) output;
a tile of m images unfolds to C * KH * KW rows and P = m * OH * OW columns.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from xpconv import ops
from xpconv._validation import check_choice, check_count
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
    window_output,
)
from xpconv.ops.tiling import sum_rows
from xpconv.ops.windows import Window

__all__ = ["ConvCache", "conv_backward", "conv_forward"]


class ConvCache(NamedTuple):
    """What the backward pass of a convolution needs. It holds the input, which is unfolded again.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((2, 3, 8, 8))
    >>> out, cache = conv_forward(x, np.ones((4, 3, 3, 3)), None, padding=1)
    >>> cache.x is x, cache.window.padding
    (True, ((1, 1), (1, 1)))
    """

    x: Array
    w: Array
    has_bias: bool
    window: Window
    groups: int
    algorithm: str


def conv_forward(
    x: Array,
    w: Array,
    b: Array | None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    algorithm: str = "auto",
) -> tuple[Array, ConvCache]:
    """Convolve images with filters (strictly, a cross-correlation: filters are not flipped).

    ``out[n, f, i, j] = b[f] + sum over c, k, l of padded[n, c, i * SH + k * DH, j * SW + l * DW] * w[f, c, k, l]``,
    where ``padded`` is x with zeros around it.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    w : array (F, C / groups, KH, KW)
        Filters.
    b : array (F,) or None
        Bias.
    stride : int or (int, int)
        Pixels from one window to the next, vertically and horizontally.
    padding : int, (int, int), ((int, int), (int, int)) or "same"
        Rows of zeros added above and below the images, and columns added on the left and right: one number for all
        sides, (height, width) or ((top, bottom), (left, right)). With "same" and stride 1, the output has the image's
        size; of an odd number of zeros, the last goes below or to the right.
    dilation : int or (int, int)
        Pixels of the image from one pixel of the window to the next, vertically and horizontally: (DH, DW).
    groups : int
        Cut the channels of `x` and the filters into this many equal groups; a filter sees the channels of its group
        alone. With ``groups=C`` the convolution is depthwise.
    algorithm : {"auto", "im2col"}
        How to compute it. "auto" chooses by shape and dtype, and uses Winograd's algorithm if that is faster.
        Winograd's results differ by about 1e-5 of the largest, and an input that is NaN, infinite or at least 1e36
        in magnitude makes NaN of each 4x4 block of outputs that depends on it.

    Returns
    -------
    out : array (N, F, OH, OW)
        With ``OH = 1 + (H + top + bottom - DH * (KH - 1) - 1) // SH`` and OW likewise.
    cache : ConvCache
        For `conv_backward`.

    Raises
    ------
    ArgumentError
        If the shapes do not match, groups does not divide C and F, or the window is larger than the padded image.

    References
    ----------
    Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006.
    Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4)
    >>> out, cache = conv_forward(x, w, b, stride=2, padding=1)
    >>> out.shape, float(out[0, 0, 1, 1])
    ((2, 4, 4, 4), 27.0)
    """
    check_arrays(x=x, w=w, b=b)
    check_shape("x", x, ("N", "C", "H", "W"))
    groups = check_count("groups", groups)
    check_channels_first(x, (w.shape[1] * groups,) if len(w.shape) == 4 else ())
    check_shape("w", w, ("F", "C / groups" if x.shape[1] % groups else x.shape[1] // groups, "KH", "KW"))
    if x.shape[1] % groups or w.shape[0] % groups:
        raise ArgumentError(
            f"groups is {groups}; expected a divisor of the {x.shape[1]} channels of x and the {w.shape[0]} filters"
        )
    if b is not None:
        check_shape("b", b, (w.shape[0],))
    window = make_window(tuple(w.shape[2:]), stride, padding, dilation)
    window_output(x.shape, window)
    check_choice("algorithm", algorithm, ("auto", "im2col"))

    out = ops.convolve(x, w, b, window, groups, algorithm)
    return out, ConvCache(x, w, b is not None, window, groups, algorithm)


def conv_backward(
    dout: Array, cache: ConvCache, *, need_dx: bool = True, need_dw: bool = True, need_db: bool = True
) -> tuple[Any, Any, Any]:
    """Compute the gradients of a convolution.

    On unfolded images (im2col) a convolution is an affine layer: ``dw = dout @ cols.T`` and ``dx = fold(w.T @ dout)``.

    Parameters
    ----------
    dout : array (N, F, OH, OW)
        Gradient of the loss with respect to the layer's output.
    cache : ConvCache
        From `conv_forward`.
    need_dx : bool
        Whether to compute `dx`; a network's first layer does not need it.
    need_dw, need_db : bool
        Whether to compute `dw` and `db`; frozen parameters do not need them.

    Returns
    -------
    dx : array (N, C, H, W) or None
        None if it is not needed, as the others.
    dw : array (F, C / groups, KH, KW) or None
    db : array (F,) or None
        None also if the layer has no bias.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = conv_forward(
    ...     np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4), padding=1
    ... )
    >>> [gradient.shape for gradient in conv_backward(np.ones_like(out), cache)]
    [(2, 3, 8, 8), (4, 3, 3, 3), (4,)]
    """
    check_cache(cache, ConvCache)
    x, w, has_bias, window, groups, algorithm = cache
    xp = check_arrays(dout=dout, x=x)
    check_gradient_shape(dout, (x.shape[0], w.shape[0], *window.output_size(x.shape[2:])))
    need_db = need_db and has_bias
    if need_dw:
        return ops.convolve_backward(dout, x, w, window, groups, algorithm, need_dx, need_db)
    size = tuple(x.shape[2:])
    dx = ops.convolve_transposed(dout, w, None, size, window, groups, algorithm) if need_dx else None
    return dx, None, sum_rows(xp.sum(dout, axis=(2, 3), dtype=w.dtype)) if need_db else None

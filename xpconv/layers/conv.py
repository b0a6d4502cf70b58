"""The convolution layer, computed as one matrix product per tile of images (im2col).

Letters: N images, C channels, (H, W) image, F filters, (KH, KW) window, (OH, OW) output;
a tile of m images unfolds to K = C * KH * KW rows and P = m * OH * OW columns.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from xpconv import ops
from xpconv._validation import check_choice, check_pair
from xpconv.backend import Array
from xpconv.layers._checks import (
    check_arrays,
    check_cache,
    check_channels_first,
    check_gradient_shape,
    check_shape,
    resolve_padding,
    window_output,
)
from xpconv.ops.windows import Pair, output_size

__all__ = ["ConvCache", "conv_backward", "conv_forward"]


class ConvCache(NamedTuple):
    """What the backward pass of a convolution needs. It holds the input, which is unfolded again.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((2, 3, 8, 8))
    >>> out, cache = conv_forward(x, np.ones((4, 3, 3, 3)), None, padding=1)
    >>> cache.x is x, cache.padding
    (True, (1, 1))
    """

    x: Array
    w: Array
    has_bias: bool
    stride: Pair
    padding: Pair
    algorithm: str


def conv_forward(
    x: Array,
    w: Array,
    b: Array | None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    algorithm: str = "auto",
) -> tuple[Array, ConvCache]:
    """Convolve images with filters (strictly, a cross-correlation: filters are not flipped).

    ``out[n, f, i, j] = b[f] + sum over c, k, l of x[n, c, i * SH + k - PH, j * SW + l - PW] * w[f, c, k, l]``

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    w : array (F, C, KH, KW)
        Filters.
    b : array (F,) or None
        Bias.
    stride : int or (int, int)
        Pixels from one window to the next, vertically and horizontally.
    padding : int, (int, int) or "same"
        Rows of zeros added above and below the images, and columns added on the left and right. "same" is
        ``((KH - 1) / 2, (KW - 1) / 2)`` for odd KH and KW; at stride 1 the output then has the image's size.
    algorithm : {"auto", "im2col"}
        How to compute it. "auto" chooses by shape and dtype, and uses Winograd's algorithm if that is faster.
        Winograd's results differ by about 1e-5 of the largest, and an input that is NaN, infinite or at least 1e36
        in magnitude makes NaN of each 4x4 block of outputs that depends on it.

    Returns
    -------
    out : array (N, F, OH, OW)
        With ``OH = 1 + (H + 2 * PH - KH) // SH`` and OW likewise.
    cache : ConvCache
        For `conv_backward`.

    Raises
    ------
    ArgumentError
        If the shapes do not match, the window is larger than the padded image, or padding is "same" and KH or KW is
        even.

    References
    ----------
    Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006.

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
    check_channels_first(x, w.shape[1:2])
    check_shape("w", w, ("F", x.shape[1], "KH", "KW"))
    if b is not None:
        check_shape("b", b, (w.shape[0],))
    stride, padding = check_pair("stride", stride, 1), resolve_padding(padding, w.shape[2:])
    window_output(x.shape, w.shape[2:], stride, padding)
    check_choice("algorithm", algorithm, ("auto", "im2col"))

    out = ops.convolve(x, w, b, stride, padding, algorithm)
    return out, ConvCache(x, w, b is not None, stride, padding, algorithm)


def conv_backward(dout: Array, cache: ConvCache, *, need_dx: bool = True) -> tuple[Any, Array, Any]:
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

    Returns
    -------
    dx : array (N, C, H, W) or None
        None if `need_dx` is False.
    dw : array (F, C, KH, KW)
    db : array (F,) or None
        None if the layer has no bias.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = conv_forward(np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4), padding=1)
    >>> [gradient.shape for gradient in conv_backward(np.ones_like(out), cache)]
    [(2, 3, 8, 8), (4, 3, 3, 3), (4,)]
    """
    check_cache(cache, ConvCache)
    x, w, has_bias, stride, padding, algorithm = cache
    check_arrays(dout=dout, x=x)
    OH, OW = output_size(x.shape[2:], w.shape[2:], stride, padding)
    check_gradient_shape(dout, (x.shape[0], w.shape[0], OH, OW))
    dx, dw, db = ops.convolve_backward(dout, x, w, stride, padding, algorithm, need_dx)
    return dx, dw, db if has_bias else None

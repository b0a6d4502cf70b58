"""The assignment's names for the layers of `xpconv.layers`, which need no compiler and take windows of any size."""

from xpconv import layers as F
from xpconv.backend import Array
from xpconv.cs231n._adapt import cast_floats, cast_gradient, read_options
from xpconv.cs231n._norms import Options

__all__ = [
    "conv_backward_fast",
    "conv_backward_im2col",
    "conv_backward_strides",
    "conv_forward_fast",
    "conv_forward_im2col",
    "conv_forward_strides",
    "max_pool_backward_fast",
    "max_pool_backward_im2col",
    "max_pool_backward_reshape",
    "max_pool_forward_fast",
    "max_pool_forward_im2col",
    "max_pool_forward_reshape",
]


def conv_forward_fast(x: Array, w: Array, b: Array, conv_param: Options) -> tuple[Array, F.ConvCache]:
    """Convolve x (N, C, H, W) with w (F, C, HH, WW), b (F,) by matrix products; otherwise as `conv_forward_naive`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), np.zeros(2)
    >>> conv_forward_fast(x, w, b, {"stride": 1, "pad": 1})[0].shape
    (1, 2, 4, 4)
    """
    stride, pad = read_options("conv_param", conv_param, "stride", "pad")
    x, w, b = cast_floats(x=x, w=w, b=b)
    return F.conv_forward(x, w, b, stride=stride, padding=pad, algorithm="im2col")


def conv_backward_fast(dout: Array, cache: F.ConvCache) -> tuple[Array, Array, Array | None]:
    """Return dx, dw, db of `conv_forward_fast`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), np.zeros(2)
    >>> out, cache = conv_forward_fast(x, w, b, {"stride": 1, "pad": 1})
    >>> [gradient.shape for gradient in conv_backward_fast(np.ones_like(out), cache)]
    [(1, 3, 4, 4), (2, 3, 3, 3), (2,)]
    """
    dx, dw, db = F.conv_backward(cast_gradient(dout, cache.x), cache)
    return dx, dw, db


def max_pool_forward_fast(x: Array, pool_param: Options) -> tuple[Array, F.MaxPoolCache]:
    """Take the maximum of each window of x (N, C, H, W); otherwise as `max_pool_forward_naive`.

    Examples
    --------
    >>> import numpy as np
    >>> pool_param = {"pool_height": 3, "pool_width": 3, "stride": 2}
    >>> max_pool_forward_fast(np.ones((1, 2, 7, 7)), pool_param)[0].shape
    (1, 2, 3, 3)
    """
    height, width, stride = read_options("pool_param", pool_param, "pool_height", "pool_width", "stride")
    (x,) = cast_floats(x=x)
    return F.max_pool_forward(x, kernel_size=(height, width), stride=stride)


def max_pool_backward_fast(dout: Array, cache: F.MaxPoolCache) -> Array:
    """Return dx of `max_pool_forward_fast`; the first of tied maxima gets the gradient.

    Examples
    --------
    >>> import numpy as np
    >>> pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
    >>> out, cache = max_pool_forward_fast(
    ...     np.array([[[[1.0, 2.0], [4.0, 3.0]]]]), pool_param
    ... )
    >>> max_pool_backward_fast(np.ones_like(out), cache)[0, 0]
    array([[0., 0.],
           [1., 0.]])
    """
    return F.max_pool_backward(cast_gradient(dout), cache)


conv_forward_im2col = conv_forward_strides = conv_forward_fast
conv_backward_im2col = conv_backward_strides = conv_backward_fast
max_pool_forward_im2col = max_pool_forward_reshape = max_pool_forward_fast
max_pool_backward_im2col = max_pool_backward_reshape = max_pool_backward_fast

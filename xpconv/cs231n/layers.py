"""The assignment's layers on NumPy arrays, with its names, its dicts of options and its defaults.

`xpconv.layers` computes all of them except ``*_naive``: those are the loops of `xpconv.layers.reference`, since
notebooks compare them with the fast layers. Results have the dtype of the first argument, or float64 if it has
integers. The other arrays are cast to that dtype, so gammas, betas and biases may be integers.

The options: ``conv_param`` {stride, pad}, ``pool_param`` {pool_height, pool_width, stride}, ``bn_param`` {mode,
eps=1e-5, momentum=0.9, running_mean, running_var}, ``ln_param`` and ``gn_param`` {eps=1e-5}, ``dropout_param``
{mode, p, seed}.

The caches are those of the assignment's starter code, so that a notebook can replace forward and backward one at a
time: ``(x, w, b)``, ``x`` of relu, ``(dropout_param, mask)``, ``(x, w, b, conv_param)`` and ``(x, pool_param)``.
"""

from typing import Any

import numpy as np

from xpconv import layers as F
from xpconv._validation import check_pair
from xpconv.backend import Array
from xpconv.cs231n._adapt import cast_floats, cast_gradient, draw_mask, keep_probability, p_means_drop, read_options
from xpconv.cs231n._norms import (
    Options,
    batchnorm_backward,
    batchnorm_backward_alt,
    batchnorm_forward,
    layernorm_backward,
    layernorm_forward,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
    spatial_groupnorm_backward,
    spatial_groupnorm_forward,
)
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.layers import reference
from xpconv.layers._checks import check_channels_first, check_shape, make_window, window_output

__all__ = [
    "affine_backward",
    "affine_forward",
    "batchnorm_backward",
    "batchnorm_backward_alt",
    "batchnorm_forward",
    "conv_backward_naive",
    "conv_forward_naive",
    "dropout_backward",
    "dropout_forward",
    "layernorm_backward",
    "layernorm_forward",
    "max_pool_backward_naive",
    "max_pool_forward_naive",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "spatial_batchnorm_backward",
    "spatial_batchnorm_forward",
    "spatial_groupnorm_backward",
    "spatial_groupnorm_forward",
    "svm_loss",
]


Cache = tuple[Any, ...]


def affine_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """Compute ``x @ w + b`` for x (N, ...), w (D, M), b (M,); see `xpconv.layers.affine_forward`.

    Examples
    --------
    >>> affine_forward(np.ones((2, 3, 4)), np.ones((12, 5)), np.zeros(5))[0].shape
    (2, 5)
    """
    x, w, b = cast_floats(x=x, w=w, b=b)
    return F.affine_forward(x, w, b)[0], (x, w, b)


def affine_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Return dx in the shape of x, dw and db, for dout (N, M).

    Examples
    --------
    >>> out, cache = affine_forward(np.ones((2, 3, 4)), np.ones((12, 5)), np.zeros(5))
    >>> [gradient.shape for gradient in affine_backward(np.ones((2, 5)), cache)]
    [(2, 3, 4), (12, 5), (5,)]
    """
    x, w, b = _read_cache("(x, w, b)", cache)
    x, w, b = cast_floats(x=x, w=w, b=b)
    dx, dw, db = F.affine_backward(cast_gradient(dout, x), F.AffineCache(x, w, b is not None))
    return dx, dw, db


def relu_forward(x: Array) -> tuple[Array, Array]:
    """Compute ``max(x, 0)``.

    Examples
    --------
    >>> relu_forward(np.array([-1, 0, 2]))[0]
    array([0., 0., 2.])
    """
    (x,) = cast_floats(x=x)
    return F.relu_forward(x)[0], x


def relu_backward(dout: Array, cache: Array) -> Array:
    """Return dx: dout where x was above 0, and 0 elsewhere.

    Examples
    --------
    >>> out, cache = relu_forward(np.array([-1.0, 0.0, 2.0]))
    >>> relu_backward(np.ones(3), cache)
    array([0., 0., 1.])
    """
    (x,) = cast_floats(x=cache)
    return F.relu_backward(cast_gradient(dout), F.ReluCache(x > 0))


def dropout_forward(x: Array, dropout_param: Options) -> tuple[Array, tuple[Options, Array | None]]:
    """Keep each value with probability p: ``x * mask / p`` in training, x in testing.

    Parameters
    ----------
    x : array of any shape
    dropout_param : dict
        ``mode`` 'train' or 'test', ``p`` the probability of keeping a value, and optionally ``seed``, which
        resets NumPy's global state. The mask is drawn from that state: ``np.random.rand(*x.shape) < p``. In editions
        until 2017, which `xpconv.cs231n.edition` selects, p is the probability of dropping a value.

    Returns
    -------
    out : array in the shape of `x`
    cache : tuple
        dropout_param and the mask, which is 0 or 1 / p, or None in testing.

    Raises
    ------
    ArgumentError
        If the mode is neither 'train' nor 'test', or p is no probability, or one that drops every value.

    Examples
    --------
    >>> out, cache = dropout_forward(np.ones(4), {"mode": "train", "p": 0.5, "seed": 1})
    >>> out
    array([2., 0., 2., 2.])
    """
    mode, p = read_options("dropout_param", dropout_param, "mode", "p")
    if mode not in ("train", "test"):
        raise ArgumentError(f'Invalid forward dropout mode "{mode}"; expected train or test')
    (x,) = cast_floats(x=x)
    if mode == "test":
        return np.array(x), (dropout_param, None)
    keep_prob = keep_probability("p", p, means_drop=p_means_drop())
    mask = draw_mask(x.shape, keep_prob, dropout_param.get("seed"))
    out = F.dropout_backward(x, F.DropoutCache(mask, keep_prob, x.shape))
    return out, (dropout_param, mask.astype(x.dtype) / keep_prob)


def dropout_backward(dout: Array, cache: tuple[Options, Array | None]) -> Array:
    """Return dx: dout multiplied by the mask and scale of the forward pass.

    Examples
    --------
    >>> out, cache = dropout_forward(np.ones(4), {"mode": "train", "p": 0.5, "seed": 1})
    >>> dropout_backward(np.ones(4), cache)
    array([2., 0., 2., 2.])
    """
    dropout_param, mask = _read_cache("(dropout_param, mask)", cache)
    dout = cast_gradient(dout)
    if mask is None:
        return F.dropout_backward(dout, F.DropoutCache(None, 1.0, dout.shape))
    keep_prob = keep_probability("p", dropout_param["p"], means_drop=p_means_drop())
    return F.dropout_backward(dout, F.DropoutCache(np.asarray(mask) != 0, keep_prob, mask.shape))


def conv_forward_naive(x: Array, w: Array, b: Array, conv_param: Options) -> tuple[Array, Cache]:
    """Convolve zero-padded x (N, C, H, W) with w (F, C, HH, WW), b (F,) by loops; out (N, F, H', W').

    Parameters
    ----------
    x, w, b : array
    conv_param : dict
        ``stride`` and ``pad`` in pixels, each an int (or a pair, down and across).

    Examples
    --------
    >>> x, w, b = np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), np.zeros(2)
    >>> conv_forward_naive(x, w, b, {"stride": 1, "pad": 1})[0].shape
    (1, 2, 4, 4)
    """
    stride, pad = read_options("conv_param", conv_param, "stride", "pad")
    images, filters, bias = cast_floats(x=x, w=w, b=b)
    check_shape("x", images, ("N", "C", "H", "W"))
    check_channels_first(images, filters.shape[1:2])
    check_shape("w", filters, ("F", images.shape[1], "HH", "WW"))
    window_output(images.shape, make_window(filters.shape[2:], stride, pad))
    out, _ = reference.conv_forward(images, filters, bias, stride=stride, padding=pad)
    return out, (images, filters, bias, conv_param)


def conv_backward_naive(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Return dx, dw, db of `conv_forward_naive`.

    Examples
    --------
    >>> x, w, b = np.ones((1, 3, 4, 4)), np.ones((2, 3, 3, 3)), np.zeros(2)
    >>> out, cache = conv_forward_naive(x, w, b, {"stride": 1, "pad": 1})
    >>> [gradient.shape for gradient in conv_backward_naive(np.ones_like(out), cache)]
    [(1, 3, 4, 4), (2, 3, 3, 3), (2,)]
    """
    x, w, b, conv_param = _read_cache("(x, w, b, conv_param)", cache)
    stride, pad = read_options("conv_param", conv_param, "stride", "pad")
    x, w, b = cast_floats(x=x, w=w, b=b)
    layer_cache = x, w, b, check_pair("stride", stride, 1), check_pair("pad", pad, 0), 1, 1
    return reference.conv_backward(cast_gradient(dout, x), layer_cache)


def max_pool_forward_naive(x: Array, pool_param: Options) -> tuple[Array, Cache]:
    """Take the maximum of each window by loops: x (N, C, H, W), out (N, C, H', W').

    Parameters
    ----------
    x : array (N, C, H, W)
    pool_param : dict
        ``pool_height``, ``pool_width`` and ``stride`` in pixels.

    Examples
    --------
    >>> pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
    >>> max_pool_forward_naive(np.arange(16).reshape(1, 1, 4, 4), pool_param)[0]
    array([[[[ 5.,  7.],
             [13., 15.]]]])
    """
    height, width, stride = read_options("pool_param", pool_param, "pool_height", "pool_width", "stride")
    (images,) = cast_floats(x=x)
    check_shape("x", images, ("N", "C", "H", "W"))
    window_output(images.shape, make_window((height, width), stride))
    out, _ = reference.max_pool_forward(images, kernel_size=(height, width), stride=stride)
    return out, (images, pool_param)


def max_pool_backward_naive(dout: Array, cache: Cache) -> Array:
    """Return dx of `max_pool_forward_naive`; the first of tied maxima gets the gradient.

    Examples
    --------
    >>> pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
    >>> out, cache = max_pool_forward_naive(
    ...     np.array([[[[1.0, 2.0], [4.0, 3.0]]]]), pool_param
    ... )
    >>> max_pool_backward_naive(np.ones_like(out), cache)[0, 0]
    array([[0., 0.],
           [1., 0.]])
    """
    x, pool_param = _read_cache("(x, pool_param)", cache)
    height, width, stride = read_options("pool_param", pool_param, "pool_height", "pool_width", "stride")
    (x,) = cast_floats(x=x)
    layer_cache = x, (height, width), check_pair("stride", stride, 1), 0, 1, False
    return reference.max_pool_backward(cast_gradient(dout, x), layer_cache)


def svm_loss(x: Array, y: Array) -> tuple[float, Array]:
    """Return the multiclass hinge loss of scores x (N, C) for labels y (N,), and dx; see `xpconv.layers.svm_loss`.

    Examples
    --------
    >>> svm_loss(np.zeros((2, 10)), np.array([3, 7]))[0]
    9.0
    """
    (x,) = cast_floats(x=x)
    loss, dx = F.svm_loss(x, np.asarray(y))
    return float(loss), dx


def softmax_loss(x: Array, y: Array) -> tuple[float, Array]:
    """Return the cross-entropy of scores x (N, C) for labels y (N,), and dx; see `xpconv.layers.softmax_loss`.

    Examples
    --------
    >>> round(softmax_loss(np.zeros((2, 10)), np.array([3, 7]))[0], 6)
    2.302585
    """
    (x,) = cast_floats(x=x)
    loss, dx = F.softmax_loss(x, np.asarray(y))
    return float(loss), dx


def _read_cache(form: str, cache: Cache) -> Cache:
    if not isinstance(cache, tuple) or len(cache) != form.count(",") + 1:
        raise ArgumentTypeError(f"cache is {type(cache).__name__}; expected the tuple {form} of the forward function")
    return cache

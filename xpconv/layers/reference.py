"""Loop versions of the layers: slow and obvious, the reference that the fast layers are tested against.

Each function has the name and gradients of a fast layer, and nearly the same arguments (dropout takes its mask). It
takes NumPy arrays only, computes in their dtype and calls no fast layer. A cache is a plain tuple.

Letters: N images, C channels, (H, W) image; F filters, (KH, KW) window, (sh, sw) stride, (dh, dw) dilation; (OH, OW)
output, where ``OH = 1 + (H + top + bottom - (KH - 1) * dh - 1) // sh``; D inputs and M outputs of an affine layer.

Source: the loop exercises of the Stanford CS231n assignments.
"""

from collections.abc import Sequence
from math import erf, exp, pi, sqrt, tanh
from typing import Any, TypeAlias

import numpy as np

from xpconv.errors import ArgumentError, ArgumentTypeError

Array: TypeAlias = np.ndarray
Cache: TypeAlias = tuple[Any, ...]
Result: TypeAlias = tuple[Array, Cache]
Pair: TypeAlias = int | Sequence[int]
Padding: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | str


def affine_forward(x: Array, w: Array, b: Array | None) -> Result:
    """Compute ``out[n, m] = sum_d x[n, d] * w[d, m] + b[m]`` for x (N, ...) as (N, D), w (D, M), b (M,) or None.

    Examples
    --------
    >>> affine_forward(np.ones((1, 2)), np.array([[3.0], [4.0]]), np.array([0.5]))[0]
    array([[7.5]])
    """
    rows, M = x.reshape(len(x), -1), w.shape[1]
    (N, D), out = rows.shape, _zeros((len(x), M), x)
    bias = np.zeros(M, w.dtype) if b is None else b
    _check_shapes((D, M), w=w)
    _check_shapes((M,), b=bias)
    for n in range(N):
        for m in range(M):
            out[n, m] = np.sum(rows[n] * w[:, m]) + bias[m]
    return out, (x, w, b)


def affine_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Return dx in the shape of x, dw, and db (None without a bias), given dout (N, M).

    Examples
    --------
    >>> _, cache = affine_forward(
    ...     np.ones((1, 2)), np.array([[3.0], [4.0]]), np.array([0.5])
    ... )
    >>> dx, dw, db = affine_backward(np.array([[2.0]]), cache)
    >>> dx.tolist(), dw.tolist(), db.tolist()
    ([[6.0, 8.0]], [[2.0], [2.0]], [2.0])
    """
    x, w, b = cache
    rows, dx = x.reshape(len(x), -1), np.zeros((len(x), len(w)), x.dtype)
    dw, db = np.zeros_like(w), np.zeros(w.shape[1], w.dtype)
    for n in range(len(x)):
        for m in range(len(db)):
            dx[n] += dout[n, m] * w[:, m]
            dw[:, m] += dout[n, m] * rows[n]
            db[m] += dout[n, m]
    return dx.reshape(x.shape), dw, None if b is None else db


def relu_forward(x: Array) -> Result:
    """Compute ``max(x, 0)`` for x of any shape.

    Examples
    --------
    >>> relu_forward(np.array([-1.0, 0.0, 2.0]))[0].tolist()
    [0.0, 0.0, 2.0]
    """
    out = x.copy()
    for index in np.ndindex(x.shape):
        out[index] = 0 if x[index] <= 0 else x[index]
    return out, (x,)


def relu_backward(dout: Array, cache: Cache) -> Array:
    """Return dx, which is dout where ``x > 0`` and 0 elsewhere.

    Examples
    --------
    >>> _, cache = relu_forward(np.array([-1.0, 0.0, 2.0]))
    >>> relu_backward(np.ones(3), cache).tolist()
    [0.0, 0.0, 1.0]
    """
    (x,) = cache
    dx = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        dx[index] = dout[index] if x[index] > 0 else 0
    return dx


def leaky_relu_forward(x: Array, *, negative_slope: float = 0.01) -> Result:
    """Compute x where it is positive and ``negative_slope * x`` elsewhere.

    Examples
    --------
    >>> leaky_relu_forward(np.array([-1.0, 0.0, 2.0]), negative_slope=0.1)[0].tolist()
    [-0.1, 0.0, 2.0]
    """
    out = x.copy()
    for index in np.ndindex(x.shape):
        out[index] = x[index] if x[index] > 0 else negative_slope * x[index]
    return out, (x, negative_slope)


def leaky_relu_backward(dout: Array, cache: Cache) -> Array:
    """Return dx, which is dout where ``x > 0`` and ``negative_slope * dout`` elsewhere.

    Examples
    --------
    >>> _, cache = leaky_relu_forward(np.array([-1.0, 2.0]), negative_slope=0.1)
    >>> leaky_relu_backward(np.ones(2), cache).tolist()
    [0.1, 1.0]
    """
    x, negative_slope = cache
    dx = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        dx[index] = dout[index] if x[index] > 0 else negative_slope * dout[index]
    return dx


def scale_forward(x: Array, *, factor: float) -> Result:
    """Compute ``factor * x``.

    Examples
    --------
    >>> scale_forward(np.array([-1.0, 2.0]), factor=0.5)[0].tolist()
    [-0.5, 1.0]
    """
    out = x.copy()
    for index in np.ndindex(x.shape):
        out[index] = factor * x[index]
    return out, (factor,)


def scale_backward(dout: Array, cache: Cache) -> Array:
    """Return dx, which is ``factor * dout``.

    Examples
    --------
    >>> scale_backward(np.ones(2), (0.5,)).tolist()
    [0.5, 0.5]
    """
    (factor,) = cache
    return scale_forward(dout, factor=factor)[0]


def gelu_forward(x: Array, *, approximate: str = "none") -> Result:
    """Compute ``x * P(x)`` with the normal distribution function P, by erf or approximated by tanh.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", 2016.

    Examples
    --------
    >>> gelu_forward(np.array([-1.0, 0.0, 2.0]))[0].round(4).tolist()
    [-0.1587, 0.0, 1.9545]
    """
    out = x.copy()
    for index in np.ndindex(x.shape):
        v = float(x[index])
        if approximate == "none":
            P = (1 + erf(v / sqrt(2))) / 2
        else:
            P = (1 + tanh(sqrt(2 / pi) * (v + 0.044715 * v**3))) / 2
        out[index] = v * P
    return out, (x, approximate)


def gelu_backward(dout: Array, cache: Cache) -> Array:
    """Return dx, which is ``dout * (P(x) + x * P'(x))``.

    Examples
    --------
    >>> _, cache = gelu_forward(np.array([-1.0, 0.0, 2.0]))
    >>> gelu_backward(np.ones(3), cache).round(4).tolist()
    [-0.0833, 0.5, 1.0852]
    """
    x, approximate = cache
    dx = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        v = float(x[index])
        if approximate == "none":
            P, slope = (1 + erf(v / sqrt(2))) / 2, exp(-v * v / 2) / sqrt(2 * pi)
        else:
            t = tanh(sqrt(2 / pi) * (v + 0.044715 * v**3))
            P, slope = (1 + t) / 2, (1 - t * t) / 2 * sqrt(2 / pi) * (1 + 3 * 0.044715 * v * v)
        dx[index] = dout[index] * (P + v * slope)
    return dx


def silu_forward(x: Array) -> Result:
    """Compute ``x / (1 + exp(-x))``.

    Examples
    --------
    >>> silu_forward(np.array([-1.0, 0.0, 2.0]))[0].round(4).tolist()
    [-0.2689, 0.0, 1.7616]
    """
    out = x.copy()
    for index in np.ndindex(x.shape):
        out[index] = x[index] * _sigmoid(float(x[index]))
    return out, (x,)


def silu_backward(dout: Array, cache: Cache) -> Array:
    """Return dx, which is ``dout * s * (1 + x * (1 - s))`` with ``s = 1 / (1 + exp(-x))``.

    Examples
    --------
    >>> _, cache = silu_forward(np.array([-1.0, 0.0, 2.0]))
    >>> silu_backward(np.ones(3), cache).round(4).tolist()
    [0.0723, 0.5, 1.0908]
    """
    (x,) = cache
    dx = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        s = _sigmoid(float(x[index]))
        dx[index] = dout[index] * s * (1 + x[index] * (1 - s))
    return dx


def conv_forward(
    x: Array,
    w: Array,
    b: Array | None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Result:
    """Convolve x (N, C, H, W) with the filters w (F, C / groups, KH, KW) and add b (F,) or None: out is (N, F, OH, OW).

    ``out[n, f, i, j] = sum(window * w[f]) + b[f]``, where the window starts at pixel (i * stride, j * stride) of the
    zero-padded image and takes every `dilation`-th pixel, of the channels of the filter's group.

    Examples
    --------
    >>> conv_forward(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), None)[0].shape
    (1, 1, 2, 2)
    """
    (N, C), (F, _, KH, KW) = x.shape[:2], w.shape
    if groups < 1 or C % groups or F % groups:
        raise ArgumentError(f"groups is {groups}; expected a divisor of the {C} channels of x and the {F} filters of w")
    places, sides = _places(x, (KH, KW), stride, padding, dilation)
    (OH, OW), bias = places.shape, np.zeros(F, w.dtype) if b is None else b
    _check_shapes((F, C // groups, KH, KW), w=w)
    _check_shapes((F,), b=bias)
    padded, out = _pad(x, sides, 0), _zeros((N, F, OH, OW), x)
    for n in range(N):
        for f in range(F):
            channels = _channels(f, F, C, groups)
            for i in range(OH):
                for j in range(OW):
                    window = padded[n, channels, *places[i, j]]
                    out[n, f, i, j] = np.sum(window * w[f]) + bias[f]
    return out, (x, w, b, stride, padding, dilation, groups)


def conv_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Return dx, dw, and db (None without a bias), given dout (N, F, OH, OW).

    Examples
    --------
    >>> out, cache = conv_forward(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), None)
    >>> dx, dw, db = conv_backward(np.ones_like(out), cache)
    >>> dx[0, 0].tolist(), db
    ([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], None)
    """
    x, w, b, stride, padding, dilation, groups = cache
    (N, F, OH, OW), C = dout.shape, x.shape[1]
    places, sides = _places(x, w.shape[2:], stride, padding, dilation)
    padded = _pad(x, sides, 0)
    dpadded, dw, db = np.zeros_like(padded), np.zeros_like(w), np.zeros(F, w.dtype)
    for n in range(N):
        for f in range(F):
            channels = _channels(f, F, C, groups)
            for i in range(OH):
                for j in range(OW):
                    window = n, channels, *places[i, j]
                    dpadded[window] += dout[n, f, i, j] * w[f]
                    dw[f] += dout[n, f, i, j] * padded[window]
                    db[f] += dout[n, f, i, j]
    return _crop(dpadded, x, sides), dw, None if b is None else db.astype(b.dtype)


def conv_transpose_forward(
    x: Array,
    w: Array,
    b: Array | None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Result:
    """Add each pixel of x (N, C, H, W) times the filters w (C, F / groups, KH, KW) to its window; b is (F,) or None.

    ``window of padded out at (i, j) += x[n, c, i, j] * w[c]``, over the output channels of the group of channel c. Each
    side of the output has OH = ``(H - 1) * sh + (KH - 1) * dh + 1 - top - bottom + output_padding`` pixels.

    Examples
    --------
    >>> conv_transpose_forward(
    ...     np.array([[[[1.0, 2.0]]]]), np.ones((1, 1, 1, 3)), None, stride=2
    ... )[0].tolist()
    [[[[1.0, 1.0, 3.0, 2.0, 2.0]]]]
    """
    (N, C), F = x.shape[:2], w.shape[1] * groups
    if groups < 1 or C % groups:
        raise ArgumentError(f"groups is {groups}; expected a divisor of the {C} channels of x")
    size = []
    for axis in range(2):
        extent = (w.shape[2 + axis] - 1) * _pair(dilation)[axis] + 1
        size.append(
            (x.shape[2 + axis] - 1) * _pair(stride)[axis]
            + extent
            - sum(_padding(padding, axis, extent))
            + _pair(output_padding)[axis]
        )
    out = _zeros((N, F, *size), x)
    places, sides = _places(out, w.shape[2:], stride, padding, dilation)
    _check_shapes((C, F // groups, *w.shape[2:]), w=w)
    _check_shapes(x.shape[2:], windows=places)
    padded = _pad(out, sides, 0)
    for n in range(N):
        for c in range(C):
            channels = _channels(c, C, F, groups)
            for i, j in np.ndindex(places.shape):
                padded[n, channels, *places[i, j]] += x[n, c, i, j] * w[c]
    out = _crop(padded, out, sides)
    if b is not None:
        _check_shapes((F,), b=b)
        for f in range(F):
            out[:, f] += b[f]
    return out, (x, w, b, places, sides, groups)


def conv_transpose_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Return dx, dw, and db (None without a bias), given dout (N, F, OH, OW).

    Examples
    --------
    >>> out, cache = conv_transpose_forward(
    ...     np.array([[[[1.0, 2.0]]]]), np.ones((1, 1, 1, 3)), None, stride=2
    ... )
    >>> dx, dw, db = conv_transpose_backward(np.ones_like(out), cache)
    >>> dx.tolist(), dw.tolist(), db
    ([[[[3.0, 3.0]]]], [[[[3.0, 3.0, 3.0]]]], None)
    """
    x, w, b, places, sides, groups = cache
    (N, F), C = dout.shape[:2], x.shape[1]
    padded, dx, dw = _pad(dout, sides, 0), np.zeros_like(x), np.zeros_like(w)
    for n in range(N):
        for c in range(C):
            channels = _channels(c, C, F, groups)
            for i, j in np.ndindex(places.shape):
                window = padded[n, channels, *places[i, j]]
                dx[n, c, i, j] = np.sum(window * w[c])
                dw[c] += window * x[n, c, i, j]
    db = None if b is None else np.array([np.sum(dout[:, f]) for f in range(F)], b.dtype)
    return dx, dw, db


def max_pool_forward(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> Result:
    """Take the maximum of each window of x (N, C, H, W), padded with minus infinity; stride defaults to kernel_size.

    Examples
    --------
    >>> max_pool_forward(np.arange(16.0).reshape(1, 1, 4, 4), kernel_size=2)[0].tolist()
    [[[[5.0, 7.0], [13.0, 15.0]]]]
    """
    stride = kernel_size if stride is None else stride
    places, sides = _places(x, kernel_size, stride, padding, dilation, ceil_mode)
    (N, C), (OH, OW) = x.shape[:2], places.shape
    out, padded = _zeros((N, C, OH, OW), x), _pad(x, sides, -np.inf)
    for n in range(N):
        for c in range(C):
            for i in range(OH):
                for j in range(OW):
                    out[n, c, i, j] = np.max(padded[n, c, *places[i, j]])
    return out, (x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool_backward(dout: Array, cache: Cache) -> Array:
    """Return dx: each output's gradient goes to the maximum of its window, the first in row-major order.

    Examples
    --------
    >>> _, cache = max_pool_forward(
    ...     np.array([[[[1.0, 2.0], [4.0, 3.0]]]]), kernel_size=2
    ... )
    >>> max_pool_backward(np.ones((1, 1, 1, 1)), cache).tolist()
    [[[[0.0, 0.0], [1.0, 0.0]]]]
    """
    x, *options = cache
    places, sides = _places(x, *options)
    (N, C, OH, OW), padded = dout.shape, _pad(x, sides, -np.inf)
    inside, dpadded = _pad(np.ones(x.shape, bool), sides, False), np.zeros_like(padded)
    for n in range(N):
        for c in range(C):
            for i in range(OH):
                for j in range(OW):
                    rows, columns = places[i, j]
                    window = padded[n, c, rows, columns]
                    is_maximum = np.isnan(window) if np.isnan(window).any() else window == np.max(window)
                    row, column = np.argwhere(is_maximum & inside[n, c, rows, columns])[0]
                    dpadded[n, c, rows, columns][row, column] += dout[n, c, i, j]
    return _crop(dpadded, x, sides)


def avg_pool_forward(
    x: Array,
    *,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Padding = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Result:
    """Take the mean of each window of x (N, C, H, W), over the padded image, or over the image alone.

    Examples
    --------
    >>> avg_pool_forward(np.array([[[[1.0, 2.0], [4.0, 3.0]]]]), kernel_size=2)[
    ...     0
    ... ].tolist()
    [[[[2.5]]]]
    """
    stride = kernel_size if stride is None else stride
    places, sides = _places(x, kernel_size, stride, padding, 1, ceil_mode)
    (N, C), (OH, OW) = x.shape[:2], places.shape
    out, padded, count = _zeros((N, C, OH, OW), x), _pad(x, sides, 0), np.zeros((OH, OW), x.dtype)
    _, sides_without_ceil_mode = _places(x, kernel_size, stride, padding)
    counted = np.ones(x.shape[2:], x.dtype)
    if count_include_pad:
        counted = np.pad(counted, sides_without_ceil_mode, constant_values=1)
        extra = [(0, after - before) for (_, after), (_, before) in zip(sides, sides_without_ceil_mode, strict=True)]
        counted = np.pad(counted, extra)
    else:
        counted = np.pad(counted, sides)
    for i in range(OH):
        for j in range(OW):
            count[i, j] = np.sum(counted[places[i, j]])
    for n in range(N):
        for c in range(C):
            for i in range(OH):
                for j in range(OW):
                    out[n, c, i, j] = np.sum(padded[n, c, *places[i, j]]) / count[i, j]
    return out, (x, kernel_size, stride, padding, ceil_mode, count)


def avg_pool_backward(dout: Array, cache: Cache) -> Array:
    """Return dx: each output's gradient is spread evenly over the pixels of its window.

    Examples
    --------
    >>> _, cache = avg_pool_forward(np.zeros((1, 1, 2, 2)), kernel_size=2)
    >>> avg_pool_backward(np.ones((1, 1, 1, 1)), cache).tolist()
    [[[[0.25, 0.25], [0.25, 0.25]]]]
    """
    x, kernel_size, stride, padding, ceil_mode, count = cache
    places, sides = _places(x, kernel_size, stride, padding, 1, ceil_mode)
    (N, C, OH, OW), dpadded = dout.shape, np.zeros_like(_pad(x, sides, 0))
    for n in range(N):
        for c in range(C):
            for i in range(OH):
                for j in range(OW):
                    dpadded[n, c, *places[i, j]] += dout[n, c, i, j] / count[i, j]
    return _crop(dpadded, x, sides)


def global_avg_pool_forward(x: Array) -> Result:
    """Take the mean of each channel of each image: x is (N, C, H, W), out is (N, C).

    Examples
    --------
    >>> global_avg_pool_forward(np.array([[[[1.0, 2.0], [4.0, 3.0]]]]))[0].tolist()
    [[2.5]]
    """
    out, cache = avg_pool_forward(x, kernel_size=x.shape[2:])
    return out[:, :, 0, 0], cache


def global_avg_pool_backward(dout: Array, cache: Cache) -> Array:
    """Return dx (N, C, H, W): dout (N, C) spread evenly over the pixels.

    Examples
    --------
    >>> _, cache = global_avg_pool_forward(np.zeros((1, 1, 2, 2)))
    >>> global_avg_pool_backward(np.ones((1, 1)), cache).tolist()
    [[[[0.25, 0.25], [0.25, 0.25]]]]
    """
    return avg_pool_backward(dout[:, :, np.newaxis, np.newaxis], cache)


def pad_channels_forward(x: Array, *, channels: int) -> Result:
    """Append channels of zeros: x is (N, C, H, W), out is (N, channels, H, W).

    Examples
    --------
    >>> pad_channels_forward(np.ones((1, 1, 1, 1)), channels=2)[0].tolist()
    [[[[1.0]], [[0.0]]]]
    """
    N, C, H, W = x.shape
    out = np.zeros((N, channels, H, W), x.dtype)
    for index in np.ndindex(N, C, H, W):
        out[index] = x[index]
    return out, x.shape


def pad_channels_backward(dout: Array, cache: Cache) -> Array:
    """Return dx (N, C, H, W): the gradients of the channels that are not padding.

    Examples
    --------
    >>> pad_channels_backward(np.ones((1, 2, 1, 1)), (1, 1, 1, 1)).tolist()
    [[[[1.0]]]]
    """
    dx = np.zeros(cache, dout.dtype)
    for index in np.ndindex(*cache):
        dx[index] = dout[index]
    return dx


def global_max_pool_forward(x: Array) -> Result:
    """Take the maximum of each channel of each image: x is (N, C, H, W), out is (N, C).

    Examples
    --------
    >>> global_max_pool_forward(np.array([[[[1.0, 2.0], [4.0, 3.0]]]]))[0].tolist()
    [[4.0]]
    """
    out, cache = max_pool_forward(x, kernel_size=x.shape[2:])
    return out[:, :, 0, 0], cache


def global_max_pool_backward(dout: Array, cache: Cache) -> Array:
    """Return dx (N, C, H, W): each gradient of dout (N, C) goes to the first maximum of its channel.

    Examples
    --------
    >>> _, cache = global_max_pool_forward(np.array([[[[1.0, 2.0], [4.0, 4.0]]]]))
    >>> global_max_pool_backward(np.ones((1, 1)), cache).tolist()
    [[[[0.0, 0.0], [1.0, 0.0]]]]
    """
    return max_pool_backward(dout[:, :, np.newaxis, np.newaxis], cache)


def batchnorm_forward(
    x: Array,
    gamma: Array,
    beta: Array,
    running: tuple[Array, Array] | None,
    *,
    train: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> Result:
    """Normalise each channel of x, (N, D) or (N, C, H, W): ``gamma * (x - mean) / sqrt(var + eps) + beta``.

    In training, mean and var (biased) are those of the batch, and the running averages become
    ``momentum * old + (1 - momentum) * batch``, starting from zeros if `running` is None. In evaluation, mean and var
    are the running averages. gamma, beta, mean and var are (C,). The cache ends with the new running (mean, var).

    Source: Ioffe and Szegedy, "Batch Normalization", 2015.

    Examples
    --------
    >>> x = np.array([[1.0], [3.0]])
    >>> out, cache = batchnorm_forward(
    ...     x, np.ones(1), np.zeros(1), None, train=True, eps=0.0
    ... )
    >>> out.ravel().tolist(), cache[-1][0].round(3).tolist()
    ([-1.0, 1.0], [0.2])
    """
    C, out = x.shape[1], _zeros(x.shape, x)
    if running is None and not train:
        raise ArgumentError("running is None with train=False; expected (mean, var): train first")
    old_mean, old_var = (np.zeros(C), np.zeros(C)) if running is None else running
    _check_shapes((C,), gamma=gamma, beta=beta, running_mean=old_mean, running_var=old_var)
    mean, var = np.array(old_mean, x.dtype), np.array(old_var, x.dtype)
    new_mean, new_var = mean.copy(), var.copy()
    for c in range(C):
        if train:
            mean[c], var[c] = _moments(x[:, c])
            new_mean[c] = momentum * new_mean[c] + (1 - momentum) * mean[c]
            new_var[c] = momentum * new_var[c] + (1 - momentum) * var[c]
        out[:, c] = gamma[c] * (x[:, c] - mean[c]) / np.sqrt(var[c] + eps) + beta[c]
    return out, (x, gamma, beta, mean, var, eps, train, (new_mean, new_var))


def batchnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Return dx, dgamma and dbeta; the batch's mean and var depend on x, the running averages do not.

    Examples
    --------
    >>> out, cache = batchnorm_forward(
    ...     np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), None, train=True
    ... )
    >>> dx, dgamma, dbeta = batchnorm_backward(np.ones_like(out), cache)
    >>> dx.tolist(), dbeta.tolist()
    ([[0.0], [0.0]], [2.0])
    """
    x, gamma, beta, mean, var, eps, train, _ = cache
    dx, dgamma, dbeta = np.zeros_like(x), np.zeros_like(gamma), np.zeros_like(beta)
    for c in range(x.shape[1]):
        std = np.sqrt(var[c] + eps)
        dgamma[c] = np.sum(dout[:, c] * (x[:, c] - mean[c]) / std)
        dbeta[c] = np.sum(dout[:, c])
        dxhat = dout[:, c] * gamma[c]
        dx[:, c] = _normalise_backward(dxhat, x[:, c], eps) if train else dxhat / std
    return dx, dgamma, dbeta


def layernorm_forward(x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5) -> Result:
    """Normalise each sample of x (N, ...) over all its values; gamma and beta have the shape of a sample.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Examples
    --------
    >>> layernorm_forward(
    ...     np.array([[1.0, 3.0], [10.0, 30.0]]), np.ones(2), np.zeros(2), eps=0.0
    ... )[0].tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """
    out = _zeros(x.shape, x)
    _check_shapes(x.shape[1:], gamma=gamma, beta=beta)
    for n in range(len(x)):
        mean, var = _moments(x[n])
        out[n] = gamma * (x[n] - mean) / np.sqrt(var + eps) + beta
    return out, (x, gamma, beta, eps)


def layernorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Return dx, dgamma and dbeta.

    Examples
    --------
    >>> out, cache = layernorm_forward(
    ...     np.array([[1.0, 3.0], [10.0, 30.0]]), np.ones(2), np.zeros(2)
    ... )
    >>> dx, dgamma, dbeta = layernorm_backward(np.ones_like(out), cache)
    >>> dx.shape, dbeta.tolist()
    ((2, 2), [2.0, 2.0])
    """
    x, gamma, beta, eps = cache
    dx, dgamma, dbeta = np.zeros_like(x), np.zeros_like(gamma), np.zeros_like(beta)
    for n in range(len(x)):
        mean, var = _moments(x[n])
        dgamma += dout[n] * (x[n] - mean) / np.sqrt(var + eps)
        dbeta += dout[n]
        dx[n] = _normalise_backward(dout[n] * gamma, x[n], eps)
    return dx, dgamma, dbeta


def groupnorm_forward(x: Array, gamma: Array, beta: Array, *, groups: int, eps: float = 1e-5) -> Result:
    """Normalise each group of adjacent channels of each sample of x (N, C, ...); gamma and beta are (C,).

    Source: Wu and He, "Group Normalization", 2018.

    Examples
    --------
    >>> groupnorm_forward(
    ...     np.array([[1.0, 3.0, 10.0, 30.0]]),
    ...     np.ones(4),
    ...     np.zeros(4),
    ...     groups=2,
    ...     eps=0.0,
    ... )[0].tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """
    (N, C), out = x.shape[:2], _zeros(x.shape, x)
    if groups < 1 or C % groups:
        raise ArgumentError(f"groups is {groups}; expected a divisor of the {C} channels of x")
    _check_shapes((C,), gamma=gamma, beta=beta)
    for n in range(N):
        for channels in np.split(np.arange(C), groups):
            mean, var = _moments(x[n, channels])
            for c in channels:
                out[n, c] = gamma[c] * (x[n, c] - mean) / np.sqrt(var + eps) + beta[c]
    return out, (x, gamma, beta, groups, eps)


def groupnorm_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """Return dx, dgamma and dbeta.

    Examples
    --------
    >>> out, cache = groupnorm_forward(
    ...     np.array([[1.0, 3.0, 10.0, 30.0]]), np.ones(4), np.zeros(4), groups=2
    ... )
    >>> dx, dgamma, dbeta = groupnorm_backward(np.ones_like(out), cache)
    >>> dx.shape, dbeta.tolist()
    ((1, 4), [1.0, 1.0, 1.0, 1.0])
    """
    x, gamma, beta, groups, eps = cache
    dx, dgamma, dbeta = np.zeros_like(x), np.zeros_like(gamma), np.zeros_like(beta)
    for n in range(len(x)):
        for channels in np.split(np.arange(len(gamma)), groups):
            mean, var = _moments(x[n, channels])
            dxhat = np.zeros_like(x[n, channels])
            for k, c in enumerate(channels):
                dgamma[c] += np.sum(dout[n, c] * (x[n, c] - mean) / np.sqrt(var + eps))
                dbeta[c] += np.sum(dout[n, c])
                dxhat[k] = dout[n, c] * gamma[c]
            dx[n, channels] = _normalise_backward(dxhat, x[n, channels], eps)
    return dx, dgamma, dbeta


def dropout_forward(x: Array, *, keep_prob: float, mask: Array, train: bool) -> Result:
    """Compute ``x * mask / keep_prob`` in training and x in evaluation; mask is boolean, in the shape of x.

    Source: Srivastava et al., "Dropout", 2014, in the inverted form, which scales in training only.

    Examples
    --------
    >>> dropout_forward(
    ...     np.ones(2), keep_prob=0.5, mask=np.array([True, False]), train=True
    ... )[0].tolist()
    [2.0, 0.0]
    """
    _check_shapes(x.shape, mask=mask)
    if not 0 < keep_prob <= 1:
        raise ArgumentError(f"keep_prob is {keep_prob}; expected a probability above 0 and at most 1")
    out = _zeros(x.shape, x)
    for index in np.ndindex(x.shape):
        out[index] = x[index] * float(mask[index]) / keep_prob if train else x[index]
    return out, (keep_prob, mask, train)


def dropout_backward(dout: Array, cache: Cache) -> Array:
    """Return dx: dropped elements get no gradient, and the gradients of kept ones are scaled as in the forward pass.

    Examples
    --------
    >>> _, cache = dropout_forward(
    ...     np.ones(2), keep_prob=0.5, mask=np.array([True, False]), train=True
    ... )
    >>> dropout_backward(np.ones(2), cache).tolist()
    [2.0, 0.0]
    """
    keep_prob, mask, train = cache
    return dropout_forward(dout, keep_prob=keep_prob, mask=mask, train=train)[0]


def softmax_loss(
    x: Array,
    y: Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    reduction: str = "mean",
) -> tuple[float, Array]:
    """Return the mean or sum of ``-log(softmax(x)[y])`` and its gradient dx, for scores x (N, C) and labels y (N,).

    y may hold the probability of each class instead, (N, C). Label smoothing replaces part of each target by 1 / C.
    With class weights w, the mean for labels divides by the sum of ``w[y]``.

    Examples
    --------
    >>> round(softmax_loss(np.zeros((1, 10)), np.array([3]))[0], 6)
    2.302585
    """
    (N, C), dx, loss = x.shape, _zeros(x.shape, x), 0.0
    weights, divisor = [1.0] * C if class_weights is None else class_weights, 0.0
    if y.ndim == 1:
        _check_labels(x, y)
    else:
        _check_shapes(x.shape, y=y)
    for n in range(N):
        shifted = x[n] - np.max(x[n])  # exp of the raw scores may overflow
        exponentials = np.exp(shifted)
        total = np.sum(exponentials)
        divisor += 1.0 if y.ndim == 2 else weights[y[n]]
        for c in range(C):
            target = y[n, c] if y.ndim == 2 else float(c == y[n])
            target = weights[c] * ((1 - label_smoothing) * target + label_smoothing / C)
            loss += float(target * (np.log(total) - shifted[c]))
            dx[n] += target * exponentials / total
            dx[n, c] -= target
    if reduction == "mean" and divisor:
        loss, dx = loss / divisor, dx / divisor
    return loss, dx


def svm_loss(x: Array, y: Array) -> tuple[float, Array]:
    """Return the mean of ``sum over c != y of max(0, x[c] - x[y] + 1)`` and its gradient dx, as for `softmax_loss`.

    Examples
    --------
    >>> svm_loss(np.zeros((1, 10)), np.array([3]))[0]
    9.0
    """
    (N, C), dx, loss = x.shape, _zeros(x.shape, x), 0.0
    _check_labels(x, y)
    for n in range(N):
        for c in range(C):
            margin = x[n, c] - x[n, y[n]] + 1
            if c != y[n] and margin > 0:
                loss += float(margin) / N
                dx[n, c] += 1 / N
                dx[n, y[n]] -= 1 / N
    return loss, dx


def _sigmoid(v: float) -> float:
    return (1 + tanh(v / 2)) / 2


def _moments(values: Array) -> tuple[Any, Any]:
    mean = np.mean(values)
    return mean, np.mean((values - mean) ** 2)


def _normalise_backward(dxhat: Array, values: Array, eps: float) -> Array:
    """Return the gradient of ``xhat = (values - mean) / sqrt(var + eps)``, summed over its three paths."""
    mean, var = _moments(values)
    centred, std, count = values - mean, np.sqrt(var + eps), values.size
    dvar = -np.sum(dxhat * centred) / (2 * std**3)
    dmean = -np.sum(dxhat) / std
    return dxhat / std + dvar * 2 * centred / count + dmean / count


def _pair(value: Pair) -> tuple[int, int]:
    rows, columns = np.broadcast_to(value, 2).tolist()
    return rows, columns


def _places(
    x: Array, kernel_size: Pair, stride: Pair, padding: Padding, dilation: Pair = 1, ceil_mode: bool = False
) -> tuple[Array, list[tuple[int, int]]]:
    """Return the rows and columns of each window of the padded image, (OH, OW), and the padding of both axes' sides."""
    axes, sides = [], []
    for axis in range(2):
        length, k, s, d = x.shape[2 + axis], _pair(kernel_size)[axis], _pair(stride)[axis], _pair(dilation)[axis]
        extent = (k - 1) * d + 1
        before, after = _padding(padding, axis, extent)
        if min(k, s, d) < 1 or min(before, after) < 0:
            raise ArgumentError(
                f"window {k}, stride {s}, dilation {d}, padding {before, after}; expected >= 1, >= 1, >= 1, >= 0"
            )
        free = length + before + after - extent
        if free < 0:
            raise ArgumentError(f"window is {extent} but the padded image is {free + extent}: add padding")
        count = 1 + free // s
        if ceil_mode and free % s and count * s < length + before:
            count, after = count + 1, count * s + extent - length - before
        axes.append([slice(start, start + extent, d) for start in range(0, count * s, s)])
        sides.append((before, after))
    places = np.empty((len(axes[0]), len(axes[1])), object)
    for index in np.ndindex(places.shape):
        places[index] = axes[0][index[0]], axes[1][index[1]]
    return places, sides


def _padding(padding: Padding, axis: int, extent: int) -> tuple[int, int]:
    """Return the padding before and after an axis."""
    if isinstance(padding, str):
        if padding != "same":
            raise ArgumentError(f"padding is {padding!r}; expected 'same', an int, a pair or two pairs of ints")
        return (extent - 1) // 2, extent // 2
    sides: list[list[int]] = np.broadcast_to(
        np.reshape(padding, (-1, 1) if np.ndim(padding) < 2 else (2, 2)), (2, 2)
    ).tolist()
    return sides[axis][0], sides[axis][1]


def _channels(f: int, F: int, C: int, groups: int) -> slice:
    """Return the channels that filter f sees."""
    group = f // (F // groups)
    return slice(group * C // groups, (group + 1) * C // groups)


def _pad(x: Array, sides: list[tuple[int, int]], value: float) -> Array:
    return np.pad(x, ((0, 0), (0, 0), *sides), constant_values=value)


def _crop(padded: Array, x: Array, sides: list[tuple[int, int]]) -> Array:
    (top, _), (left, _) = sides
    return padded[:, :, top : top + x.shape[2], left : left + x.shape[3]]


def _zeros(shape: tuple[int, ...], x: Array) -> Array:
    if not np.issubdtype(x.dtype, np.floating):
        raise ArgumentTypeError(f"x has dtype {x.dtype}; expected floats: cast it, as in x.astype('float64')")
    return np.zeros(shape, x.dtype)


def _check_shapes(shape: tuple[int, ...], **arrays: Array) -> None:
    for name, array in arrays.items():
        if array.shape != shape:
            raise ArgumentError(f"{name} has shape {array.shape}; expected {shape}: reshape it")


def _check_labels(x: Array, y: Array) -> None:
    _check_shapes(x.shape[:1], y=y)
    if len(y) and not 0 <= min(y) <= max(y) < x.shape[1]:
        raise ArgumentError(f"y has labels from {min(y)} to {max(y)}; expected 0 to {x.shape[1] - 1}")

"""The computation that all normalisation layers share: ``out = gamma * (x - mean) / sqrt(var + eps) + beta``.

All arrays have the same number of axes. Mean and variance are taken over `axes`, which stay as axes of size 1. Slices
along `tile_axis` are independent of each other, so arrays may be cut into tiles along it. For N images, C channels,
G groups of channels and L pixels, the layers use:

============  ================  ================  ============  ============  =========
layer         shape of x        shape of gamma    axes          param_axes    tile_axis
============  ================  ================  ============  ============  =========
batch norm    (N, C, L)         (1, C, 1)         (0, 2)        (0, 2)        1
layer norm    (N, C, ...)       (1, C, ...)       (1, 2, ...)   (1, 2, ...)   0
group norm    (N, G, C/G, L)    (1, G, C/G, 1)    (2, 3)        (3,)          0
============  ================  ================  ============  ============  =========

Group norm sums dgamma and dbeta over N itself. Layer norm computes them itself, since every element has its own gamma.
"""

from collections.abc import Callable, Sequence
from math import log, sqrt
from typing import Any

import array_api_compat

from xpconv.backend import Array, on_host
from xpconv.ops.dispatch import operation
from xpconv.ops.elementwise import relu, relu_backward
from xpconv.ops.tiling import map_tiles

__all__ = [
    "apply_moments",
    "gradient_sums",
    "input_gradient",
    "join_moments",
    "moments",
    "normalise",
    "normalise_backward",
    "normalise_relu",
    "normalise_relu_backward",
    "subtract_mean",
    "update_running_stats",
    "variance_and_inverse_std",
]

_HUGE = 1e15  # its square fits float32
_FAR = 1e3  # Up to this |mean| / std, the rounding error of a float32 mean is below 1e-4 std.


@operation
def normalise(
    x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], tile_axis: int, eps: float
) -> tuple[Array, Array, Array, Array]:
    """Normalise over `axes`, then scale and shift: ``out = gamma * (x - mean) / sqrt(var + eps) + beta``.

    The variance is computed from ``x - mean``, after the rounding error of the mean has been subtracted as well, so it
    is accurate far from zero.

    Parameters
    ----------
    x : array of any shape
    gamma, beta : array
        Scale and shift; they broadcast to the shape of `x`.
    axes : sequence of int
        The axes that mean and variance are taken over.
    tile_axis : int
        An axis along which slices are independent of each other.
    eps : float
        Added to the variance.

    Returns
    -------
    out : array of the shape of `x`
    mean, var, inv_std : array of the shape of `x`, but of size 1 along `axes`
        ``inv_std = 1 / sqrt(var + eps)``.

    Examples
    --------
    >>> import numpy as np
    >>> x, gamma, beta = (
    ...     np.array([[1.0, 2.0], [3.0, 6.0]]),
    ...     np.ones((1, 2)),
    ...     np.array([[0.0, 5.0]]),
    ... )
    >>> out, mean, var, inv_std = normalise(
    ...     x, gamma, beta, axes=(0,), tile_axis=1, eps=1e-8
    ... )
    >>> out.round(3)
    array([[-1.,  4.],
           [ 1.,  6.]])
    >>> mean, var, inv_std.round(3)
    (array([[2., 4.]]), array([[1., 4.]]), array([[1. , 0.5]]))
    """

    def tile(x: Array, gamma: Array, beta: Array) -> tuple[Array, Array, Array, Array]:
        xp = array_api_compat.array_namespace(x)
        mean = xp.mean(x, axis=axes, keepdims=True)
        out = x - mean
        error = xp.mean(out, axis=axes, keepdims=True)  # rounding error of the mean
        mean, out = mean + error, out - error
        var, inv_std = variance_and_inverse_std(xp, out, axes, eps)
        out *= inv_std
        out *= gamma
        out += beta
        return out, mean, var, inv_std

    out, mean, var, inv_std = map_tiles(x, gamma, beta, function=tile, axis=tile_axis)
    return out, mean, var, inv_std


def variance_and_inverse_std(xp: Any, centered: Array, axes: Sequence[int], eps: float) -> tuple[Array, Array]:
    """Return the variance of values whose mean is 0, and ``1 / sqrt(var + eps)``.

    Values whose squares would overflow are scaled first. A variance that would overflow is capped just below the
    largest finite number of the dtype; ``1 / sqrt(var + eps)`` is computed without the cap.

    Parameters
    ----------
    xp : array namespace
        The library of the values, such as NumPy.
    centered : array of any shape
    axes : sequence of int
        The axes that the variance is taken over.
    eps : float
        Added to the variance.

    Returns
    -------
    var, inv_std : array of the shape of `centered`, but of size 1 along `axes`

    Examples
    --------
    >>> import numpy as np
    >>> variance_and_inverse_std(np, np.array([-2.0, 2.0]), axes=(0,), eps=0.0)
    (array([4.]), array([0.5]))
    """
    largest = xp.max(xp.abs(centered), axis=axes, keepdims=True)
    scale = xp.where(largest > _HUGE, largest, xp.ones_like(largest))
    scaled = centered / scale
    std = scale * xp.sqrt(xp.mean(scaled * scaled, axis=axes, keepdims=True))
    inv_std = 1 / xp.hypot(std, xp.full_like(std, sqrt(eps)))
    std = xp.minimum(std, xp.full_like(std, 0.99 * sqrt(xp.finfo(std.dtype).max)))
    return std * std, inv_std


def subtract_mean(x: Array, mean: Array, inv_std: Array, axes: Sequence[int]) -> Array:
    """Return ``x - mean``; far from zero, also subtract the rounding error of the mean.

    The error may be a large part of the standard deviation there. It is the mean over `axes` of ``x - mean``.

    Parameters
    ----------
    x : array of any shape
    mean, inv_std : array
        As returned by `normalise`.
    axes : sequence of int
        The axes that `mean` was taken over.

    Returns
    -------
    array of the shape of `x`

    Examples
    --------
    >>> import numpy as np
    >>> x, mean = np.array([1e6, 1e6 + 2]), np.array([1e6 + 0.9])
    >>> subtract_mean(x, mean, np.array([1.0]), axes=(0,)).round(6)
    array([-1.,  1.])
    """
    xp: Any = array_api_compat.array_namespace(x)
    centered = x - mean
    far = xp.abs(mean) / _FAR > 1 / inv_std
    if on_host(far) and not bool(xp.any(far)):
        return centered
    centered -= xp.where(far, xp.mean(centered, axis=axes, keepdims=True), xp.zeros_like(mean))
    return centered


@operation
def normalise_backward(
    dout: Array,
    x: Array,
    mean: Array,
    inv_std: Array,
    gamma: Array,
    *,
    axes: Sequence[int],
    param_axes: Sequence[int],
    tile_axis: int,
) -> tuple[Array, Array, Array]:
    """Return the gradients of `normalise`.

    With ``xhat = (x - mean) * inv_std`` and ``dxhat = dout * gamma``,
    ``dx = inv_std * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))``; ``dgamma = sum(dout * xhat)``;
    ``dbeta = sum(dout)``. Means are taken over `axes`, sums over `param_axes`.

    Parameters
    ----------
    dout : array of the shape of `x`
        Gradient of the output.
    x, gamma, axes, tile_axis
        As given to `normalise`.
    mean, inv_std : array
        As returned by `normalise`.
    param_axes : sequence of int
        The axes that the gradients of gamma and beta are summed over.

    Returns
    -------
    dx : array of the shape of `x`
    dgamma, dbeta : array of the shape of `x`, but of size 1 along `param_axes`

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> x, gamma = np.array([[1.0], [3.0], [5.0]]), np.ones((1, 1))
    >>> _, mean, _, inv_std = normalise(
    ...     x, gamma, 0 * gamma, axes=(0,), tile_axis=1, eps=1e-8
    ... )
    >>> dout = np.array([[1.0], [0.0], [1.0]])
    >>> dx, dgamma, dbeta = normalise_backward(
    ...     dout, x, mean, inv_std, gamma, axes=(0,), param_axes=(0,), tile_axis=1
    ... )
    >>> dx.round(3), dgamma.round(3) + 0.0, dbeta
    (array([[ 0.204],
           [-0.408],
           [ 0.204]]), array([[0.]]), array([[2.]]))
    """

    def tile(dout: Array, x: Array, mean: Array, inv_std: Array, gamma: Array) -> tuple[Array, Array, Array]:
        xp = array_api_compat.array_namespace(dout)
        xhat = subtract_mean(x, mean, inv_std, axes) * inv_std
        product = dout * xhat
        dgamma, dbeta = xp.sum(product, axis=param_axes, keepdims=True), xp.sum(dout, axis=param_axes, keepdims=True)
        product *= gamma
        dx = dout * gamma
        center = xp.mean(dx, axis=axes, keepdims=True)
        dx -= xhat * xp.mean(product, axis=axes, keepdims=True)
        dx -= center
        dx *= inv_std
        return dx, dgamma, dbeta

    dx, dgamma, dbeta = map_tiles(dout, x, mean, inv_std, gamma, function=tile, axis=tile_axis)
    return dx, dgamma, dbeta


@operation
def normalise_relu(
    x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], tile_axis: int, eps: float
) -> tuple[Array, Array, Array, Array, Any]:
    """Normalise, scale and shift, then take ``max(out, 0)``.

    The results have the bits of `normalise` and `relu`, one after the other.

    Parameters
    ----------
    x, gamma, beta, axes, tile_axis, eps
        As for `normalise`.

    Returns
    -------
    out : array of the shape of `x`
    mean, var, inv_std : array
        As `normalise` returns them.
    signs : object
        What `normalise_relu_backward` needs to know where `out` is positive. It depends on the library.

    Examples
    --------
    >>> import numpy as np
    >>> x, ones = np.array([[1.0], [3.0]]), np.ones((1, 1))
    >>> normalise_relu(x, ones, 0 * ones, axes=(0,), tile_axis=1, eps=1e-8)[0].round(3)
    array([[0.],
           [1.]])
    """
    out, mean, var, inv_std = normalise(x, gamma, beta, axes=axes, tile_axis=tile_axis, eps=eps)
    out, mask = relu(out)
    return out, mean, var, inv_std, mask


@operation
def normalise_relu_backward(
    dout: Array,
    signs: Any,
    x: Array,
    mean: Array,
    inv_std: Array,
    gamma: Array,
    *,
    axes: Sequence[int],
    param_axes: Sequence[int],
    tile_axis: int,
) -> tuple[Array, Array, Array]:
    """Return the gradients of `normalise_relu`.

    The results have the bits of `relu_backward` and `normalise_backward`, one after the other.

    Parameters
    ----------
    dout : array of the shape of `x`
        Gradient of the output.
    signs : object
        As returned by `normalise_relu`.
    x, mean, inv_std, gamma, axes, param_axes, tile_axis
        As for `normalise_backward`.

    Returns
    -------
    dx : array of the shape of `x`
    dgamma, dbeta : array of the shape of `x`, but of size 1 along `param_axes`

    Examples
    --------
    >>> import numpy as np
    >>> x, gamma = np.array([[1.0], [3.0]]), np.ones((1, 1))
    >>> out, mean, _, inv_std, signs = normalise_relu(
    ...     x, gamma, 0 * gamma, axes=(0,), tile_axis=1, eps=1e-8
    ... )
    >>> normalise_relu_backward(
    ...     np.ones((2, 1)),
    ...     signs,
    ...     x,
    ...     mean,
    ...     inv_std,
    ...     gamma,
    ...     axes=(0,),
    ...     param_axes=(0,),
    ...     tile_axis=1,
    ... )[2]
    array([[1.]])
    """
    return normalise_backward(
        relu_backward(dout, signs), x, mean, inv_std, gamma, axes=axes, param_axes=param_axes, tile_axis=tile_axis
    )


@operation
def update_running_stats(
    mean: Array, var: Array, batch_mean: Array, batch_var: Array, momentum: float, num_batches: Array | None = None
) -> tuple[Array, Array, Array | None]:
    """Return the next running averages and the next number of batches.

    The averages are ``momentum * old + (1 - momentum) * batch``. With `num_batches`, the weights change so that the
    start has none: after t batches the averages are those that started from 0, over ``1 - momentum**t``, as in Adam.

    Parameters
    ----------
    mean, var, batch_mean, batch_var : array (C,)
    momentum : float
        From 0 to 1.
    num_batches : array (1,), optional
        Number of batches in the averages.

    Returns
    -------
    mean, var : array (C,)
    num_batches : array (1,) or None

    Examples
    --------
    >>> import numpy as np
    >>> old, batch = np.array([1.0]), np.array([3.0])
    >>> update_running_stats(old, old, batch, batch, 0.75)[0]
    array([1.5])
    >>> update_running_stats(old, old, batch, batch, 0.75, num_batches=np.zeros(1))
    (array([3.]), array([3.]), array([1.]))
    """
    weight: Any = momentum
    if num_batches is not None:
        xp = array_api_compat.array_namespace(num_batches)
        num_batches = num_batches + 1
        if 0 < momentum < 1:  # m * (1 - m**(t - 1)) / (1 - m**t)
            weight = momentum * xp.expm1((num_batches - 1) * log(momentum)) / xp.expm1(num_batches * log(momentum))
    return weight * mean + (1 - weight) * batch_mean, weight * var + (1 - weight) * batch_var, num_batches


@operation
def moments(x: Array) -> Array:
    """Return the mean and the variance of each channel, in float64.

    Parameters
    ----------
    x : array (N, C, L)

    Returns
    -------
    array (2, C) of float64

    Examples
    --------
    >>> import numpy as np
    >>> moments(np.array([[[1.0, 3.0]]]))
    array([[2.],
           [1.]])
    """

    def tile(x: Array) -> tuple[Array]:
        xp, n = array_api_compat.array_namespace(x), x.shape[0] * x.shape[2]
        mean = xp.sum(x, axis=(0, 2), dtype=xp.float64, keepdims=True) / n
        centered = xp.astype(x, xp.float64) - mean
        var = xp.sum(centered * centered, axis=(0, 2)) / n
        return (xp.stack([xp.reshape(mean, (-1,)), var]),)

    return _by_channel(tile, x)


def join_moments(a: Array, b: Array) -> Array:
    """Return the moments of the union of two sets of equal size, given the moments of each set.

    Parameters
    ----------
    a, b : array (2, C)
        Means and variances.

    Returns
    -------
    array (2, C)

    References
    ----------
    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.

    Examples
    --------
    >>> import numpy as np
    >>> join_moments(np.array([[1.0], [0.0]]), np.array([[3.0], [0.0]]))
    array([[2.],
           [1.]])
    """
    xp = array_api_compat.array_namespace(a)
    half = (a - b) / 2
    mean_of_both = (a + b) / 2
    return xp.stack([mean_of_both[0, ...], mean_of_both[1, ...] + half[0, ...] * half[0, ...]])


@operation
def apply_moments(x: Array, moments: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """Normalise by given moments, then scale and shift: ``out = gamma * (x - mean) / sqrt(var + eps) + beta``.

    Parameters
    ----------
    x : array (N, C, L)
    moments : array (2, C) of float64
        Means and variances.
    gamma, beta : array (1, C, 1)
    eps : float

    Returns
    -------
    out : array (N, C, L)
    mean : array (1, C, 1) of float64
    inv_std : array (1, C, 1)
        In the dtype of `x`.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1, 1))
    >>> apply_moments(
    ...     np.array([[[1.0, 3.0]]]), np.array([[2.0], [1.0]]), one, 0 * one, 0.0
    ... )[0]
    array([[[-1.,  1.]]])
    """
    xp = array_api_compat.array_namespace(x)
    mean, var = (xp.reshape(moments[k, ...], (1, -1, 1)) for k in (0, 1))
    inv_std = xp.astype(1 / xp.sqrt(var + eps), x.dtype)

    def tile(x: Array, mean: Array, scale: Array, beta: Array) -> tuple[Array]:
        out = _subtract(x, mean)
        out *= scale
        out += beta
        return (out,)

    (out,) = map_tiles(x, mean, gamma * inv_std, beta, function=tile, axis=1)
    return out, mean, inv_std


@operation
def gradient_sums(dout: Array, x: Array, mean: Array, inv_std: Array) -> Array:
    """Return the sums of dout and of ``dout * xhat`` for each channel, with ``xhat = (x - mean) * inv_std``.

    Parameters
    ----------
    dout, x : array (N, C, L)
    mean, inv_std : array (1, C, 1)
        As returned by `apply_moments`.

    Returns
    -------
    array (2, C) of float64

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1, 1))
    >>> gradient_sums(np.array([[[1.0, 2.0]]]), np.array([[[1.0, 3.0]]]), 2 * one, one)
    array([[3.],
           [1.]])
    """

    def tile(dout: Array, x: Array, mean: Array, inv_std: Array) -> tuple[Array]:
        xp = array_api_compat.array_namespace(dout)
        product = _subtract(x, mean)
        product *= inv_std
        product *= dout
        return (xp.stack([xp.sum(a, axis=(0, 2), dtype=xp.float64) for a in (dout, product)]),)

    return _by_channel(tile, dout, x, mean, inv_std)


@operation
def input_gradient(dout: Array, x: Array, mean: Array, inv_std: Array, gamma: Array, means: Array) -> Array:
    """Return ``dx = gamma * inv_std * (dout - mean(dout) - xhat * mean(dout * xhat))``.

    Parameters
    ----------
    dout, x : array (N, C, L)
    mean, inv_std : array (1, C, 1)
        As returned by `apply_moments`.
    gamma : array (1, C, 1)
    means : array (2, C)
        The means of dout and of ``dout * xhat``.

    Returns
    -------
    array (N, C, L)

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1, 1))
    >>> input_gradient(
    ...     np.array([[[1.0, 2.0]]]),
    ...     np.array([[[1.0, 3.0]]]),
    ...     2 * one,
    ...     one,
    ...     one,
    ...     np.array([[1.5], [0.5]]),
    ... )
    array([[[0., 0.]]])
    """
    xp = array_api_compat.array_namespace(dout)
    mean_dout, mean_product = (xp.reshape(xp.astype(means[k, ...], dout.dtype), (1, -1, 1)) for k in (0, 1))

    def tile(dout: Array, x: Array, mean: Array, inv_std: Array, *others: Array) -> tuple[Array]:
        scale, mean_dout, mean_product = others
        dx = _subtract(x, mean)
        dx *= -inv_std * mean_product
        dx += dout
        dx -= mean_dout
        dx *= scale
        return (dx,)

    (dx,) = map_tiles(dout, x, mean, inv_std, gamma * inv_std, mean_dout, mean_product, function=tile, axis=1)
    return dx


def _by_channel(tile: Callable[..., tuple[Array]], *arrays: Array) -> Array:
    """Call a function on tiles of channels of arrays (N, C, L), and join its results (2, C)."""
    (result,) = map_tiles(*arrays, function=tile, axis=1)
    return result


def _subtract(x: Array, mean: Array) -> Array:
    """Return ``x - mean`` in the dtype of `x`; the rounding error of the float64 mean is subtracted as well."""
    xp = array_api_compat.array_namespace(x)
    rounded = xp.astype(mean, x.dtype)
    out = x - rounded
    if x.dtype != xp.float64:
        out -= xp.astype(mean - xp.astype(rounded, xp.float64), x.dtype)
    return out

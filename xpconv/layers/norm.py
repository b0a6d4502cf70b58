"""Batch, layer and group normalisation: the same formula over different axes.

Each computes ``xhat = (x - mean) / sqrt(var + eps)`` over its axes and then ``out = gamma * xhat + beta``.
Letters: N samples, C channels, D features, G groups, (H, W) image.
"""

from math import prod
from typing import Any, NamedTuple

import array_api_compat

from xpconv._validation import check_count, check_eps, check_flag, check_fraction
from xpconv.backend import Array, on_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.layers._checks import check_arrays, check_backward, check_channels_first, check_shape
from xpconv.ops.norm import (
    normalise,
    normalise_backward,
    normalise_relu,
    normalise_relu_backward,
    subtract_mean,
    update_running_stats,
)
from xpconv.ops.tiling import sum_rows

__all__ = [
    "BatchNormCache",
    "GroupNormCache",
    "LayerNormCache",
    "RunningStats",
    "batchnorm_backward",
    "batchnorm_backward_stepwise",
    "batchnorm_forward",
    "groupnorm_backward",
    "groupnorm_forward",
    "layernorm_backward",
    "layernorm_forward",
]


class RunningStats(NamedTuple):
    """Running averages of batch norm: the mean and the (biased) variance of each channel, both (C,).

    If `num_batches`, an array (1,), counts the batches in them, they are corrected for their start: after t batches
    they are the averages that started from 0, divided by ``1 - momentum**t``, as Adam corrects its moments.

    Examples
    --------
    >>> import numpy as np
    >>> x, ones, zeros = np.ones((4, 2)), np.ones(2), np.zeros(2)
    >>> batchnorm_forward(
    ...     x, ones, zeros, RunningStats(zeros, zeros), train=True, momentum=0.5
    ... )[1].running.mean
    array([0.5, 0.5])
    >>> corrected = RunningStats(zeros, zeros, np.zeros(1))
    >>> batchnorm_forward(x, ones, zeros, corrected, train=True, momentum=0.5)[
    ...     1
    ... ].running.mean
    array([1., 1.])
    """

    mean: Array
    var: Array
    num_batches: Array | None = None


class BatchNormCache(NamedTuple):
    """What the backward pass of batch norm needs, and the new running averages.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = batchnorm_forward(
    ...     np.asarray([[1.0], [3.0]]), np.ones(1), np.zeros(1), train=True
    ... )
    >>> cache.mean.shape, float(cache.mean[0, 0, 0]), cache.train
    ((1, 1, 1), 2.0, True)
    """

    x: Array
    mean: Array
    inv_std: Array
    gamma: Array
    train: bool
    running: RunningStats


class BatchNormReluCache(NamedTuple):
    """What the backward pass of batch norm and ReLU needs: `signs` are those of `normalise_relu`."""

    norm: BatchNormCache
    signs: Any


class LayerNormCache(NamedTuple):
    """What the backward pass of layer norm needs.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = layernorm_forward(
    ...     np.asarray([[1.0, 3.0], [10.0, 30.0]]), np.ones(2), np.zeros(2)
    ... )
    >>> cache.mean.tolist()
    [[2.0], [20.0]]
    """

    x: Array
    mean: Array
    inv_std: Array
    gamma: Array


class GroupNormCache(NamedTuple):
    """What the backward pass of group norm needs.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = groupnorm_forward(
    ...     np.ones((5, 4, 2, 2)), np.ones(4), np.zeros(4), groups=2
    ... )
    >>> cache.mean.shape
    (5, 2, 1, 1)
    """

    x: Array
    mean: Array
    inv_std: Array
    gamma: Array


def batchnorm_forward(
    x: Array,
    gamma: Array,
    beta: Array,
    running: RunningStats | None = None,
    *,
    train: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> tuple[Array, BatchNormCache]:
    """Normalise each channel over the batch and its pixels: ``out = gamma * (x - mean) / sqrt(var + eps) + beta``.

    In training, `mean` and `var` are those of the batch, and the running averages are updated by
    ``running = momentum * running + (1 - momentum) * batch``. In evaluation, they are the running averages.

    Parameters
    ----------
    x : array (N, C) or (N, C, H, W)
    gamma, beta : array (C,)
        Scale and shift of each channel.
    running : RunningStats or pair of arrays (C,), optional
        Running mean and variance, zeros by default. They are not modified; the cache has the new ones. With a
        number of batches, the averages are corrected for their start.
    train : bool
        Whether to normalise by the statistics of the batch.
    momentum : float
        Weight of the old running averages in the new ones, 0 to 1.
    eps : float
        Added to the variance.

    Returns
    -------
    out : array in the shape of `x`
    cache : BatchNormCache
        For `batchnorm_backward`; ``cache.running`` are the new running averages.

    Raises
    ------
    ArgumentError
        If the shapes do not match, or each channel has only one value in training.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.asarray([[1.0, 10.0], [3.0, 30.0]])
    >>> out, cache = batchnorm_forward(x, np.ones(2), np.zeros(2), train=True)
    >>> out.round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> cache.running.mean.round(3)
    array([0.2, 2. ])
    """
    out, cache = normalise_batch(x, gamma, beta, running, train=train, momentum=momentum, eps=eps)
    if train:
        _check_several(x)
    return out, cache


def _check_several(x: Array) -> None:
    if x.shape[0] * prod(x.shape[2:]) == 1:
        raise ArgumentError(
            f"x has shape {tuple(x.shape)}, one value per channel, which in training equals its "
            "mean; expected a batch of two or more: take a larger one, or train=False"
        )


def normalise_batch(
    x: Array,
    gamma: Array,
    beta: Array,
    running: RunningStats | None = None,
    *,
    train: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> tuple[Array, BatchNormCache]:
    """Compute `batchnorm_forward`, but accept a single value per channel in training: the output is then `beta`."""
    check_flag("train", train)
    xp, flat, scale, shift, running = _check_batch(x, gamma, beta, running)
    momentum, eps = check_fraction("momentum", momentum), check_eps(eps)
    if train:
        out, mean, var, inv_std = normalise(flat, scale, shift, axes=(0, 2), tile_axis=1, eps=eps)
        running = _updated(running, mean, var, momentum)
    else:
        old_mean, old_var, _ = running
        if on_host(old_var) and float(xp.min(old_var)) < 0:
            raise ArgumentError(f"running_var is {float(xp.min(old_var))} somewhere; expected variances of 0 or more")
        mean, inv_std = (xp.reshape(a, scale.shape) for a in (old_mean, 1 / xp.sqrt(old_var + eps)))
        out = (flat - mean) * (inv_std * scale) + shift
    return xp.reshape(out, x.shape), BatchNormCache(x, mean, inv_std, gamma, train, running)


def _check_batch(
    x: Array, gamma: Array, beta: Array, running: RunningStats | None
) -> tuple[Any, Array, Array, Array, RunningStats]:
    """Check arguments; return the namespace, x as (N, C, H * W), gamma and beta as (1, C, 1), and running averages."""
    xp = check_arrays(x=x, gamma=gamma, beta=beta)
    check_shape("x", x, ("N", "C", "H", "W")[: 4 if len(x.shape) == 4 else 2])
    C = x.shape[1]
    check_channels_first(x, gamma.shape)
    if running is None:
        running = RunningStats(*(xp.zeros((C,), dtype=x.dtype, device=array_api_compat.device(x)) for _ in range(2)))
    if not isinstance(running, tuple | list) or len(running) not in (2, 3):
        raise ArgumentTypeError(f"running is a {type(running).__name__}; expected a pair of arrays (mean, var)")
    old_mean, old_var, num_batches = running = RunningStats(*running)
    check_arrays(x=x, running_mean=old_mean, running_var=old_var)
    if num_batches is not None:
        check_arrays(x=x, num_batches=num_batches)
        check_shape("num_batches", num_batches, (1,))
    for name, a in {"gamma": gamma, "beta": beta, "running_mean": old_mean, "running_var": old_var}.items():
        check_shape(name, a, (C,))
    return xp, xp.reshape(x, (x.shape[0], C, -1)), *(xp.reshape(a, (1, C, 1)) for a in (gamma, beta)), running


def _updated(running: RunningStats, mean: Array, var: Array, momentum: float) -> RunningStats:
    """Return the running averages after a batch with a mean and a variance (1, C, 1)."""
    xp, (old_mean, old_var, num_batches) = array_api_compat.array_namespace(mean), running
    batch_mean, batch_var = (xp.reshape(a, (-1,)) for a in (mean, var))
    return RunningStats(*update_running_stats(old_mean, old_var, batch_mean, batch_var, momentum, num_batches))


def batchnorm_relu_forward(
    x: Array, gamma: Array, beta: Array, running: RunningStats, *, momentum: float, eps: float
) -> tuple[Array, BatchNormReluCache]:
    """Compute ``relu_forward(batchnorm_forward(x, ..., train=True))`` in fewer passes over the arrays."""
    xp, flat, scale, shift, running = _check_batch(x, gamma, beta, running)
    _check_several(x)
    out, mean, var, inv_std, signs = normalise_relu(flat, scale, shift, axes=(0, 2), tile_axis=1, eps=eps)
    norm = BatchNormCache(x, mean, inv_std, gamma, True, _updated(running, mean, var, momentum))
    return xp.reshape(out, x.shape), BatchNormReluCache(norm, signs)


def batchnorm_relu_backward(dout: Array, cache: BatchNormReluCache) -> tuple[Array, Array, Array]:
    """Compute the gradients of `batchnorm_relu_forward`, as `batchnorm_backward` returns them."""
    norm, signs = cache
    xp, dout, x, gamma = _check_and_flatten(dout, norm)
    dx, dgamma, dbeta = normalise_relu_backward(
        dout, signs, x, norm.mean, norm.inv_std, gamma, axes=(0, 2), param_axes=(0, 2), tile_axis=1
    )
    return xp.reshape(dx, norm.x.shape), xp.reshape(dgamma, (-1,)), xp.reshape(dbeta, (-1,))


def batchnorm_backward(dout: Array, cache: BatchNormCache) -> tuple[Array, Array, Array]:
    """Compute the gradients of batch norm by the simplified formula.

    ``dx = inv_std * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))`` with ``dxhat = gamma * dout``

    Parameters
    ----------
    dout : array in the shape of the layer's output
    cache : BatchNormCache
        From `batchnorm_forward`.

    Returns
    -------
    dx : array in the shape of `dout`
    dgamma, dbeta : array (C,)

    Examples
    --------
    >>> import numpy as np
    >>> x = np.asarray([[1.0, 10.0], [3.0, 30.0]])
    >>> out, cache = batchnorm_forward(x, np.ones(2), np.zeros(2), train=True)
    >>> dx, dgamma, dbeta = batchnorm_backward(np.ones_like(out), cache)
    >>> dbeta
    array([2., 2.])
    """
    xp, dout, x, gamma = _check_and_flatten(dout, cache)
    if cache.train:
        dx, dgamma, dbeta = normalise_backward(
            dout, x, cache.mean, cache.inv_std, gamma, axes=(0, 2), param_axes=(0, 2), tile_axis=1
        )
    else:  # mean and inv_std are constants
        dx, xhat = dout * (gamma * cache.inv_std), (x - cache.mean) * cache.inv_std
        dgamma, dbeta = xp.sum(dout * xhat, axis=(0, 2)), xp.sum(dout, axis=(0, 2))
    return xp.reshape(dx, cache.x.shape), xp.reshape(dgamma, (-1,)), xp.reshape(dbeta, (-1,))


def batchnorm_backward_stepwise(dout: Array, cache: BatchNormCache) -> tuple[Array, Array, Array]:
    """Compute the gradients of batch norm step by step, backwards through its computational graph.

    The graph: ``mean = sum(x) / n``, ``d = x - mean``, ``var = sum(d**2) / n``, ``inv_std = (var + eps)**-0.5``,
    ``xhat = d * inv_std``, ``out = gamma * xhat + beta``. `batchnorm_backward` needs fewer operations.

    Parameters
    ----------
    dout : array in the shape of the layer's output
    cache : BatchNormCache
        From `batchnorm_forward`.

    Returns
    -------
    dx : array in the shape of `dout`
    dgamma, dbeta : array (C,)

    Examples
    --------
    >>> import numpy as np
    >>> x = np.asarray([[1.0, 10.0], [3.0, 30.0]])
    >>> out, cache = batchnorm_forward(x, np.ones(2), np.zeros(2), train=True)
    >>> batchnorm_backward_stepwise(np.ones_like(out), cache)[2]
    array([2., 2.])
    """
    xp, dout, x, gamma = _check_and_flatten(dout, cache)
    inv_std, n = cache.inv_std, x.shape[0] * x.shape[2]
    d = subtract_mean(x, cache.mean, inv_std, (0, 2)) if cache.train else x - cache.mean
    xhat = d * inv_std

    dbeta = xp.sum(dout, axis=(0, 2))  # out = gamma * xhat + beta
    dgamma = xp.sum(dout * xhat, axis=(0, 2))
    dxhat = dout * gamma
    dx = dxhat * inv_std  # xhat = d * inv_std
    if cache.train:  # else mean and inv_std are constants
        dinv_std = xp.sum(dxhat * d, axis=(0, 2), keepdims=True)
        # inv_std = (var + eps)**-0.5:  dvar = -0.5 * inv_std**3 * dinv_std, where inv_std**3 may underflow in float32
        # var = sum(d**2) / n:          dx = dx + 2 * d / n * dvar
        dx = dx - dinv_std * inv_std * (xhat * inv_std) / n
        dmean = -xp.sum(dx, axis=(0, 2), keepdims=True)  # d = x - mean
        dx = dx + dmean / n  # mean = sum(x) / n
    return xp.reshape(dx, cache.x.shape), dgamma, dbeta


def layernorm_forward(x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5) -> tuple[Array, LayerNormCache]:
    """Normalise each sample over its features: ``out = gamma * (x - mean) / sqrt(var + eps) + beta``.

    Parameters
    ----------
    x : array (N, D) or (N, ...)
    gamma, beta : array (D,) or (...)
        Scale and shift of each feature, in the shape of one sample.
    eps : float
        Added to the variance.

    Returns
    -------
    out : array in the shape of `x`
    cache : LayerNormCache
        For `layernorm_backward`.

    Raises
    ------
    ArgumentError
        If the shapes do not match.

    References
    ----------
    Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> layernorm_forward(
    ...     np.asarray([[1.0, 3.0], [10.0, 30.0]]), np.ones(2), np.zeros(2)
    ... )[0].round(3)
    array([[-1.,  1.],
           [-1.,  1.]])
    """
    check_arrays(x=x, gamma=gamma, beta=beta)
    check_shape("x", x, ("N", "D", ...))
    check_shape("gamma", gamma, x.shape[1:])
    check_shape("beta", beta, x.shape[1:])
    axes, eps = tuple(range(1, len(x.shape))), check_eps(eps)
    out, mean, _, inv_std = normalise(x, gamma[None, ...], beta[None, ...], axes=axes, tile_axis=0, eps=eps)
    return out, LayerNormCache(x, mean, inv_std, gamma)


def layernorm_backward(dout: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Compute the gradients of layer norm.

    Parameters
    ----------
    dout : array in the shape of the layer's output
    cache : LayerNormCache
        From `layernorm_forward`.

    Returns
    -------
    dx : array in the shape of `dout`
    dgamma, dbeta : array in the shape of one sample

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = layernorm_forward(
    ...     np.asarray([[1.0, 3.0], [10.0, 30.0]]), np.ones(2), np.zeros(2)
    ... )
    >>> layernorm_backward(np.ones_like(out), cache)[2]
    array([2., 2.])
    """
    check_backward(dout, cache, LayerNormCache)
    x, mean, inv_std, gamma = cache
    axes = tuple(range(1, len(dout.shape)))
    dx, _, _ = normalise_backward(dout, x, mean, inv_std, gamma[None, ...], axes=axes, param_axes=axes, tile_axis=0)
    return dx, sum_rows(dout * (subtract_mean(x, mean, inv_std, axes) * inv_std)), sum_rows(dout)


def groupnorm_forward(
    x: Array, gamma: Array, beta: Array, *, groups: int, eps: float = 1e-5
) -> tuple[Array, GroupNormCache]:
    """Normalise each group of channels of each sample: ``out = gamma * (x - mean) / sqrt(var + eps) + beta``.

    With one group, each sample is normalised as a whole; with C groups, each channel is normalised separately
    (instance norm).

    Parameters
    ----------
    x : array (N, C, ...)
    gamma, beta : array (C,)
        Scale and shift of each channel.
    groups : int
        Number of groups G, a divisor of C.
    eps : float
        Added to the variance.

    Returns
    -------
    out : array in the shape of `x`
    cache : GroupNormCache
        For `groupnorm_backward`.

    Raises
    ------
    ArgumentError
        If the shapes do not match or `groups` does not divide the channels.

    References
    ----------
    Wu and He, "Group Normalization", 2018.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.reshape(np.arange(16.0), (1, 4, 2, 2))
    >>> out, cache = groupnorm_forward(x, np.ones(4), np.zeros(4), groups=2)
    >>> out[0, 0].round(3)
    array([[-1.528, -1.091],
           [-0.655, -0.218]])
    """
    xp = check_arrays(x=x, gamma=gamma, beta=beta)
    check_shape("x", x, ("N", "C", ...))
    C = x.shape[1]
    check_channels_first(x, gamma.shape)
    check_shape("gamma", gamma, (C,))
    check_shape("beta", beta, (C,))
    groups = check_count("groups", groups)
    if C % groups:
        raise ArgumentError(f"groups is {groups}; expected a divisor of the {C} channels of x")
    eps, grouped_shape, param_shape = check_eps(eps), (x.shape[0], groups, C // groups, -1), (1, groups, -1, 1)
    out, mean, _, inv_std = normalise(
        xp.reshape(x, grouped_shape),
        xp.reshape(gamma, param_shape),
        xp.reshape(beta, param_shape),
        axes=(2, 3),
        tile_axis=0,
        eps=eps,
    )
    return xp.reshape(out, x.shape), GroupNormCache(x, mean, inv_std, gamma)


def groupnorm_backward(dout: Array, cache: GroupNormCache) -> tuple[Array, Array, Array]:
    """Compute the gradients of group norm.

    Parameters
    ----------
    dout : array in the shape of the layer's output
    cache : GroupNormCache
        From `groupnorm_forward`.

    Returns
    -------
    dx : array in the shape of `dout`
    dgamma, dbeta : array (C,)

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = groupnorm_forward(
    ...     np.ones((1, 4, 2, 2)), np.ones(4), np.zeros(4), groups=2
    ... )
    >>> groupnorm_backward(np.ones_like(out), cache)[2]
    array([4., 4., 4., 4.])
    """
    xp = check_backward(dout, cache, GroupNormCache)
    x, mean, inv_std, gamma = cache
    groups = mean.shape[1]
    grouped_shape = (x.shape[0], groups, x.shape[1] // groups, -1)
    dx, dgamma, dbeta = normalise_backward(
        xp.reshape(dout, grouped_shape),
        xp.reshape(x, grouped_shape),
        mean,
        inv_std,
        xp.reshape(gamma, (1, groups, -1, 1)),
        axes=(2, 3),
        param_axes=(3,),
        tile_axis=0,
    )
    dgamma, dbeta = (xp.reshape(sum_rows(a), gamma.shape) for a in (dgamma, dbeta))
    return xp.reshape(dx, x.shape), dgamma, dbeta


def _check_and_flatten(dout: Array, cache: BatchNormCache) -> tuple[Any, Array, Array, Array]:
    """Check a batch norm's arguments; return the namespace, dout and x as (N, C, H * W), and gamma as (1, C, 1)."""
    xp = check_backward(dout, cache, BatchNormCache)
    N, C = dout.shape[:2]
    return xp, *(xp.reshape(a, (N, C, -1)) for a in (dout, cache.x)), xp.reshape(cache.gamma, (1, C, 1))

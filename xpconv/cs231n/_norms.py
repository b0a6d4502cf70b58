"""The assignment's normalisation layers, which `xpconv.cs231n.layers` re-exports."""

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np

from xpconv import layers as F
from xpconv.backend import Array
from xpconv.cs231n._adapt import cast_floats, cast_gradient, read_options
from xpconv.errors import ArgumentError
from xpconv.layers._checks import check_shape
from xpconv.layers.norm import normalise_batch

Options = Mapping[str, Any]
Gradients = tuple[Array, Array, Array]


class NormCache(NamedTuple):
    """The cache of the layer in `xpconv.layers`, and the shapes in which gamma and beta were passed."""

    layer_cache: Any
    gamma_shape: tuple[int, ...]
    beta_shape: tuple[int, ...]


def batchnorm_forward(
    x: Array, gamma: Array, beta: Array, bn_param: MutableMapping[str, Any]
) -> tuple[Array, NormCache]:
    """Normalise each feature of x (N, D) over the batch; see `xpconv.layers.batchnorm_forward`.

    Parameters
    ----------
    x : array (N, D)
    gamma, beta : array (D,)
    bn_param : dict
        ``mode`` 'train' or 'test', ``eps`` (1e-5), ``momentum`` (0.9), ``running_mean`` and ``running_var`` (zeros).
        The new running averages are stored in it.

    Returns
    -------
    out : array (N, D)
    cache : NormCache
        For `batchnorm_backward` and `batchnorm_backward_alt`.

    Raises
    ------
    ArgumentError
        A ValueError, if the mode is neither 'train' nor 'test' or the shapes do not fit.

    Examples
    --------
    >>> bn_param = {"mode": "train"}
    >>> out, cache = batchnorm_forward(
    ...     np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), bn_param
    ... )
    >>> bn_param["running_mean"].round(3)
    array([0.2])
    """
    (mode,) = read_options("bn_param", bn_param, "mode")
    if mode not in ("train", "test"):
        raise ArgumentError(f'Invalid forward batchnorm mode "{mode}"; expected train or test')
    zeros = np.zeros(np.shape(x)[1:2])
    running = F.RunningStats(
        *cast_floats(
            x, running_mean=bn_param.get("running_mean", zeros), running_var=bn_param.get("running_var", zeros)
        )
    )
    out, cache = _norm_forward(
        normalise_batch,
        x,
        gamma,
        beta,
        running=running,
        train=mode == "train",
        momentum=bn_param.get("momentum", 0.9),
        eps=bn_param.get("eps", 1e-5),
    )
    bn_param["running_mean"], bn_param["running_var"] = cache.layer_cache.running[:2]
    return out, cache


def batchnorm_backward(dout: Array, cache: NormCache) -> Gradients:
    """Return dx, dgamma, dbeta, step by step through the computational graph.

    Examples
    --------
    >>> out, cache = batchnorm_forward(
    ...     np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), {"mode": "train"}
    ... )
    >>> batchnorm_backward(np.ones((2, 1)), cache)[2]
    array([2.])
    """
    return _norm_backward(F.batchnorm_backward_stepwise, dout, cache)


def batchnorm_backward_alt(dout: Array, cache: NormCache) -> Gradients:
    """Return dx, dgamma, dbeta by the formula simplified on paper.

    Examples
    --------
    >>> out, cache = batchnorm_forward(
    ...     np.array([[1.0], [3.0]]), np.ones(1), np.zeros(1), {"mode": "train"}
    ... )
    >>> batchnorm_backward_alt(np.ones((2, 1)), cache)[2]
    array([2.])
    """
    return _norm_backward(F.batchnorm_backward, dout, cache)


def layernorm_forward(x: Array, gamma: Array, beta: Array, ln_param: Options) -> tuple[Array, NormCache]:
    """Normalise each sample of x (N, D) over its features; gamma and beta (D,).

    Examples
    --------
    >>> layernorm_forward(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), {})[0].round(
    ...     3
    ... )
    array([[-1.,  1.]])
    """
    check_shape("x", np.asarray(x), ("N", "D"))
    return _norm_forward(F.layernorm_forward, x, gamma, beta, eps=ln_param.get("eps", 1e-5))


def layernorm_backward(dout: Array, cache: NormCache) -> Gradients:
    """Return dx, dgamma, dbeta of `layernorm_forward`.

    Examples
    --------
    >>> out, cache = layernorm_forward(
    ...     np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), {}
    ... )
    >>> layernorm_backward(np.ones((1, 2)), cache)[2]
    array([1., 1.])
    """
    return _norm_backward(F.layernorm_backward, dout, cache)


def spatial_batchnorm_forward(
    x: Array, gamma: Array, beta: Array, bn_param: MutableMapping[str, Any]
) -> tuple[Array, NormCache]:
    """Normalise each channel of x (N, C, H, W) over batch and pixels; otherwise as `batchnorm_forward`.

    Examples
    --------
    >>> x = np.random.randn(2, 3, 4, 5)
    >>> out, cache = spatial_batchnorm_forward(
    ...     x, np.array([3, 4, 5]), np.array([6, 7, 8]), {"mode": "train"}
    ... )
    >>> out.mean(axis=(0, 2, 3)).round(6)
    array([6., 7., 8.])
    """
    check_shape("x", np.asarray(x), ("N", "C", "H", "W"))
    return batchnorm_forward(x, gamma, beta, bn_param)


def spatial_batchnorm_backward(dout: Array, cache: NormCache) -> Gradients:
    """Return dx, dgamma, dbeta of `spatial_batchnorm_forward`.

    Examples
    --------
    >>> x = np.random.randn(2, 3, 4, 5)
    >>> out, cache = spatial_batchnorm_forward(
    ...     x, np.ones(3), np.zeros(3), {"mode": "train"}
    ... )
    >>> spatial_batchnorm_backward(np.ones_like(out), cache)[2]
    array([40., 40., 40.])
    """
    return batchnorm_backward_alt(dout, cache)


def spatial_groupnorm_forward(
    x: Array, gamma: Array, beta: Array, G: int, gn_param: Options
) -> tuple[Array, NormCache]:
    """Normalise each of G groups of channels of each sample of x (N, C, H, W).

    Parameters
    ----------
    x : array (N, C, H, W)
    gamma, beta : array (C,) or (1, C, 1, 1)
        Their gradients have the same shape.
    G : int
        A divisor of C.
    gn_param : dict
        ``eps`` (1e-5).

    Examples
    --------
    >>> gamma, beta = np.ones((1, 6, 1, 1)), np.zeros((1, 6, 1, 1))
    >>> out, cache = spatial_groupnorm_forward(
    ...     np.random.randn(2, 6, 4, 5), gamma, beta, 2, {}
    ... )
    >>> spatial_groupnorm_backward(out, cache)[1].shape
    (1, 6, 1, 1)
    """
    check_shape("x", np.asarray(x), ("N", "C", "H", "W"))
    (groups,) = read_options("gn_param", {**gn_param, "G": G}, "G")
    return _norm_forward(F.groupnorm_forward, x, gamma, beta, groups=groups, eps=gn_param.get("eps", 1e-5))


def spatial_groupnorm_backward(dout: Array, cache: NormCache) -> Gradients:
    """Return dx, dgamma, dbeta of `spatial_groupnorm_forward`.

    Examples
    --------
    >>> x, gamma, beta = np.random.randn(2, 6, 4, 5), np.ones(6), np.zeros(6)
    >>> out, cache = spatial_groupnorm_forward(x, gamma, beta, 2, {})
    >>> [gradient.shape for gradient in spatial_groupnorm_backward(out, cache)]
    [(2, 6, 4, 5), (6,), (6,)]
    """
    return _norm_backward(F.groupnorm_backward, dout, cache)


def _norm_forward(
    forward: Callable[..., tuple[Array, Any]], x: Array, gamma: Array, beta: Array, **options: Any
) -> tuple[Array, NormCache]:
    x, flat_gamma, flat_beta = cast_floats(x=x, gamma=gamma, beta=beta)
    out, layer_cache = forward(x, np.reshape(flat_gamma, -1), np.reshape(flat_beta, -1), **options)
    return out, NormCache(layer_cache, np.shape(gamma), np.shape(beta))


def _norm_backward(backward: Callable[..., Gradients], dout: Array, cache: NormCache) -> Gradients:
    dx, dgamma, dbeta = backward(cast_gradient(dout, cache.layer_cache.x), cache.layer_cache)
    return dx, np.reshape(np.asarray(dgamma), cache.gamma_shape), np.reshape(np.asarray(dbeta), cache.beta_shape)

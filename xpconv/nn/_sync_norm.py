"""Batch norm of a minibatch that is cut into parts, by the statistics of the whole minibatch.

The parts join their means and variances in the forward pass, and their sums of dout and ``dout * xhat`` in the backward
pass, all in float64.
"""

from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.layers import BatchNormCache, RunningStats
from xpconv.nn._parts import Join, Pass, add_arrays
from xpconv.ops.norm import (
    apply_moments,
    gradient_sums,
    input_gradient,
    join_moments,
    moments,
    update_running_stats,
)

__all__ = ["synced_batchnorm_backward", "synced_batchnorm_forward"]


def synced_batchnorm_forward(
    x: Array, gamma: Array, beta: Array, *, running: RunningStats, momentum: float, eps: float
) -> Pass:
    """Return what `batchnorm_forward` returns in training, for one part; the statistics are those of all parts."""
    xp, C = array_api_compat.array_namespace(x), x.shape[1]
    flat = xp.reshape(x, (x.shape[0], C, -1))
    joined = yield Join(moments(flat), join_moments)
    scale, shift = (xp.reshape(a, (1, C, 1)) for a in (gamma, beta))
    out, mean, inv_std = apply_moments(flat, joined, scale, shift, eps)
    batch_mean, batch_var = (xp.astype(joined[k, ...], gamma.dtype) for k in (0, 1))
    old_mean, old_var, num_batches = running
    running = RunningStats(*update_running_stats(old_mean, old_var, batch_mean, batch_var, momentum, num_batches))
    return xp.reshape(out, x.shape), BatchNormCache(x, mean, inv_std, gamma, True, running)


def synced_batchnorm_backward(dout: Array, cache: BatchNormCache, count: int) -> Pass:
    """Return the gradients of `synced_batchnorm_forward` for one of `count` parts.

    The gradients of gamma and beta are this part's terms of the sums over the minibatch.
    """
    xp: Any = array_api_compat.array_namespace(dout)
    N, C = dout.shape[:2]
    dout, x = (xp.reshape(a, (N, C, -1)) for a in (dout, cache.x))
    own = gradient_sums(dout, x, cache.mean, cache.inv_std)
    joined = yield Join(own, add_arrays)
    means = joined / (count * N * x.shape[2])
    dx = input_gradient(dout, x, cache.mean, cache.inv_std, xp.reshape(cache.gamma, (1, C, 1)), means)
    dbeta, dgamma = (xp.astype(own[k, ...], cache.gamma.dtype) for k in (0, 1))
    return xp.reshape(dx, cache.x.shape), dgamma, dbeta

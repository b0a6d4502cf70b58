"""Losses: softmax cross-entropy, and the L2 penalty on weights.

Letters: N samples, C classes.
"""

from collections.abc import Sequence
from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation
from xpconv.ops.tiling import map_tiles, sum_in_blocks, sum_of_squares
from xpconv.ops.update import ignore_underflow

__all__ = ["add_l2_penalty", "cross_entropy", "softmax", "softmax_cross_entropy"]


@operation
def softmax_cross_entropy(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the cross-entropy loss of each sample and the gradient of the mean loss.

    ``losses[n] = -log(p[n, y[n]])`` with ``p = exp(x) / sum(exp(x))``; ``dx = (p - onehot(y)) / N``. The largest score
    of each sample is subtracted first, so that ``exp`` does not overflow.

    Parameters
    ----------
    x : array (N, C)
        Scores.
    y : array (N,) of integers
        Labels, 0 to C - 1. The loss of a sample whose label on a device is out of range is NaN.

    Returns
    -------
    losses : array (N,)
    dx : array (N, C)

    Examples
    --------
    >>> import numpy as np
    >>> losses, dx = softmax_cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> losses.round(3), dx
    (array([1.386]), array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    xp = array_api_compat.array_namespace(x)
    correct, N = _correct(xp, x, y), x.shape[0]
    shifted = x - xp.max(x, axis=1, keepdims=True)
    p = xp.exp(shifted)
    total = xp.sum(p, axis=1, keepdims=True)
    losses = xp.log(total[:, 0]) - xp.sum(_pick(xp, shifted, correct), axis=1)
    losses = xp.where(xp.any(correct, axis=1), losses, xp.full_like(losses, xp.nan))
    p *= 1 / (total * N)
    p -= xp.astype(correct, x.dtype) / N
    return losses, p


def softmax(x: Array) -> Array:
    """Return ``exp(x) / sum(exp(x))`` over the last axis, without overflow.

    Parameters
    ----------
    x : array (..., C)

    Examples
    --------
    >>> import numpy as np
    >>> softmax(np.array([1000.0, 1000.0]))
    array([0.5, 0.5])
    """
    xp = array_api_compat.array_namespace(x)
    with ignore_underflow():  # The exponential of a low score may become 0.
        p = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
        return p / xp.sum(p, axis=-1, keepdims=True)


@operation
def cross_entropy(x: Array, targets: Array, divisor: Array) -> tuple[Array, Array]:
    """Return the cross-entropy loss of each sample for any targets, and the gradient of ``sum(losses) / divisor``.

    ``losses[n] = -sum over c of targets[n, c] * log(p[n, c])`` with ``p = exp(x) / sum(exp(x))``;
    ``dx = (p * sum over c of targets - targets) / divisor``. A target of 0 adds 0 even where log(p) is infinite.

    Parameters
    ----------
    x : array (N, C)
        Scores.
    targets : array (N, C)
        Nonnegative numbers, such as probabilities times class weights; a row may have any sum.
    divisor : array ()

    Returns
    -------
    losses : array (N,)
    dx : array (N, C)

    Examples
    --------
    >>> import numpy as np
    >>> losses, dx = cross_entropy(
    ...     np.zeros((1, 2)), np.array([[3.0, 1.0]]), np.asarray(2.0)
    ... )
    >>> losses.round(3), dx
    (array([2.773]), array([[-0.5,  0.5]]))
    """
    xp = array_api_compat.array_namespace(x)

    def tile(x: Array, targets: Array) -> tuple[Array, Array]:
        shifted = x - xp.max(x, axis=1, keepdims=True)
        p = xp.exp(shifted)
        total = xp.sum(p, axis=1, keepdims=True)
        losses = xp.sum(targets * _pick(xp, xp.log(total) - shifted, targets != 0), axis=1)
        return losses, (p * (xp.sum(targets, axis=1, keepdims=True) / total) - targets) / divisor

    losses, dx = map_tiles(x, targets, function=tile, axis=0)
    return losses, dx


@operation
def add_l2_penalty(loss: Array, weights: Sequence[Array], grads: Sequence[Array], reg: float) -> Array:
    """Return the loss plus an L2 penalty, and add the gradient of the penalty to each weight's gradient in place.

    ``loss + 0.5 * reg * sum(W * W)`` summed over all weights; ``grad += reg * W``.

    Parameters
    ----------
    loss : array ()
    weights : sequence of arrays
    grads : sequence of arrays
        The gradient of each weight, of its shape; changed in place.
    reg : float
        Strength of the penalty.

    Returns
    -------
    array ()

    Examples
    --------
    >>> import numpy as np
    >>> grad = np.zeros(2)
    >>> (
    ...     float(
    ...         add_l2_penalty(np.asarray(1.0), [np.array([1.0, 2.0])], [grad], reg=0.5)
    ...     ),
    ...     grad,
    ... )
    (2.25, array([0.5, 1. ]))
    """
    reg = float(reg)

    def add(grad: Array, W: Array) -> Array:
        grad += reg * W
        return sum_of_squares(W)

    for W, grad in zip(weights, grads, strict=True):
        loss = loss + 0.5 * reg * sum_in_blocks(grad, W, term=add)
    return loss


def _correct(xp: Any, x: Array, y: Array) -> Array:
    """Return booleans (N, C), True at the correct class of each sample."""
    classes = xp.arange(x.shape[1], dtype=xp.int64, device=array_api_compat.device(x))
    return xp.astype(y, xp.int64)[:, None] == classes[None, :]  # the labels' dtype may not hold C - 1


def _pick(xp: Any, x: Array, where: Array) -> Array:
    return xp.where(where, x, xp.zeros((), dtype=x.dtype, device=array_api_compat.device(x)))

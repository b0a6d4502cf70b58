"""Losses: softmax cross-entropy, and the L2 penalty on weights."""

from collections.abc import Sequence
from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation
from xpconv.ops.tiling import sum_in_blocks, sum_of_squares

__all__ = ["add_l2_penalty", "softmax_cross_entropy"]


@operation
def softmax_cross_entropy(x: Array, y: Array) -> tuple[Array, Array]:
    """Return each sample's loss (N,) and the gradient of their mean."""
    xp = array_api_compat.array_namespace(x)
    correct, N = _correct(xp, x, y), x.shape[0]
    shifted = x - xp.max(x, axis=1, keepdims=True)
    p = xp.exp(shifted)
    total = xp.sum(p, axis=1, keepdims=True)
    losses = xp.log(total[:, 0]) - xp.sum(_pick(xp, shifted, correct), axis=1)
    p *= 1 / (total * N)
    p -= xp.astype(correct, x.dtype) / N
    return losses, p


@operation
def add_l2_penalty(loss: Array, weights: Sequence[Array], grads: Sequence[Array], reg: float) -> Array:
    """Return the loss plus ``0.5 * reg * sum(W * W)`` over all weights; add its gradients to theirs in place."""
    reg = float(reg)

    def add(grad: Array, W: Array) -> Array:
        grad += reg * W
        return sum_of_squares(W)

    for W, grad in zip(weights, grads, strict=True):
        loss = loss + 0.5 * reg * sum_in_blocks(grad, W, term=add)
    return loss


def _correct(xp: Any, x: Array, y: Array) -> Array:
    """Return where the correct class is, (N, C) booleans; the dtype of the labels may be too small to count to C."""
    classes = xp.arange(x.shape[1], dtype=xp.int64, device=array_api_compat.device(x))
    return xp.astype(y, xp.int64)[:, None] == classes[None, :]


def _pick(xp: Any, x: Array, where: Array) -> Array:
    return xp.where(where, x, xp.zeros((), dtype=x.dtype, device=array_api_compat.device(x)))

"""Loss functions: each returns the loss and its gradient with respect to the scores.

Letters: N samples, C classes.
"""

from typing import Any

import array_api_compat

from xpconv import ops
from xpconv.backend import Array, array_namespace
from xpconv.layers._checks import check_arrays, check_labels, check_shape
from xpconv.ops.update import ignore_underflow

__all__ = ["softmax_loss", "svm_loss"]


def softmax_loss(x: Array, y: Array) -> tuple[Array, Array]:
    """Compute the cross-entropy of softmax probabilities and its gradient.

    ``loss = mean over n of -log(p[n, y[n]])`` with ``p = exp(x) / sum(exp(x))``; ``dx = (p - onehot(y)) / N``

    Parameters
    ----------
    x : array (N, C)
        Scores. Each row's maximum is subtracted first, so large scores do not overflow.
    y : array (N,) of integers
        Labels, 0 to C - 1.

    Returns
    -------
    loss : array ()
        On the device of `x`.
    dx : array (N, C)

    Raises
    ------
    ArgumentError
        If the shapes do not match, or a label in host memory is out of range. Labels on a device are not read, since
        that would wait for the device.

    Examples
    --------
    >>> import numpy as np
    >>> loss, dx = softmax_loss(np.zeros((2, 10)), np.asarray([3, 7]))
    >>> round(float(loss), 6)
    2.302585
    """
    xp = _check_scores(x, y)
    with ignore_underflow():  # The exponential of a low score may become 0.
        losses, dx = ops.softmax_cross_entropy(x, y)
    return xp.mean(losses), dx


def svm_loss(x: Array, y: Array) -> tuple[Array, Array]:
    """Compute the multiclass hinge loss and its gradient.

    ``loss = mean over n of sum over j != y[n] of max(0, x[n, j] - x[n, y[n]] + 1)``

    Parameters
    ----------
    x : array (N, C)
        Scores.
    y : array (N,) of integers
        Labels, 0 to C - 1.

    Returns
    -------
    loss : array ()
        On the device of `x`.
    dx : array (N, C)

    Raises
    ------
    ArgumentError
        If the shapes do not match, or a label in host memory is out of range. Labels on a device are not read, since
        that would wait for the device.

    References
    ----------
    Weston and Watkins, "Support Vector Machines for Multi-Class Pattern Recognition", 1999.

    Examples
    --------
    >>> import numpy as np
    >>> loss, dx = svm_loss(np.zeros((2, 10)), np.asarray([3, 7]))
    >>> float(loss)
    9.0
    """
    xp = _check_scores(x, y)
    N, correct = x.shape[0], _one_hot(xp, x, y)
    zero = xp.zeros((), dtype=x.dtype, device=array_api_compat.device(x))
    correct_score = xp.sum(xp.where(correct, x, zero), axis=1, keepdims=True)
    margins = xp.where(correct, zero, xp.maximum(x - correct_score + 1, zero))
    violated = xp.astype(margins > 0, x.dtype)
    count = xp.sum(violated, axis=1, keepdims=True)
    return xp.sum(margins) / N, xp.where(correct, -count, violated) / N


def _check_scores(x: Array, y: Array) -> Any:
    """Check scores and labels; return their namespace."""
    xp = check_arrays(x=x)
    array_namespace(x=x, y=y)
    check_shape("x", x, ("N", "C"))
    N, C = x.shape
    check_labels(y, N, C, xp)
    return xp


def _one_hot(xp: Any, x: Array, y: Array) -> Array:
    """Return (N, C) booleans, True at each row's label. Labels are cast, since their dtype may be too small for C."""
    classes = xp.arange(x.shape[1], dtype=xp.int64, device=array_api_compat.device(x))
    return xp.astype(y, xp.int64)[:, None] == classes[None, :]

"""Loss functions: each returns the loss and its gradient with respect to the scores.

Letters: N samples, C classes.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import array_api_compat

from xpconv import ops
from xpconv._validation import check_choice, check_fraction, check_nonnegative
from xpconv.backend import Array, array_namespace, on_host
from xpconv.errors import ArgumentError
from xpconv.layers._checks import check_arrays, check_labels, check_probabilities, check_shape
from xpconv.ops.update import ignore_underflow

__all__ = ["softmax_loss", "svm_loss"]

ClassWeights: TypeAlias = Array | Sequence[float]


def softmax_loss(
    x: Array,
    y: Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: ClassWeights | None = None,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """Compute the cross-entropy of softmax probabilities and its gradient.

    ``loss = mean over n of -log(p[n, y[n]])`` with ``p = exp(x) / sum(exp(x))``; ``dx = (p - onehot(y)) / N``

    In general, ``loss = sum over n, c of -class_weights[c] * t[n, c] * log(p[n, c]) / D`` with the targets
    ``t = (1 - label_smoothing) * q + label_smoothing / C``, where q is onehot(y) or the probabilities y. D is 1 for the
    sum. For the mean, D is the sum over n of ``class_weights[y[n]]`` for labels and N for probabilities, as in PyTorch.

    Parameters
    ----------
    x : array (N, C)
        Scores. Each row's maximum is subtracted first, so large scores do not overflow.
    y : array (N,) of integers, or array (N, C)
        Labels, 0 to C - 1, or the probability of each class in the dtype of `x`.
    label_smoothing : float
        Part of each target that is spread evenly over the classes, 0 to 1 (Szegedy et al., 2016).
    class_weights : array (C,) or sequence of float, optional
        Weight of each class, 0 or more; 1 by default. If all weights in a mean are 0, so are its loss and gradient.
    reduction : {"mean", "sum"}

    Returns
    -------
    loss : array ()
        On the device of `x`.
    dx : array (N, C)

    Raises
    ------
    ArgumentError
        If the shapes do not match, or in host memory a label is out of range, probabilities do not add up to 1 or a
        weight is negative. Values on a device are not read, since that would wait for the device; if a label there is
        out of range, the loss is NaN.

    References
    ----------
    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, section 7.

    Examples
    --------
    >>> import numpy as np
    >>> loss, dx = softmax_loss(np.zeros((2, 10)), np.asarray([3, 7]))
    >>> round(float(loss), 6)
    2.302585
    >>> loss, dx = softmax_loss(
    ...     np.zeros((1, 2)),
    ...     np.asarray([[0.3, 0.7]]),
    ...     label_smoothing=0.1,
    ...     class_weights=[1, 2],
    ... )
    >>> round(float(loss), 6)
    1.164487
    """
    xp = check_arrays(x=x)
    is_probabilities = _check_scores(xp, x, y, probabilities=True)
    label_smoothing = check_fraction("label_smoothing", label_smoothing)
    check_choice("reduction", reduction, ("mean", "sum"))
    weights = _class_weights(xp, x, class_weights)
    with ignore_underflow():  # The exponential of a low score may become 0.
        if not (is_probabilities or label_smoothing or weights is not None or reduction == "sum"):
            losses, dx = ops.softmax_cross_entropy(x, y)
            return xp.mean(losses), dx
        correct = None if is_probabilities else _one_hot(xp, x, y)
        targets, divisor = _targets(xp, x, y if correct is None else correct, label_smoothing, weights, reduction)
        losses, dx = ops.cross_entropy(x, targets, divisor)
    return _nan_without_labels(xp, xp.sum(losses) / divisor, y, correct), dx


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
        that would wait for the device; if one is out of range, the loss is NaN.

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
    xp = check_arrays(x=x)
    _check_scores(xp, x, y)
    N, correct = x.shape[0], _one_hot(xp, x, y)
    zero = xp.zeros((), dtype=x.dtype, device=array_api_compat.device(x))
    correct_score = xp.sum(xp.where(correct, x, zero), axis=1, keepdims=True)
    margins = xp.where(correct, zero, xp.maximum(x - correct_score + 1, zero))
    violated = xp.astype(margins > 0, x.dtype)
    count = xp.sum(violated, axis=1, keepdims=True)
    return _nan_without_labels(xp, xp.sum(margins) / N, y, correct), xp.where(correct, -count, violated) / N


def _check_scores(xp: Any, x: Array, y: Array, probabilities: bool = False) -> bool:
    """Check scores and labels; return whether `y` holds probabilities, which the caller must allow."""
    array_namespace(x=x, y=y)
    check_shape("x", x, ("N", "C"))
    N, C = x.shape
    if probabilities and y is not None and len(y.shape) == 2 and xp.isdtype(y.dtype, "real floating"):
        check_probabilities(x, y)
        return True
    check_labels(y, N, C, xp)
    return False


def _class_weights(xp: Any, x: Array, class_weights: ClassWeights | None) -> Array | None:
    """Check weights, if they are in host memory, and return them as an array like `x`."""
    if class_weights is None:
        return None
    weights: Any = class_weights
    if isinstance(class_weights, list | tuple):
        numbers = [check_nonnegative("class_weights", weight) for weight in class_weights]
        weights = xp.asarray(numbers, dtype=x.dtype, device=array_api_compat.device(x))
    check_arrays(x=x, class_weights=weights)
    check_shape("class_weights", weights, (x.shape[1],))
    if on_host(weights) and not (bool(xp.all(weights >= 0)) and bool(xp.all(xp.isfinite(weights)))):
        raise ArgumentError("class_weights has a negative, infinite or NaN weight; expected finite weights, 0 or more")
    return weights


def _targets(
    xp: Any, x: Array, y: Array, label_smoothing: float, weights: Array | None, reduction: str
) -> tuple[Array, Array]:
    """Return each class's weighted target (N, C), and the number by which the sum of the losses is divided.

    `y` (N, C) is the probability of each class, or whether it is the label.
    """
    targets, is_probabilities = xp.astype(y, x.dtype, copy=False), not xp.isdtype(y.dtype, "bool")
    divisor = xp.asarray(x.shape[0] if reduction == "mean" else 1, dtype=x.dtype, device=array_api_compat.device(x))
    if weights is not None and not is_probabilities and reduction == "mean":
        total = xp.sum(targets * weights)
        divisor = xp.where(total == 0, xp.ones_like(total), total)
    if label_smoothing:
        targets = targets * (1 - label_smoothing) + label_smoothing / x.shape[1]
    return targets if weights is None else targets * weights, divisor


def _one_hot(xp: Any, x: Array, y: Array) -> Array:
    """Return (N, C) booleans, True at each row's label. Labels are cast, since their dtype may be too small for C."""
    classes = xp.arange(x.shape[1], dtype=xp.int64, device=array_api_compat.device(x))
    return xp.astype(y, xp.int64)[:, None] == classes[None, :]


def _nan_without_labels(xp: Any, loss: Array, y: Array, correct: Array | None) -> Array:
    """Return the loss, or NaN if a label on a device is out of range, since only labels on the host are checked."""
    if correct is None or on_host(y):
        return loss
    return xp.where(xp.all(xp.any(correct, axis=1)), loss, xp.full_like(loss, xp.nan))

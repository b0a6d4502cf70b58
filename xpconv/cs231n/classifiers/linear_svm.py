"""The assignment's loss of a linear support vector machine."""

import numpy as np

from xpconv.cs231n._adapt import l2_penalty
from xpconv.cs231n.classifiers._checks import check_batch
from xpconv.cs231n.layers import svm_loss

__all__ = ["svm_loss_naive", "svm_loss_vectorized"]


def svm_loss_naive(W: np.ndarray, X: np.ndarray, y: np.ndarray, reg: float) -> tuple[float, np.ndarray]:
    """Return the loss and the gradient of W, with loops over samples and classes; see `svm_loss_vectorized`.

    Examples
    --------
    >>> svm_loss_naive(np.zeros((3, 10)), np.ones((2, 3)), np.array([3, 7]), 0.0)[0]
    9.0
    """
    W, X, y, reg = check_batch(W, X, y, reg)
    N, C = len(X), W.shape[1]
    loss, dW = 0.0, np.zeros_like(W)
    for x, label in zip(X, y, strict=True):
        scores = x @ W
        for j in range(C):
            margin = float(scores[j] - scores[label] + 1)
            if j != label and margin > 0:
                loss += margin
                dW[:, j] += x
                dW[:, label] -= x
    penalty, dpenalty = l2_penalty(W, reg)
    return loss / N + penalty, dW / N + dpenalty


def svm_loss_vectorized(W: np.ndarray, X: np.ndarray, y: np.ndarray, reg: float) -> tuple[float, np.ndarray]:
    """Return the multiclass hinge loss of a linear classifier, and the gradient of its weights.

    ``loss = mean over n of sum over j != y[n] of max(0, s[n, j] - s[n, y[n]] + 1) + reg * sum(W * W)``
    with the scores ``s = X @ W``

    Parameters
    ----------
    W : array (D, C)
        Weights.
    X : array (N, D)
        Samples.
    y : array (N,) of integers
        Labels, 0 to C - 1.
    reg : float
        Weight of the regularisation, half of it if `xpconv.cs231n.edition` is 2016 or less.

    Returns
    -------
    loss : float
    dW : array (D, C)
        In the dtype of `W`, or float64 if `W` has integers.

    Raises
    ------
    ArgumentError
        If the shapes do not match, a label is out of range, or `reg` is negative or not finite.

    Examples
    --------
    >>> loss, dW = svm_loss_vectorized(
    ...     np.zeros((3, 10)), np.ones((2, 3)), np.array([3, 7]), 0.0
    ... )
    >>> loss, dW[0, [0, 3]]
    (9.0, array([ 1., -4.]))
    """
    W, X, y, reg = check_batch(W, X, y, reg)
    loss, dscores = svm_loss(X @ W, y)
    penalty, dpenalty = l2_penalty(W, reg)
    return loss + penalty, X.T @ dscores + dpenalty

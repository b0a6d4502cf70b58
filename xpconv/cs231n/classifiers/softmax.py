"""The assignment's loss of a linear softmax classifier."""

import numpy as np

from xpconv.cs231n._adapt import l2_penalty
from xpconv.cs231n.classifiers._checks import check_batch
from xpconv.cs231n.layers import softmax_loss

__all__ = ["softmax_loss_naive", "softmax_loss_vectorized"]


def softmax_loss_naive(W: np.ndarray, X: np.ndarray, y: np.ndarray, reg: float) -> tuple[float, np.ndarray]:
    """Return the loss and the gradient of W, with loops over samples and classes; see `softmax_loss_vectorized`.

    Examples
    --------
    >>> round(
    ...     softmax_loss_naive(
    ...         np.zeros((3, 10)), np.ones((2, 3)), np.array([3, 7]), 0.0
    ...     )[0],
    ...     6,
    ... )
    2.302585
    """
    W, X, y, reg = check_batch(W, X, y, reg)
    N, C = len(X), W.shape[1]
    loss, dW = 0.0, np.zeros_like(W)
    for x, label in zip(X, y, strict=True):
        scores = x @ W
        shifted = scores - np.max(scores)  # so that exp does not overflow
        total = np.sum(np.exp(shifted))
        loss += float(np.log(total) - shifted[label])
        for j in range(C):
            probability = np.exp(shifted[j]) / total
            dW[:, j] += (probability - (j == label)) * x
    penalty, dpenalty = l2_penalty(W, reg)
    return loss / N + penalty, dW / N + dpenalty


def softmax_loss_vectorized(W: np.ndarray, X: np.ndarray, y: np.ndarray, reg: float) -> tuple[float, np.ndarray]:
    """Return the cross-entropy of a linear classifier's softmax probabilities, and the gradient of its weights.

    ``loss = mean over n of -log(p[n, y[n]]) + reg * sum(W * W)`` with ``p = softmax(X @ W)``

    Arguments, results and errors are those of `svm_loss_vectorized`.

    Examples
    --------
    >>> loss, dW = softmax_loss_vectorized(
    ...     np.zeros((3, 10)), np.ones((2, 3)), np.array([3, 7]), 0.0
    ... )
    >>> round(loss, 6), dW[0, [0, 3]]
    (2.302585, array([ 0.1, -0.4]))
    """
    W, X, y, reg = check_batch(W, X, y, reg)
    loss, dscores = softmax_loss(X @ W, y)
    penalty, dpenalty = l2_penalty(W, reg)
    return loss + penalty, X.T @ dscores + dpenalty

"""Accuracy and probabilities of a model, computed in batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from xpconv.backend import Array, Backend, backend_of, to_host
from xpconv.errors import ArgumentError

__all__ = ["accuracy", "checks_since_best", "probabilities", "take_rows"]


def accuracy(
    model: Any, X: Array, y: Array, backend: Backend, batch_size: int = 100, rows: np.ndarray | None = None
) -> float:
    """Return the fraction of samples whose highest score is that of their label.

    Hits are counted on the device, and the host waits once.

    Parameters
    ----------
    model : object
        Its ``loss(X)`` returns scores (N, C).
    X : array (N, ...)
    y : array (N,) of integers
    backend : Backend
        The backend of the model.
    batch_size : int
        Samples per forward pass.
    rows : array (M,) of integers, optional
        Use these samples instead of all.

    Returns
    -------
    float
        0 to 1.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> net = TwoLayerNet(input_dim=4, num_classes=3, rng=0)
    >>> X = np.ones((6, 4))
    >>> accuracy(net, X, np.full(6, int(np.argmax(net.loss(X)[0]))), net.backend)
    1.0
    """
    if X.shape[0] != y.shape[0]:
        raise ArgumentError(f"X has {X.shape[0]} samples but y has {y.shape[0]} labels; expected one label for each")
    if rows is not None:
        X, y = take_rows(X, rows), take_rows(y, rows)
    xp, N, correct = backend.xp, X.shape[0], None
    for start in range(0, N, batch_size):
        scores = model.loss(X[start : min(start + batch_size, N), ...])
        labels = backend.asarray(y[start : min(start + batch_size, N)])
        hits = xp.sum(xp.astype(xp.argmax(scores, axis=1) == xp.astype(labels, xp.int64), xp.int64))
        correct = hits if correct is None else correct + hits
    return float(int(to_host(correct)) / N)


def take_rows(a: Array, rows: np.ndarray) -> Array:
    """Return some rows of an array, on its device.

    Examples
    --------
    >>> take_rows(np.array([1.5, 2.5, 3.5]), np.array([2, 0]))
    array([3.5, 1.5])
    """
    backend = backend_of(a)
    return backend.xp.take(a, backend.asarray(rows), axis=0)


def checks_since_best(accuracies: Sequence[float]) -> int:
    """Return the number of checks of the accuracy since the best one, the first of tied ones.

    Examples
    --------
    >>> checks_since_best([0.1, 0.7, 0.6, 0.7]), checks_since_best([])
    (2, 0)
    """
    return len(accuracies) - 1 - accuracies.index(max(accuracies)) if accuracies else 0


def probabilities(model: Any, X: Array, batch_size: int = 500) -> np.ndarray:
    """Return the softmax of a model's scores, in host memory.

    Parameters
    ----------
    model : object
        Its ``loss(X)`` returns scores (N, C).
    X : array (N, ...)
    batch_size : int
        Samples per forward pass.

    Returns
    -------
    numpy.ndarray (N, C)
        In float64; the sum of each row is 1.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> probabilities(TwoLayerNet(input_dim=4, num_classes=3, rng=0), np.zeros((1, 4))).round(3)
    array([[0.333, 0.333, 0.333]])
    """
    N = X.shape[0]
    scores = [to_host(model.loss(X[start : min(start + batch_size, N), ...])) for start in range(0, N, batch_size)]
    joined = np.concatenate(scores).astype(np.float64)
    probs = np.exp(joined - joined.max(axis=1, keepdims=True))
    return np.asarray(probs / probs.sum(axis=1, keepdims=True))

"""The assignment's linear classifiers; the losses of `linear_svm` and `softmax` are here too."""

import os
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from xpconv._validation import check_count, check_nonnegative
from xpconv.cs231n._adapt import cast_floats, plain_number
from xpconv.cs231n.classifiers._checks import check_samples
from xpconv.cs231n.classifiers._files import load_if_available, pickle_advice
from xpconv.cs231n.classifiers.linear_svm import svm_loss_naive, svm_loss_vectorized
from xpconv.cs231n.classifiers.softmax import softmax_loss_naive, softmax_loss_vectorized
from xpconv.errors import ArgumentError, CheckpointError
from xpconv.io._atomic import atomic_path

__all__ = [
    "LinearClassifier",
    "LinearSVM",
    "Softmax",
    "softmax_loss_naive",
    "softmax_loss_vectorized",
    "svm_loss_naive",
    "svm_loss_vectorized",
]


class LinearClassifier(ABC):
    """The base class of the linear classifiers: a subclass defines `loss`.

    Attributes
    ----------
    W : array (D, C) or None
        Weights, drawn when `train` is first called.

    Examples
    --------
    >>> class LeastSquares(LinearClassifier):
    ...     def loss(self, X_batch, y_batch, reg):
    ...         error = X_batch @ self.W - np.eye(self.W.shape[1])[y_batch]
    ...         return np.mean(error**2), 2 * X_batch.T @ error / error.size
    >>> classifier = LeastSquares()
    >>> losses = classifier.train(
    ...     np.eye(3), np.array([0, 1, 1]), learning_rate=0.5, num_iters=200
    ... )
    >>> classifier.predict(np.eye(3))
    array([0, 1, 1])
    """

    def __init__(self) -> None:
        self.W: Any = None

    @abstractmethod
    def loss(self, X_batch: np.ndarray, y_batch: np.ndarray, reg: float) -> tuple[float, np.ndarray]:
        """Return the loss of a minibatch, and the gradient of `W`."""

    def train(
        self,
        X: np.ndarray,
        y: np.ndarray,
        learning_rate: float = 1e-3,
        reg: float = 1e-5,
        num_iters: int = 100,
        batch_size: int = 200,
        verbose: bool = False,
    ) -> list[float]:
        """Train by stochastic gradient descent, on minibatches drawn with replacement from NumPy's global state.

        Parameters
        ----------
        X : array (N, D)
            Samples.
        y : array (N,) of integers
            Labels, 0 to C - 1; the largest one tells C when the weights are drawn.
        learning_rate, reg : float
        num_iters, batch_size : int
        verbose : bool
            Whether to print the loss of every 100th iteration.

        Returns
        -------
        list of float
            The loss of each iteration.

        Raises
        ------
        ArgumentError, ArgumentTypeError
            If the samples and labels do not match, or an option is out of range.
        """
        X, y = check_samples(X, y)
        learning_rate = check_nonnegative("learning_rate", plain_number(learning_rate))
        num_iters, batch_size = check_count("num_iters", num_iters, 0), check_count("batch_size", batch_size)
        if self.W is None:
            self.W = 0.001 * np.random.randn(X.shape[1], int(y.max()) + 1)
        losses = []
        for iteration in range(num_iters):
            batch = np.random.choice(len(X), batch_size)
            loss, dW = self.loss(X[batch], y[batch], reg)
            losses.append(loss)
            self.W = self.W - learning_rate * dW
            if verbose and iteration % 100 == 0:
                print(f"iteration {iteration} / {num_iters}: loss {loss:f}")
        return losses

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the class with the highest score for each sample of X (N, D), as int64 (N,).

        Raises
        ------
        ArgumentError
            If there are no weights yet, or they do not fit the samples.
        """
        if self.W is None:
            raise ArgumentError("the classifier has no weights: call train(X, y) or load(fname) first")
        W, X = cast_floats(W=self.W, X=X)
        if X.ndim != 2 or X.shape[1] != W.shape[0]:
            raise ArgumentError(f"X has shape {X.shape}; expected (N, {W.shape[0]}), since W has shape {W.shape}")
        return np.argmax(X @ W, axis=1)

    def save(self, fname: str | os.PathLike[str]) -> None:
        """Write the weights to a file in NumPy's format.

        Raises
        ------
        ArgumentError
            If there are no weights yet.
        """
        if self.W is None:
            raise ArgumentError("the classifier has no weights: call train(X, y) before save")
        (W,) = cast_floats(W=self.W)
        with atomic_path(fname) as temporary, temporary.open("wb") as file:
            np.save(file, W, allow_pickle=False)
        print(f"{os.fspath(fname)} saved.")

    def load(self, fname: str | os.PathLike[str]) -> bool:
        """Take the weights from a file of `save`.

        Returns
        -------
        bool
            Whether there is such a file.

        Raises
        ------
        CheckpointError
            If the file has no matrix of finite weights, or is a pickle, which could run any code.
        """
        return load_if_available(fname, lambda name: setattr(self, "W", _read_weights(name)))


class LinearSVM(LinearClassifier):
    """A linear classifier with the multiclass hinge loss.

    Examples
    --------
    >>> svm = LinearSVM()
    >>> losses = svm.train(
    ...     np.eye(3), np.array([0, 1, 1]), learning_rate=0.5, num_iters=50
    ... )
    >>> svm.predict(np.eye(3))
    array([0, 1, 1])
    """

    def loss(self, X_batch: np.ndarray, y_batch: np.ndarray, reg: float) -> tuple[float, np.ndarray]:
        """Return the loss of `svm_loss_vectorized`, and the gradient of `W`."""
        return svm_loss_vectorized(self.W, X_batch, y_batch, reg)


class Softmax(LinearClassifier):
    """A linear classifier with the cross-entropy loss.

    Examples
    --------
    >>> softmax = Softmax()
    >>> losses = softmax.train(
    ...     np.eye(3), np.array([0, 1, 1]), learning_rate=0.5, num_iters=50
    ... )
    >>> softmax.predict(np.eye(3))
    array([0, 1, 1])
    """

    def loss(self, X_batch: np.ndarray, y_batch: np.ndarray, reg: float) -> tuple[float, np.ndarray]:
        """Return the loss of `softmax_loss_vectorized`, and the gradient of `W`."""
        return softmax_loss_vectorized(self.W, X_batch, y_batch, reg)


def _read_weights(name: str) -> np.ndarray:
    try:
        W = np.load(name, allow_pickle=False)
    except Exception as error:  # a damaged file may raise anything
        advice = pickle_advice(name, "W", '["W"]')
        raise CheckpointError(f"cannot read weights from {name}: it is damaged, or {advice}") from error
    if not isinstance(W, np.ndarray) or W.ndim != 2 or W.dtype.kind != "f" or not np.isfinite(W).all():
        raise CheckpointError(f"{name} has no matrix of finite weights; expected a file of LinearClassifier.save")
    return W

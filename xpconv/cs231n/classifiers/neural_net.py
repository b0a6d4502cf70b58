"""The two-layer net of assignment 1 in the editions until 2020; later ones use that of `fc_net`."""

from typing import Any

import numpy as np

from xpconv._validation import check_count, check_nonnegative
from xpconv.cs231n._adapt import l2_penalty, plain_number
from xpconv.cs231n.classifiers._checks import check_samples
from xpconv.cs231n.layer_utils import affine_relu_backward, affine_relu_forward
from xpconv.cs231n.layers import affine_backward, affine_forward, softmax_loss

__all__ = ["TwoLayerNet"]


class TwoLayerNet:
    """``affine - relu - affine - softmax`` in float64, which trains itself by stochastic gradient descent.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
    std : float
        Standard deviation of the initial weights, drawn from NumPy's global state.

    Attributes
    ----------
    params : dict
        ``W1`` (input_size, hidden_size), ``b1``, ``W2`` (hidden_size, output_size) and ``b2``.

    Examples
    --------
    >>> np.random.seed(0)
    >>> net = TwoLayerNet(3, 10, 2, std=0.1)
    >>> X, y = np.eye(3), np.array([0, 1, 1])
    >>> stats = net.train(X, y, X, y, learning_rate=0.5, num_iters=200)
    >>> net.predict(X)
    array([0, 1, 1])
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int, std: float = 1e-4) -> None:
        D, H, C = (
            check_count(name, size)
            for name, size in (("input_size", input_size), ("hidden_size", hidden_size), ("output_size", output_size))
        )
        std = check_nonnegative("std", std)
        self.params: dict[str, Any] = {
            "W1": std * np.random.randn(D, H),
            "b1": np.zeros(H),
            "W2": std * np.random.randn(H, C),
            "b2": np.zeros(C),
        }

    def loss(self, X: np.ndarray, y: np.ndarray | None = None, reg: float = 0.0) -> Any:
        """Return the scores of `X`, or with labels the loss and the gradients.

        Parameters
        ----------
        X : array (N, D)
            Samples.
        y : array (N,) of integers, optional
            Labels, 0 to C - 1.
        reg : float
            Weight of ``sum(W1 * W1) + sum(W2 * W2)``, half of it if `xpconv.cs231n.edition` is 2016 or less.

        Returns
        -------
        scores : array (N, C)
            Without labels.
        loss : float
        grads : dict
            With labels; it has the keys of `params`.

        Raises
        ------
        ArgumentError
            If the shapes do not match, a label is out of range, or `reg` is negative or not finite.
        """
        W1, b1, W2, b2 = (self.params[name] for name in ("W1", "b1", "W2", "b2"))
        hidden, hidden_cache = affine_relu_forward(X, W1, b1)
        scores, scores_cache = affine_forward(hidden, W2, b2)
        if y is None:
            return scores
        reg = check_nonnegative("reg", plain_number(reg))
        loss, dscores = softmax_loss(scores, y)
        dhidden, dW2, db2 = affine_backward(dscores, scores_cache)
        _, dW1, db1 = affine_relu_backward(dhidden, hidden_cache)
        (penalty1, dpenalty1), (penalty2, dpenalty2) = l2_penalty(W1, reg), l2_penalty(W2, reg)
        return loss + penalty1 + penalty2, {"W1": dW1 + dpenalty1, "b1": db1, "W2": dW2 + dpenalty2, "b2": db2}

    def train(
        self,
        X: np.ndarray,
        y: np.ndarray,
        X_val: np.ndarray,
        y_val: np.ndarray,
        learning_rate: float = 1e-3,
        learning_rate_decay: float = 0.95,
        reg: float = 5e-6,
        num_iters: int = 100,
        batch_size: int = 200,
        verbose: bool = False,
    ) -> dict[str, list[float]]:
        """Train by stochastic gradient descent, on minibatches drawn with replacement from NumPy's global state.

        Parameters
        ----------
        X, X_val : array (N, D)
            Training and validation samples.
        y, y_val : array (N,) of integers
            Their labels.
        learning_rate : float
        learning_rate_decay : float
            Factor of the learning rate after each epoch.
        reg : float
        num_iters, batch_size : int
        verbose : bool
            Whether to print the loss of every 100th iteration.

        Returns
        -------
        dict of lists of float
            ``loss_history`` has the loss of each iteration. ``train_acc_history`` and ``val_acc_history`` have the
            accuracies on the minibatch and on the validation samples after the first iteration of each epoch.

        Raises
        ------
        ArgumentError, ArgumentTypeError
            If samples and labels do not match, or an option is out of range.
        """
        (X, y), (X_val, y_val) = check_samples(X, y), check_samples(X_val, y_val, split="_val")
        learning_rate = check_nonnegative("learning_rate", plain_number(learning_rate))
        learning_rate_decay = check_nonnegative("learning_rate_decay", plain_number(learning_rate_decay))
        num_iters, batch_size = check_count("num_iters", num_iters, 0), check_count("batch_size", batch_size)
        iterations_per_epoch = max(len(X) // batch_size, 1)
        stats: dict[str, list[float]] = {"loss_history": [], "train_acc_history": [], "val_acc_history": []}
        for iteration in range(num_iters):
            batch = np.random.choice(len(X), batch_size)
            loss, grads = self.loss(X[batch], y[batch], reg)
            stats["loss_history"].append(loss)
            for name, gradient in grads.items():
                self.params[name] = self.params[name] - learning_rate * gradient
            if verbose and iteration % 100 == 0:
                print(f"iteration {iteration} / {num_iters}: loss {loss:f}")
            if iteration % iterations_per_epoch == 0:
                stats["train_acc_history"].append(float(np.mean(self.predict(X[batch]) == y[batch])))
                stats["val_acc_history"].append(float(np.mean(self.predict(X_val) == y_val)))
                learning_rate *= learning_rate_decay
        return stats

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the class with the highest score for each sample of X (N, D), as int64 (N,)."""
        return np.argmax(self.loss(X), axis=1)

"""The assignment's k-nearest-neighbour classifier."""

from typing import Any

import numpy as np

from xpconv._validation import check_count
from xpconv.cs231n._adapt import cast_floats
from xpconv.cs231n.classifiers._checks import check_samples
from xpconv.errors import ArgumentError

__all__ = ["KNearestNeighbor"]


class KNearestNeighbor:
    """A classifier by the labels of the nearest training samples, in Euclidean distance.

    Distances are computed in float64.

    Attributes
    ----------
    X_train : array (M, D)
    y_train : array (M,)

    Examples
    --------
    >>> classifier = KNearestNeighbor()
    >>> classifier.train(np.array([[0.0], [1.0], [5.0]]), np.array([4, 4, 7]))
    >>> classifier.predict(np.array([[0.4], [6.0]]))
    array([4., 7.])
    """

    def __init__(self) -> None:
        self.X_train: Any = None
        self.y_train: Any = None

    def train(self, X: np.ndarray, y: np.ndarray) -> None:
        """Remember the training samples X (M, D) and their labels y (M,).

        Raises
        ------
        ArgumentError
            If the shapes do not match.
        """
        self.X_train, self.y_train = check_samples(X, y)

    def predict(self, X: np.ndarray, k: int = 1, num_loops: int = 0) -> np.ndarray:
        """Return the labels of samples X (N, D), as `predict_labels` does.

        Parameters
        ----------
        X : array (N, D)
        k : int
            Number of neighbours that vote.
        num_loops : {0, 1, 2}
            How many loops the computation of the distances has.

        Raises
        ------
        ArgumentError
            If `num_loops` or `k` is out of range, the shapes do not match, or `train` has not been called.
        """
        methods = (self.compute_distances_no_loops, self.compute_distances_one_loop, self.compute_distances_two_loops)
        return self.predict_labels(methods[check_count("num_loops", num_loops, 0, 2)](X), k=k)

    def compute_distances_two_loops(self, X: np.ndarray) -> np.ndarray:
        """Return the distances (N, M) of samples X (N, D) to the training samples, each by itself."""
        X, X_train = self._read_samples(X)
        distances = np.zeros((len(X), len(X_train)))
        for i in range(len(X)):
            for j in range(len(X_train)):
                distances[i, j] = np.sqrt(np.sum((X[i] - X_train[j]) ** 2))
        return distances

    def compute_distances_one_loop(self, X: np.ndarray) -> np.ndarray:
        """Return the distances (N, M) of samples X (N, D) to the training samples, row by row."""
        X, X_train = self._read_samples(X)
        distances = np.zeros((len(X), len(X_train)))
        for i in range(len(X)):
            distances[i] = np.sqrt(np.sum((X[i] - X_train) ** 2, axis=1))
        return distances

    def compute_distances_no_loops(self, X: np.ndarray) -> np.ndarray:
        """Return the distances (N, M) of samples X (N, D) to the training samples, from one matrix product.

        ``distance**2 = |x|**2 - 2 * x @ t + |t|**2``, exact for pixels from 0 to 255. For other values, distances much
        smaller than ``|x|`` lose digits.
        """
        X, X_train = self._read_samples(X)
        squares = np.sum(X**2, axis=1)[:, None] - 2 * X @ X_train.T + np.sum(X_train**2, axis=1)
        return np.sqrt(np.maximum(squares, 0))

    def predict_labels(self, dists: np.ndarray, k: int = 1) -> np.ndarray:
        """Return the label that most of the k nearest training samples have.

        Of tied labels the smallest is returned; of training samples at one distance the first ones count as nearer.

        Parameters
        ----------
        dists : array (N, M)
            The distance of each sample to each training sample.
        k : int
            At most M.

        Returns
        -------
        array (N,) of float64

        Raises
        ------
        ArgumentError
            If `k` is out of range, the shape of `dists` is wrong, or `train` has not been called.
        """
        num_train, dists = len(self._training_samples()), np.asarray(dists)
        if dists.ndim != 2 or dists.shape[1] != num_train:
            raise ArgumentError(
                f"dists has shape {dists.shape}; expected (N, {num_train}), a distance to each training sample"
            )
        k = check_count("k", k, 1, num_train)
        labels, classes = np.unique(self.y_train, return_inverse=True)
        nearest = classes[np.argsort(dists, axis=1, kind="stable")[:, :k]]
        votes = np.sum(nearest[:, :, None] == np.arange(len(labels)), axis=1)
        return labels[np.argmax(votes, axis=1)].astype(np.float64)

    def _training_samples(self) -> Any:
        if self.X_train is None:
            raise ArgumentError("the classifier has no training samples: call train(X, y) first")
        return self.X_train

    def _read_samples(self, X: np.ndarray) -> tuple[Any, Any]:
        """Return the samples and the training samples in float64, in which pixels do not wrap around."""
        X, X_train = cast_floats(np.zeros(()), X=X, X_train=self._training_samples())
        if X.ndim != 2 or X.shape[1] != X_train.shape[1]:
            raise ArgumentError(
                f"X has shape {X.shape}; expected (N, {X_train.shape[1]}), since X_train has shape {X_train.shape}"
            )
        return X, X_train

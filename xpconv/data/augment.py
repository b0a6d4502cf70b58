"""More training images, made from those there are."""

from collections.abc import Callable

import numpy as np

__all__ = ["AUGMENTATIONS", "with_mirrored", "with_shifted"]


def with_shifted(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add each image moved by one pixel up, down, left and right; what comes in from outside is 0.

    Parameters
    ----------
    X : numpy.ndarray
        Images (N, C, H, W).
    y : numpy.ndarray
        Labels (N,).

    Returns
    -------
    X, y : numpy.ndarray
        (5*N, C, H, W) and (5*N,), the given ones first.

    Examples
    --------
    >>> X, y = with_shifted(np.array([[[[1, 2, 3]]]]), np.array([7]))
    >>> X[3, 0, 0], X[4, 0, 0], y
    (array([2, 3, 0]), array([0, 1, 2]), array([7, 7, 7, 7, 7]))
    """
    height, width = X.shape[2:]
    padded = np.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)))
    corners = (1, 1), (2, 1), (0, 1), (1, 2), (1, 0)
    moved = [padded[:, :, top:top + height, left:left + width] for top, left in corners]
    return np.concatenate(moved), np.tile(y, len(corners))


def with_mirrored(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add each image with left and right exchanged.

    Parameters
    ----------
    X : numpy.ndarray
        Images (N, C, H, W).
    y : numpy.ndarray
        Labels (N,).

    Returns
    -------
    X, y : numpy.ndarray
        (2*N, C, H, W) and (2*N,), the given ones first.

    Examples
    --------
    >>> with_mirrored(np.array([[[[1, 2, 3]]]]), np.array([7]))[0][1]
    array([[[3, 2, 1]]])
    """
    return np.concatenate([X, X[:, :, :, ::-1]]), np.tile(y, 2)


AUGMENTATIONS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "none": lambda X, y: (X, y),
    "shift": with_shifted,
    "mirror": with_mirrored,
}
"""The ways to add images by name, each a function from images and labels to more of both."""

"""The type of every data set in xpconv."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in three splits: training, validation and test.

    Parameters
    ----------
    name : str
        Such as ``digits``.
    X_train, X_val, X_test : numpy.ndarray or Rows
        Images (N, C, H, W), uint8 or float32; in `Rows` they are read when they are needed.
    y_train, y_val, y_test : numpy.ndarray
        Labels (N,), int64: indices into `class_names`.
    class_names : tuple of str
        One name for each class.
    skipped : tuple of str
        For each file that could not be read and was left out, a line with its name and the reason.

    Examples
    --------
    >>> X, y = np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4, np.int64)
    >>> Dataset("blank", X, y, X[:1], y[:1], X[:1], y[:1], ("nothing",)).input_shape
    (1, 8, 8)
    """

    name: str
    X_train: Any
    y_train: np.ndarray
    X_val: Any
    y_val: np.ndarray
    X_test: Any
    y_test: np.ndarray
    class_names: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        channels, height, width = self.X_train.shape[1:]
        return channels, height, width

    def splits(self) -> dict[str, Any]:
        """Return images and labels by name, the form of data that a Solver takes."""
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names if name.startswith(("X_", "y_"))}

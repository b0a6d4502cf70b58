"""Weights of classes, for a loss that counts rare classes more."""

from collections.abc import Sequence

import numpy as np

from xpconv._validation import check_count
from xpconv.errors import ArgumentError, ArgumentTypeError

__all__ = ["balanced_class_weights"]


def balanced_class_weights(y: np.ndarray, num_classes: int, class_names: Sequence[str] = ()) -> list[float]:
    """Return the weight ``N / (C * count)`` of each class, with which all classes count the same in a loss.

    These are scikit-learn's `compute_class_weight("balanced")`. Pass them to a net as
    ``loss_options={"class_weights": weights}``, or to `xpconv.layers.softmax_loss`.

    Parameters
    ----------
    y : array (N,) of integers
        Labels of the training samples, 0 to C - 1, in host memory.
    num_classes : int
        C.
    class_names : sequence of str
        The names of the classes, for errors.

    Returns
    -------
    list of float

    Raises
    ------
    ArgumentError
        If a class has no samples.

    Examples
    --------
    >>> balanced_class_weights(np.array([0, 0, 0, 1]), num_classes=2)
    [0.6666666666666666, 2.0]
    """
    num_classes, y = check_count("num_classes", num_classes), np.asarray(y)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ArgumentTypeError(f"y has shape {y.shape} and dtype {y.dtype}; expected integer labels (N,)")
    if y.size and not 0 <= y.min() <= y.max() < num_classes:
        raise ArgumentError(f"y has labels from {y.min()} to {y.max()}; expected 0 to {num_classes - 1}")
    counts = np.bincount(y.astype(np.int64), minlength=num_classes)
    if missing := [str(class_names[c] if class_names else c) for c in np.flatnonzero(counts == 0).tolist()]:
        raise ArgumentError(
            f"y has no samples of class {', '.join(missing)}; expected one or more of each class: add samples, or give "
            "each class a weight yourself"
        )
    return [float(weight) for weight in len(y) / (num_classes * counts)]

"""Argument checks that the classifiers of assignment 1 share."""

from typing import Any

import array_api_compat
import numpy as np

from xpconv._validation import check_nonnegative
from xpconv.cs231n._adapt import cast_floats, plain_number
from xpconv.errors import ArgumentError
from xpconv.layers._checks import check_labels

__all__ = ["check_batch", "check_samples"]


def check_samples(X: np.ndarray, y: np.ndarray, split: str = "") -> tuple[Any, Any]:
    """Return samples (N, D) and their labels (N,) as arrays; `split` ends the arguments' names in messages."""
    X, y = np.asarray(X), np.asarray(y)
    if X.ndim != 2 or not len(X) or y.shape != (len(X),):
        raise ArgumentError(
            f"X{split} has shape {X.shape} and y{split} has shape {y.shape}; expected (N, D) and (N,), with N at least "
            "1: reshape images to rows"
        )
    return X, y


def check_batch(W: np.ndarray, X: np.ndarray, y: np.ndarray, reg: float) -> tuple[Any, Any, Any, float]:
    """Return the arguments of a linear loss: arrays of one dtype, integer labels and reg as a float."""
    W, X = cast_floats(W=W, X=X)
    y = np.asarray(y)
    if W.ndim != 2 or X.ndim != 2 or X.shape[1] != W.shape[0] or not len(X):
        raise ArgumentError(
            f"X has shape {X.shape} and W has shape {W.shape}; expected (N, D) and (D, C), with N at least 1: "
            "reshape images to rows, and append the column of ones for the bias"
        )
    check_labels(y, len(X), W.shape[1], array_api_compat.array_namespace(y))
    return W, X, y, check_nonnegative("reg", plain_number(reg))

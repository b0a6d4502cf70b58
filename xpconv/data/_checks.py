"""The checks of options, and of data whose check would later cost waits for a device."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from xpconv.backend import Array, backend_of, to_host
from xpconv.errors import ArgumentError, ArgumentTypeError

__all__ = ["check_split"]


def check_split(splits: Mapping[str, Array], part: str, classes: Any = None, shape: Any = None) -> tuple[Array, Array]:
    """Return the images and labels of one part of a data set if a net can work with them.

    Parameters
    ----------
    splits : mapping of str to array
        ``X_<part>`` (N, ...) and ``y_<part>`` (N,).
    part : str
        Such as ``train``.
    classes : int, optional
        Labels are 0 to ``classes - 1``.
    shape : tuple of int, optional
        The shape of one sample.

    Raises
    ------
    ArgumentError
        If one of them is missing, their shapes do not fit, or their values are not finite or out of range.
    ArgumentTypeError
        If the labels are no integers.

    Examples
    --------
    >>> check_split({"X_val": np.zeros((1, 3)), "y_val": [7]}, "val", 5)
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: y_val has labels from 7 to 7; expected 0 to 4
    """
    for name in (f"X_{part}", f"y_{part}"):
        if name not in splits:
            raise ArgumentError(f"data has no {name!r}; expected X_train, y_train, X_val and y_val")
    X, y = (a if hasattr(a, "shape") else np.asarray(a) for a in (splits[f"X_{part}"], splits[f"y_{part}"]))
    if X.shape[0] == 0 or tuple(y.shape) != (X.shape[0],):
        raise ArgumentError(
            f"X_{part} has shape {tuple(X.shape)} and y_{part} {tuple(y.shape)}; expected "
            "(N, ...) and (N,) with N at least 1"
        )
    if shape is not None and tuple(X.shape[1:]) != tuple(shape):
        raise ArgumentError(
            f"X_{part} has samples of shape {tuple(X.shape[1:])}; expected {tuple(shape)}, as X_train has"
        )
    labels = to_host(y)
    if labels.dtype.kind not in "iu":
        raise ArgumentTypeError(f"y_{part} has dtype {labels.dtype}; expected integer labels")
    if labels.min() < 0 or (isinstance(classes, int) and labels.max() >= classes):
        limit = f"0 to {classes - 1}" if isinstance(classes, int) else "0 or more"
        raise ArgumentError(f"y_{part} has labels from {labels.min()} to {labels.max()}; expected {limit}")
    xp = backend_of(X).xp
    if xp.isdtype(X.dtype, "real floating") and not bool(to_host(xp.all(xp.isfinite(X)))):
        first = int(np.argmin(np.isfinite(to_host(X)).reshape(X.shape[0], -1).all(axis=1)))
        raise ArgumentError(
            f"X_{part}[{first}] holds NaN or infinite values; expected finite images: drop or mend such samples first"
        )
    return X, y

"""Check a data set's splits once, so that layers need not wait for the device to check values."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from xpconv.backend import Array, backend_of, to_host
from xpconv.data.rows import Rows, as_rows, blocks_of
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.layers._checks import label_hint

__all__ = ["check_split"]


def check_split(
    splits: Mapping[str, Array], split: str, num_classes: Any = None, sample_shape: Any = None
) -> tuple[Array, Array]:
    """Check one split of a data set and return its images and labels.

    Parameters
    ----------
    splits : mapping of str to array
        ``X_<split>`` (N, ...), which `as_rows` may turn to Rows, and ``y_<split>`` (N,).
    split : str
        The name of the split, such as ``train``.
    num_classes : int, optional
        Labels are 0 to ``num_classes - 1``.
    sample_shape : tuple of int, optional
        The shape of one sample.

    Raises
    ------
    ArgumentError
        If an array is missing, shapes do not match, images are not finite, or labels are out of range.
    ArgumentTypeError
        If the labels are not integers.

    Examples
    --------
    >>> check_split({"X_val": np.zeros((1, 3)), "y_val": [7]}, "val", 5)
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: y_val has labels from 7 to 7; expected 0 to 4
    """
    if not isinstance(splits, Mapping):
        raise ArgumentTypeError(
            f"data is a {type(splits).__name__}; expected a Dataset, or a mapping with X_train, y_train, X_val, y_val"
        )
    for name in (f"X_{split}", f"y_{split}"):
        if name not in splits:
            raise ArgumentError(f"data has no {name!r}; expected X_train, y_train, X_val and y_val")
    X, y = _as_array(f"X_{split}", as_rows(splits[f"X_{split}"])), _as_array(f"y_{split}", splits[f"y_{split}"])
    if X.shape[0] == 0 or tuple(y.shape) != (X.shape[0],):
        raise ArgumentError(
            f"X_{split} has shape {tuple(X.shape)} and y_{split} {tuple(y.shape)}; expected "
            f"(N, ...) and (N,) with N at least 1{label_hint(f'y_{split}', y)}"
        )
    if sample_shape is not None and tuple(X.shape[1:]) != tuple(sample_shape):
        raise ArgumentError(
            f"X_{split} has samples of shape {tuple(X.shape[1:])}; expected {tuple(sample_shape)}, as X_train has"
        )
    _check_labels(f"y_{split}", y, num_classes)
    _check_finite(f"X_{split}", X)
    return X, y


def _as_array(name: str, value: Any) -> Array:
    try:
        a = value if hasattr(value, "shape") else np.asarray(value)
    except ValueError as error:
        raise ArgumentError(f"{name} is ragged ({error}); expected samples of one shape") from error
    if not hasattr(value, "shape") and a.dtype.kind not in "biuf":
        raise ArgumentTypeError(f"{name} is a {type(value).__name__}; expected an array or a list of numbers")
    return a


def _check_labels(name: str, y: Array, num_classes: Any) -> None:
    labels = to_host(y)
    if labels.dtype.kind not in "iu":
        raise ArgumentTypeError(f"{name} has dtype {labels.dtype}; expected integer labels")
    bounded = isinstance(num_classes, int | np.integer)
    if labels.min() < 0 or (bounded and labels.max() >= num_classes):
        expected = f"0 to {num_classes - 1}" if bounded else "0 or more"
        raise ArgumentError(f"{name} has labels from {labels.min()} to {labels.max()}; expected {expected}")


def _check_finite(name: str, X: Any) -> None:
    if isinstance(X, np.ndarray | Rows):
        blocks: Iterable[np.ndarray] = blocks_of(X) if X.dtype.kind == "f" else ()
    else:
        xp = backend_of(X).xp
        finite = not xp.isdtype(X.dtype, "real floating") or bool(to_host(xp.all(xp.isfinite(X))))
        blocks = () if finite else (to_host(X),)
    start = 0
    for block in blocks:
        finite_rows = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not finite_rows.all():
            raise ArgumentError(
                f"{name}[{start + int(np.argmin(finite_rows))}] has NaN or infinite values; expected finite images: "
                "remove or repair such samples first"
            )
        start += len(block)

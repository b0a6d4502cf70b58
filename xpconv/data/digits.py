"""The handwritten digits that scikit-learn includes: real images without a download."""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from xpconv.data.dataset import Dataset
from xpconv.errors import DatasetError

__all__ = ["load_digits"]

NUM_VALIDATION = 200
NUM_TEST = 300
IMAGES = "datasets/data/digits.csv.gz"
"""The file in scikit-learn: a row for each image, its 64 pixels and its label."""


def load_digits(seed: int = 0) -> Dataset:
    """Return 1,797 handwritten digits of 8 by 8 pixels: 1,297 for training, 200 for validation, 300 for testing.

    Pixels are uint8: the source's 17 grey levels, 0 to 16, are scaled to 0 to 255. Strokes are light on a dark
    background. All splits have the same class proportions.

    Parameters
    ----------
    seed : int
        Determines which image goes to which split.

    Raises
    ------
    DatasetError
        If scikit-learn, which includes the images, is not installed, or its file cannot be read.

    Notes
    -----
    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository
    (1998).

    Examples
    --------
    >>> digits = load_digits()
    >>> digits.X_train.shape, digits.X_test.shape
    ((1297, 1, 8, 8), (300, 1, 8, 8))
    """
    rows = _read_rows()
    X = np.rint(rows[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    y = rows[:, -1].astype(np.int64)
    (X, y), (X_test, y_test) = _split(X, y, NUM_TEST, seed)
    (X, y), (X_val, y_val) = _split(X, y, NUM_VALIDATION, seed)
    return Dataset("digits", X, y, X_val, y_val, X_test, y_test, tuple("0123456789"))


def _read_rows() -> np.ndarray:
    """Return the images and labels (1797, 65), without importing scikit-learn, which takes seconds."""
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DatasetError('the digits are part of scikit-learn, which is not installed: pip install "xpconv[train]"')
    path = Path(spec.origin).parent / IMAGES
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            return np.loadtxt(file, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(
            f'cannot read {path}, the digits in scikit-learn ({error}): pip install --force-reinstall "xpconv[train]"'
        ) from error


Images = tuple[np.ndarray, np.ndarray]


def _split(X: np.ndarray, y: np.ndarray, num_second: int, seed: int) -> tuple[Images, Images]:
    """Return two parts with equal class proportions, those of scikit-learn's ``train_test_split(stratify=y)``."""
    random = np.random.RandomState(seed)
    counts = np.bincount(y)
    num_first_of = _apportion(counts, len(y) - num_second, random)
    num_second_of = _apportion(counts - num_first_of, num_second, random)
    first, second = [], []
    for label, (m, n) in enumerate(zip(num_first_of, num_second_of, strict=True)):
        chosen = np.flatnonzero(y == label)[random.permutation(counts[label])]
        first.append(chosen[:m])
        second.append(chosen[m : m + n])
    parts = [random.permutation(np.concatenate(part)) for part in (first, second)]
    return (X[parts[0]], y[parts[0]]), (X[parts[1]], y[parts[1]])


def _apportion(counts: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """Return shares of `total` in proportion to `counts`, rounded; chance decides between equal remainders."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders, missing = exact - shares, int(total - shares.sum())
    for value in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        (tied,) = np.nonzero(remainders == value)
        count = min(len(tied), missing)
        shares[random.choice(tied, size=count, replace=False)] += 1
        missing -= count
    return shares.astype(np.int64)

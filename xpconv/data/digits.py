"""The handwritten digits that scikit-learn includes: real images without a download."""

import numpy as np

from xpconv.data.dataset import Dataset
from xpconv.errors import DatasetError, import_failure

__all__ = ["load_digits"]

NUM_VALIDATION = 200
NUM_TEST = 300


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
        If scikit-learn, which includes the images, is not installed.

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
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except Exception as error:  # an incompatible library may raise anything
        raise DatasetError(import_failure("the digits are part of scikit-learn", error)) from error
    bundled = datasets.load_digits()
    X = np.rint(bundled.images[:, None] * (255 / 16)).astype(np.uint8)
    y = bundled.target.astype(np.int64)
    X, X_test, y, y_test = train_test_split(X, y, test_size=NUM_TEST, stratify=y, random_state=seed)
    X, X_val, y, y_val = train_test_split(X, y, test_size=NUM_VALIDATION, stratify=y, random_state=seed)
    return Dataset("digits", X, y, X_val, y_val, X_test, y_test, tuple(map(str, bundled.target_names)))

"""The assignments' data sets, and saved models."""

import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from xpconv._validation import check_count
from xpconv.backend import Array
from xpconv.cs231n._imagenet import read_imagenet_val, read_tiny_imagenet
from xpconv.data.cifar10 import find_cifar10, load_batch, read_cifar10
from xpconv.errors import ArgumentError, CheckpointError, DatasetError
from xpconv.io import load_model

__all__ = [
    "get_CIFAR10_data",
    "load_CIFAR10",
    "load_CIFAR_batch",
    "load_imagenet_val",
    "load_models",
    "load_tiny_imagenet",
]

COURSE_FOLDER = Path("cs231n", "datasets")


def load_CIFAR_batch(filename: str | os.PathLike[str]) -> tuple[Array, Array]:
    """Read one batch file, of either published layout.

    Parameters
    ----------
    filename : str or path

    Returns
    -------
    X : array (10000, 32, 32, 3) of float64
        Pixels from 0 to 255.
    Y : array (10000,) of int64

    Raises
    ------
    DatasetError
        If the file is missing or is not a batch.

    Examples
    --------
    >>> load_CIFAR_batch("no/such/file")
    Traceback (most recent call last):
    xpconv.errors.DatasetError: cannot read the CIFAR-10 batch no/such/file: ...
    """
    X, Y = load_batch(filename)
    return _channels_last(X), Y


def load_CIFAR10(ROOT: str | os.PathLike[str]) -> tuple[Array, Array, Array, Array]:
    """Read all batches of a folder.

    Parameters
    ----------
    ROOT : str or path
        The folder of the batches, of either published layout, or the folder that holds it.

    Returns
    -------
    Xtr, Ytr, Xte, Yte : arrays (50000, 32, 32, 3), (50000,), (10000, 32, 32, 3), (10000,)
        Pixels in float64 from 0 to 255; labels in int64.

    Raises
    ------
    DatasetError
        If a batch is missing or damaged.

    Examples
    --------
    >>> load_CIFAR10("no/such/folder")
    Traceback (most recent call last):
    xpconv.errors.DatasetError: CIFAR-10 is not in no/such/folder (no such folder): ...
    """
    Xtr, Ytr, Xte, Yte = read_cifar10(find_cifar10(ROOT))
    return _channels_last(Xtr), Ytr, _channels_last(Xte), Yte


def get_CIFAR10_data(
    num_training: int = 49000,
    num_validation: int = 1000,
    num_test: int = 1000,
    subtract_mean: bool = True,
    *,
    cifar10_dir: str | os.PathLike[str] | None = None,
) -> dict[str, Array]:
    """Return CIFAR-10 in the assignment's splits, with the mean training image subtracted.

    The files are taken from `cifar10_dir`, else from ``XPCONV_DATA``, else from the course's folder
    ``cs231n/datasets/cifar-10-batches-py`` in the working directory, else from the user's cache, else downloaded.

    Parameters
    ----------
    num_training, num_validation : int
        Training images are the first of the published training set; validation images follow them.
    num_test : int
        Test images are the first of the published test set.
    subtract_mean : bool
    cifar10_dir : str or path, optional
        The folder of the batches, as for `load_CIFAR10`.

    Returns
    -------
    dict
        ``X_train, X_val, X_test`` (N, 3, 32, 32) in float64 and ``y_train, y_val, y_test`` (N,) in int64.

    Raises
    ------
    ArgumentError
        If a split would be empty, or there are too few images.
    DatasetError
        If the files cannot be found or read.

    Examples
    --------
    >>> get_CIFAR10_data(num_training=50000)
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: num_training + num_validation is 51000; expected at most 50000, ...
    """
    counts = {"num_training": num_training, "num_validation": num_validation, "num_test": num_test}
    for name, count in counts.items():
        if count < 1:
            raise ArgumentError(f"{name} is {count}; expected 1 or more")
    used = num_training + num_validation
    if used > 50_000:
        raise ArgumentError(
            f"num_training + num_validation is {used}; expected at most 50000, the images of the published training set"
        )
    if num_test > 10_000:
        raise ArgumentError(f"num_test is {num_test}; expected at most 10000, the images of the published test set")
    X, y, X_test, y_test = read_cifar10(_find(cifar10_dir))
    splits = {
        "train": (X[:num_training], y[:num_training]),
        "val": (X[num_training:used], y[num_training:used]),
        "test": (X_test[:num_test], y_test[:num_test]),
    }
    data: dict[str, Array] = {}
    mean = splits["train"][0].mean(axis=0) if subtract_mean else np.zeros(X.shape[1:])
    for split, (images, labels) in splits.items():
        data[f"X_{split}"], data[f"y_{split}"] = images - mean, labels
    return data


def load_tiny_imagenet(
    path: str | os.PathLike[str], dtype: Any = np.float32, subtract_mean: bool = True
) -> dict[str, Any]:
    """Read TinyImageNet-200, or its halves TinyImageNet-100-A and TinyImageNet-100-B.

    Parameters
    ----------
    path : str or path
        The folder that has ``wnids.txt``, ``words.txt``, ``train``, ``val`` and ``test``.
    dtype : numpy.float32 or numpy.float64
    subtract_mean : bool
        Whether to subtract the mean training image.

    Returns
    -------
    dict
        ``X_train, X_val, X_test`` (N, 3, 64, 64) in `dtype`, pixels from 0 to 255; ``y_train, y_val`` (N,) in int64;
        ``y_test``, or None if the test images have no annotations, in which case they are sorted by name;
        ``class_names``, the list of each label's names; ``mean_image`` (3, 64, 64).

    Raises
    ------
    DatasetError
        If a file is missing or damaged, or names an unknown class; or if Pillow is not installed.

    Examples
    --------
    >>> load_tiny_imagenet("no/such/folder")
    Traceback (most recent call last):
    xpconv.errors.DatasetError: cannot read no/such/folder/wnids.txt (No such file or directory): extract ...
    """
    data = read_tiny_imagenet(Path(path), dtype)
    data["mean_image"] = data["X_train"].mean(axis=0, dtype=np.float64).astype(dtype)
    if subtract_mean:
        for split in ("train", "val", "test"):
            data[f"X_{split}"] -= data["mean_image"]
    return data


def load_imagenet_val(num: int | None = None) -> tuple[Array, Array, dict[int, str]]:
    """Read 25 validation images of ImageNet from the course's file, ``cs231n/datasets/imagenet_val_25.npz``.

    The folder ``cs231n/datasets`` is searched in the working directory. The pickle in the file is not run.

    Parameters
    ----------
    num : int, optional
        Number of images; all of them by default.

    Returns
    -------
    X : array (num, 224, 224, 3) of uint8
    y : array (num,) of integers
    class_names : dict of int to str
        The name of each label.

    Raises
    ------
    DatasetError
        If the file is missing or damaged.
    ArgumentError
        If there are fewer images than `num`.

    Examples
    --------
    >>> load_imagenet_val()
    Traceback (most recent call last):
    xpconv.errors.DatasetError: there is no file cs231n/datasets/imagenet_val_25.npz: download ...
    """
    X, y, class_names = read_imagenet_val(COURSE_FOLDER / "imagenet_val_25.npz")
    num = len(X) if num is None else check_count("num", num, 1, len(X))
    return X[:num], y[:num], class_names


def load_models(models_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Read all models of a folder that `xpconv.save_model` wrote.

    Other files are passed over with a warning: the course's are pickles, which can run any code when they are read.

    Parameters
    ----------
    models_dir : str or path

    Returns
    -------
    dict of str to Sequential
        The models by their files' names.

    Raises
    ------
    DatasetError
        If there is no such folder.

    Examples
    --------
    >>> import tempfile
    >>> from xpconv import TwoLayerNet, save_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(TwoLayerNet(input_dim=4), f"{folder}/one.safetensors")
    ...     list(load_models(folder))
    ['one.safetensors']
    """
    if not Path(models_dir).is_dir():
        raise DatasetError(
            f"there is no folder {os.fspath(models_dir)}: create it and save models to it with save_model"
        )
    models: dict[str, Any] = {}
    for path in sorted(Path(models_dir).iterdir()):
        try:
            models[path.name] = load_model(path)
        except CheckpointError as error:
            warnings.warn(f"{path} is passed over: {error}", RuntimeWarning, stacklevel=2)
    return models


def _find(cifar10_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the batches: the one given, that of XPCONV_DATA, or the course's."""
    if cifar10_dir is None and not os.environ.get("XPCONV_DATA"):
        with suppress(DatasetError):
            return find_cifar10(COURSE_FOLDER)
    return find_cifar10(cifar10_dir)


def _channels_last(X: np.ndarray) -> np.ndarray:
    return X.transpose(0, 2, 3, 1).astype(np.float64, order="C")

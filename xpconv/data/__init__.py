"""Data sets in host memory, and minibatches of them on a device."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xpconv.data.batches import Batches
from xpconv.data.cifar10 import load_cifar10
from xpconv.data.class_weights import balanced_class_weights
from xpconv.data.dataset import Dataset
from xpconv.data.digits import load_digits
from xpconv.data.folder import load_folder
from xpconv.data.splitting import stratified_split
from xpconv.errors import ArgumentError

__all__ = [
    "DATASETS",
    "Batches",
    "Dataset",
    "balanced_class_weights",
    "load_cifar10",
    "load_dataset",
    "load_digits",
    "load_folder",
    "stratified_split",
]

DATASETS: dict[str, Callable[[], Dataset]] = {"digits": load_digits, "cifar10": load_cifar10}
"""The function that loads each data set, by name."""


def load_dataset(name: str, shape: Sequence[int] | None = None, **options: Any) -> Dataset:
    """Load a data set by its name, or a folder of images by its path.

    Parameters
    ----------
    name : str
        ``digits``, ``cifar10`` or the path of a folder, as for `load_folder`.
    shape : (int, int, int), optional
        The shape to which a folder's images are resized, by default (3, 32, 32). Other data sets have fixed shapes.
    **options
        Further options of `load_folder`, which other data sets ignore.

    Raises
    ------
    ArgumentError
        If there is neither a data set of that name nor such a folder.
    DatasetError
        If files are missing, cannot be downloaded or cannot be read.

    Examples
    --------
    >>> load_dataset("digits").input_shape
    (1, 8, 8)
    """
    if name in DATASETS:
        return DATASETS[name]()
    if not Path(name).is_dir():
        raise ArgumentError(
            f"data is {name!r}, and there is no such folder; expected one of {', '.join(DATASETS)}, or "
            "a folder with one subfolder of images for each class"
        )
    return load_folder(name, **options) if shape is None else load_folder(name, shape, **options)

"""Data sets and minibatches, all on the host until a batch is asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path

from xpconv.data.batches import Batches
from xpconv.data.cifar10 import load_cifar10
from xpconv.data.dataset import Dataset
from xpconv.data.digits import load_digits
from xpconv.data.folder import load_folder
from xpconv.data.splitting import stratified_split
from xpconv.errors import ArgumentError

__all__ = [
    "DATASETS",
    "Batches",
    "Dataset",
    "load_cifar10",
    "load_dataset",
    "load_digits",
    "load_folder",
    "stratified_split",
]

DATASETS: dict[str, Callable[[], Dataset]] = {"digits": load_digits, "cifar10": load_cifar10}
"""The data sets by name, each with the function that loads it."""


def load_dataset(name: str, shape: Sequence[int] | None = None) -> Dataset:
    """Load the data set of that name, or the images of that folder.

    Parameters
    ----------
    name : str
        ``digits``, ``cifar10`` or the path of a folder as `load_folder` takes it.
    shape : (int, int, int), optional
        The shape to which the images of a folder are brought, 3x32x32 by default; the other data sets have theirs.

    Raises
    ------
    ArgumentError
        If there is neither a data set of that name nor such a folder.
    DatasetError
        If its files cannot be had or read.

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
    return load_folder(name) if shape is None else load_folder(name, shape)

"""Data sets and minibatches, all on the host until a batch is asked for."""

from collections.abc import Callable

from xpconv.data.batching import Batches
from xpconv.data.cifar10 import load_cifar10
from xpconv.data.dataset import Dataset
from xpconv.data.digits import load_digits
from xpconv.errors import ArgumentError

__all__ = ["DATASETS", "Batches", "Dataset", "load_cifar10", "load_dataset", "load_digits"]

DATASETS: dict[str, Callable[[], Dataset]] = {"digits": load_digits, "cifar10": load_cifar10}
"""The data sets by name, each with the function that loads it."""


def load_dataset(name: str) -> Dataset:
    """Load the data set of that name.

    Parameters
    ----------
    name : str
        ``digits`` or ``cifar10``.

    Raises
    ------
    ArgumentError
        If there is no data set of that name.
    DatasetError
        If its files cannot be had or read.

    Examples
    --------
    >>> load_dataset("digits").input_shape
    (1, 8, 8)
    """
    if name not in DATASETS:
        raise ArgumentError(f"data is {name!r}; expected one of {', '.join(DATASETS)}")
    return DATASETS[name]()

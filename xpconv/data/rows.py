"""Data sets larger than memory: samples that are read when a minibatch needs them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import array_api_compat
import numpy as np

from xpconv.errors import ArgumentError

__all__ = ["Rows", "SourceRows", "as_rows", "blocks_of"]

BLOCK_BYTES = 1 << 24


class Rows(ABC):
    """Samples that are read by their numbers; a Solver takes them in place of an array of images.

    Parameters
    ----------
    shape : tuple of int
        (N, ...), as that of an array.
    dtype : numpy.dtype

    Examples
    --------
    >>> class Squares(Rows):
    ...     def read(self, numbers):
    ...         return numbers[:, None] ** 2
    >>> rows = Squares((10, 1), np.dtype(np.int64))
    >>> rows[np.array([3, 1, 3])].T, rows[8:, ...].T, len(rows)
    (array([[9, 1, 9]]), array([[64, 81]]), 10)
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = tuple(map(int, shape)), np.dtype(dtype)

    @abstractmethod
    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Return the samples (M, ...) of some numbers (M,), which increase and are from 0 to N - 1."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes that all samples would take."""
        return prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return the samples of an integer, a slice or an array of integers; an ``...`` may follow."""
        if isinstance(index, tuple) and len(index) == 2 and index[1] is Ellipsis:
            index = index[0]
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        numbers = np.asarray(index)
        if isinstance(index, tuple) or numbers.dtype.kind not in "iu" or numbers.ndim > 1:
            raise ArgumentError(f"the index is {index!r}; expected an integer, a slice or an array (M,) of integers")
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise IndexError(f"index {numbers.max()} is out of bounds for {len(self)} samples")
        distinct, positions = np.unique(numbers, return_inverse=True)
        rows = self.read(distinct) if len(distinct) else np.empty((0, *self.shape[1:]), self.dtype)
        if rows.shape != (len(distinct), *self.shape[1:]) or rows.dtype != self.dtype:
            raise ArgumentError(
                f"reading {len(distinct)} samples returned {rows.dtype} of shape {rows.shape}; expected "
                f"{self.dtype} of shape {(len(distinct), *self.shape[1:])}"
            )
        in_order = len(distinct) == numbers.size and np.array_equal(distinct, numbers)
        return rows if in_order and numbers.ndim else rows[positions.reshape(numbers.shape)]

    def select(self, numbers: np.ndarray) -> "Rows":
        """Return the rows of some numbers (M,) as Rows, without reading them."""
        return _Selection(self, numbers)


class _Selection(Rows):
    def __init__(self, rows: Rows, numbers: np.ndarray) -> None:
        super().__init__((len(numbers), *rows.shape[1:]), rows.dtype)
        self._rows, self._numbers = rows, np.asarray(numbers)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        return self._rows[self._numbers[numbers]]


class SourceRows(Rows):
    """Rows of any object with a length that returns the samples of an array of increasing numbers.

    Parameters
    ----------
    source : object
        ``len(source)`` is the number of samples, and ``source[numbers]`` returns an array (M, ...), as a dataset of
        h5py does. If it has a `shape` and a `dtype`, they are taken; otherwise its first sample is read.

    Examples
    --------
    >>> class Source:
    ...     def __len__(self):
    ...         return 1000
    ...
    ...     def __getitem__(self, numbers):
    ...         return np.full((len(numbers), 3, 32, 32), 7, np.uint8)
    >>> SourceRows(Source()).shape
    (1000, 3, 32, 32)
    """

    def __init__(self, source: Any) -> None:
        shape, dtype = getattr(source, "shape", None), getattr(source, "dtype", None)
        if shape is None or dtype is None:
            first = np.asarray(source[np.array([0])])
            shape, dtype = (len(source), *first.shape[1:]), first.dtype
        super().__init__(shape, dtype)
        self.source = source

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Return the samples of some numbers."""
        return np.asarray(self.source[numbers])


def as_rows(value: Any) -> Any:
    """Return an object that is no array but has a length and ``[indices]`` as Rows, and anything else unchanged.

    Examples
    --------
    >>> as_rows([1, 2]), as_rows(np.ones(2))
    ([1, 2], array([1., 1.]))
    """
    if isinstance(value, (Rows, list, tuple, str, bytes, range, Mapping)) or array_api_compat.is_array_api_obj(value):
        return value
    if hasattr(value, "iloc"):  # tables of pandas are columns
        return value
    readable = hasattr(value, "__len__") and hasattr(value, "__getitem__") and len(value)
    return SourceRows(value) if readable else value


def blocks_of(rows: Any) -> Iterator[np.ndarray]:
    """Yield a host array or Rows in blocks of about 16 MiB, so that no large array is copied or read at once.

    Examples
    --------
    >>> [block.shape for block in blocks_of(np.zeros((40, 1 << 20), np.uint8))]
    [(16, 1048576), (16, 1048576), (8, 1048576)]
    """
    step = max(BLOCK_BYTES * len(rows) // max(rows.nbytes, 1), 1)
    return (rows[start : start + step] for start in range(0, len(rows), step))

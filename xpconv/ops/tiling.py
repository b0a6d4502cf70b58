"""Cut work on a batch into tiles and blocks, so that scratch memory stays bounded for batches of any size."""

import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import array_api_compat

from xpconv.backend import Array, library_of
from xpconv.errors import ArgumentError
from xpconv.ops.dispatch import operation

__all__ = [
    "for_each_block",
    "for_each_tile",
    "map_tiles",
    "matmul",
    "sum_in_blocks",
    "sum_of_squares",
    "sum_over_tiles",
    "sum_rows",
    "workspace_bytes",
]

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def workspace_bytes(library: str) -> int:
    """Return how much scratch memory an operation may use at a time, in bytes.

    ``XPCONV_WORKSPACE`` sets it, for example to ``256MiB``; the default is 64 MiB, and 1 GiB with CuPy.

    Raises
    ------
    ArgumentError
        If ``XPCONV_WORKSPACE`` is not a size.

    Examples
    --------
    >>> workspace_bytes("array_api_strict") >> 20
    64
    """
    return _parse_bytes(os.environ.get("XPCONV_WORKSPACE", "1GiB" if library == "cupy" else "64MiB"))


@lru_cache
def _parse_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not match or match[2].upper() not in _UNITS:
        raise ArgumentError(f"XPCONV_WORKSPACE is {text!r}; expected a size such as 64MiB or 1GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


@operation
def for_each_tile(x: Array, task: Callable[[slice], None], count: int, item_bytes: int) -> None:
    """Call ``task(tile)`` for slices that together cover ``range(count)``.

    Parameters
    ----------
    x : array
        Any array of the computation; its library decides how tiles are cut and run.
    task : callable
        Takes a slice of the batch. Calls may run at the same time, so they must not write to the same elements.
    count : int
        Images in the batch.
    item_bytes : int
        Scratch memory that one image needs, in bytes.

    Examples
    --------
    >>> import numpy as np
    >>> x, squares = np.arange(5.0), np.zeros(5)
    >>> for_each_tile(
    ...     x, lambda tile: np.square(x[tile], out=squares[tile]), count=5, item_bytes=8
    ... )
    >>> squares
    array([ 0.,  1.,  4.,  9., 16.])
    """
    for tile in _cut_tiles(x, count, item_bytes):
        task(tile)


@operation
def sum_over_tiles(
    x: Array, task: Callable[[slice], tuple[Array | None, ...]], count: int, item_bytes: int
) -> tuple[Any, ...]:
    """Call ``task(tile)`` for slices that cover ``range(count)``, and return the sums of what the calls return.

    Parameters
    ----------
    x, count, item_bytes
        As for `for_each_tile`.
    task : callable
        Takes a slice and returns new arrays, of the same shapes for each slice, or None in place of an array.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(5.0)
    >>> sum_over_tiles(
    ...     x, lambda tile: (x[tile].sum(keepdims=True),), count=5, item_bytes=8
    ... )
    (array([10.]),)
    """
    first, *others = _cut_tiles(x, count, item_bytes)
    total = task(first)
    for tile in others:
        add_in_place(total, task(tile))
    return total


def _cut_tiles(x: Array, count: int, item_bytes: int) -> list[slice]:
    """Cut a batch into nearly equal tiles, each with scratch memory that fits the workspace."""
    size = max(1, workspace_bytes(library_of(x)) // max(item_bytes, 1))
    tiles = -(-count // size)
    return [slice(k * count // tiles, (k + 1) * count // tiles) for k in range(tiles)]


def add_in_place(total: tuple[Array | None, ...], terms: tuple[Array | None, ...]) -> None:
    """Add each term to its total in place; skip totals that are None."""
    for a, b in zip(total, terms, strict=True):
        if a is not None:
            a[...] = a + b


@operation
def map_tiles(x: Array, *others: Array, function: Callable[..., tuple[Array, ...]], axis: int) -> tuple[Array, ...]:
    """Apply a function that treats the slices of arrays along `axis` independently.

    With NumPy the function is called for slices that fit the cache, on all threads, and its results are joined along
    `axis`. With other libraries it is called once, for the whole arrays.

    Parameters
    ----------
    x, *others : array
        An array of size 1 along the axis is passed whole to every call.
    function : callable
        Takes the arrays and returns arrays, all with that axis.
    axis : int

    Examples
    --------
    >>> import numpy as np
    >>> map_tiles(
    ...     np.ones((2, 3)), function=lambda x: (x.sum(axis=1, keepdims=True),), axis=0
    ... )
    (array([[3.],
           [3.]]),)
    """
    return function(x, *others)


@operation
def matmul(a: Array, b: Array) -> Array:
    """Return the matrix product.

    Parameters
    ----------
    a : array (M, K)
    b : array (K, N)

    Returns
    -------
    array (M, N)

    Examples
    --------
    >>> import numpy as np
    >>> matmul(np.ones((2, 3)), np.ones((3, 1)))
    array([[3.],
           [3.]])
    """
    return a @ b


@operation
def for_each_block(x: Array, *others: Array, update: Callable[..., object]) -> None:
    """Call an elementwise in-place update on arrays of one shape: with NumPy, on cache-sized blocks and all threads.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones(3)
    >>> for_each_block(
    ...     x, np.ones(3), update=lambda x, step: np.subtract(x, 0.5 * step, out=x)
    ... )
    >>> x
    array([0.5, 0.5, 0.5])
    """
    update(x, *others)


@operation
def sum_in_blocks(x: Array, *others: Array, term: Callable[..., Array]) -> Array:
    """Return the sum of what ``term(x, *others)`` returns for blocks of arrays of one shape.

    Examples
    --------
    >>> import numpy as np
    >>> float(sum_in_blocks(np.ones(3), term=sum_of_squares))
    3.0
    """
    return term(x, *others)


@operation
def sum_rows(a: Array) -> Array:
    """Return the sum over the first axis, in float32 for float16.

    Examples
    --------
    >>> import numpy as np
    >>> sum_rows(np.ones((4, 2)))
    array([4., 4.])
    """
    xp = array_api_compat.array_namespace(a)
    return xp.sum(a, axis=0, dtype=xp.result_type(a.dtype, xp.float32))


@operation
def sum_of_squares(a: Array) -> Any:
    """Return the sum of the squares of all elements.

    Examples
    --------
    >>> import numpy as np
    >>> float(sum_of_squares(np.array([3.0, 4.0])))
    25.0
    """
    return array_api_compat.array_namespace(a).sum(a * a)

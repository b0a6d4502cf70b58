"""Sums of NumPy arrays, fast and with small rounding errors."""

from collections.abc import Sequence
from math import prod
from string import ascii_letters

import numpy as np

__all__ = ["sum_of_products"]

Array = np.ndarray

_MAX_SEQUENTIAL = 1 << 10  # Longer sums are added in pieces, for smaller rounding errors.
_MAX_RESULTS_UNDER_GIL = 500  # Up to this number of results, np.vecdot keeps the GIL and so stops other threads.


def sum_of_products(axes: Sequence[int], *factors: Array) -> Array:
    """Return the sum over `axes` of the product of arrays; the axes stay, with size 1.

    np.einsum is faster than np.sum, and np.vecdot (BLAS) is faster still, but both add the terms one after the other,
    which loses digits in long sums. The sum over the last axis is therefore cut into pieces; other axes follow.
    """
    x, axis = factors[0], max(axes)
    size, pieces = x.shape[axis], x.shape[axis] // _MAX_SEQUENTIAL
    before, after = (slice(None),) * axis, x.shape[axis + 1 :]
    total: Array
    if pieces > 1:
        end = pieces * _MAX_SEQUENTIAL
        shape = (*x.shape[:axis], pieces, _MAX_SEQUENTIAL, *after)
        total = _sum_sequentially(axis + 1, *(a[*before, :end].reshape(shape) for a in factors)).sum(axis=axis)
        if end < size:
            total += _sum_sequentially(axis, *(a[*before, end:] for a in factors))
    else:
        total = _sum_sequentially(axis, *factors)
    total = total[*before, None]
    others = tuple(a for a in axes if a != axis)
    if prod(x.shape[a] for a in others) > _MAX_SEQUENTIAL:
        return sum_of_products(others, total)
    return total.sum(axis=others, keepdims=True) if others else total


def _sum_sequentially(axis: int, *factors: Array) -> Array:
    """Return the sum over one axis of the product of arrays, without that axis."""
    x = factors[0]
    if len(factors) == 2 and axis == x.ndim - 1 and x.size // x.shape[axis] > _MAX_RESULTS_UNDER_GIL:
        total: Array = np.vecdot(*factors)
    else:
        letters = ascii_letters[: x.ndim]
        total = np.einsum(f"{','.join([letters] * len(factors))}->{letters.replace(letters[axis], '')}", *factors)
    return total

"""A check for NaN and infinity that does not wait for the device."""

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["largest_finite"]


@operation
def largest_finite(*arrays: Array, out: Array | None = None) -> Array:
    """Return the largest magnitude among the finite elements of each array, and whether all its elements are finite.

    Parameters
    ----------
    *arrays : arrays of one dtype and any shapes
    out : array (2 * K,) of that dtype, optional
        Where to write the result for K arrays.

    Returns
    -------
    array (2 * K,)
        For each array the largest magnitude, or 0 if no element is finite; then 1 if every element is finite, else 0.

    Examples
    --------
    >>> import numpy as np
    >>> largest_finite(
    ...     np.array([1.0, -3.0]), np.array([2.0, np.nan]), np.array([np.inf])
    ... ).tolist()
    [3.0, 1.0, 2.0, 0.0, 0.0, 0.0]
    """
    xp, numbers = array_api_compat.array_namespace(*arrays), []
    for a in arrays:
        finite = xp.isfinite(a)
        zero = xp.zeros((), dtype=a.dtype, device=array_api_compat.device(a))
        numbers.append(xp.max(xp.where(finite, xp.abs(a), zero)))
        numbers.append(xp.astype(xp.asarray(xp.all(finite)), a.dtype))
    if out is None:
        return xp.stack(numbers)
    for k, number in enumerate(
        numbers
    ):  # Not by xp.stack: with many arrays, CuPy copies their addresses to the device.
        out[k] = number
    return out

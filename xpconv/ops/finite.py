"""A check for NaN and infinity that does not wait for the device."""

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["largest_finite"]


@operation
def largest_finite(a: Array, out: Array | None = None) -> Array:
    """Return the largest magnitude among the finite elements of an array, and whether all elements are finite.

    Parameters
    ----------
    a : array of any shape
    out : array (2,) of the dtype of `a`, optional
        Where to write the result.

    Returns
    -------
    array (2,) of the dtype of `a`
        The largest magnitude, or 0 if no element is finite; then 1 if every element is finite, else 0.

    Examples
    --------
    >>> import numpy as np
    >>> [largest_finite(np.array(values)).tolist() for values in ([1.0, -3.0], [2.0, np.nan], [np.inf])]
    [[3.0, 1.0], [2.0, 0.0], [0.0, 0.0]]
    """
    xp = array_api_compat.array_namespace(a)
    finite = xp.isfinite(a)
    zero = xp.zeros((), dtype=a.dtype, device=array_api_compat.device(a))
    largest = xp.max(xp.where(finite, xp.abs(a), zero))
    pair: Array = xp.stack([largest, xp.astype(xp.asarray(xp.all(finite)), a.dtype)])
    if out is None:
        return pair
    out[...] = pair
    return out

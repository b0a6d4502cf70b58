"""Which values are finite, found without waiting for the device."""

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["largest_finite"]


@operation
def largest_finite(a: Array) -> Array:
    """Return the largest magnitude among the finite elements of `a`, with a minus sign if there are others.

    Where nothing is finite it is -0.0.

    Examples
    --------
    >>> import numpy as np
    >>> [float(largest_finite(np.array(values))) for values in ([1.0, -3.0], [2.0, np.nan], [np.inf])]
    [3.0, -2.0, -0.0]
    """
    xp = array_api_compat.array_namespace(a)
    finite = xp.isfinite(a)
    zero = xp.zeros((), dtype=a.dtype, device=array_api_compat.device(a))
    largest = xp.max(xp.where(finite, xp.abs(a), zero))
    return xp.where(xp.all(finite), largest, -largest)

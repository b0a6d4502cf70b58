"""Limit the norm of the gradients without waiting for the device."""

from collections.abc import Mapping

import numpy as np

from xpconv.backend import Array, backend_of
from xpconv.ops.tiling import sum_in_blocks, sum_of_squares

__all__ = ["clip_gradients"]


def clip_gradients(grads: Mapping[str, Array], clip_norm: float) -> Mapping[str, Array]:
    """Return the gradients times ``min(1, clip_norm / (norm + 1e-6))``, as PyTorch's ``clip_grad_norm_`` scales them.

    Parameters
    ----------
    grads : mapping of str to array
    clip_norm : float
        The largest L2 norm of all gradients together.

    Examples
    --------
    >>> {
    ...     name: grad.round(3)
    ...     for name, grad in clip_gradients(
    ...         {"W": np.full(3, 2.0), "b": np.full(1, 2.0)}, 2
    ...     ).items()
    ... }
    {'W': array([1., 1., 1.]), 'b': array([1.])}
    """
    if not grads:
        return grads
    with np.errstate(all="ignore"):  # A gradient may be infinite; its square may overflow, or become 0.
        norm = sum(sum_in_blocks(grad, term=sum_of_squares) for grad in grads.values()) ** 0.5
        factor = clip_norm / (norm + 1e-6)
        if isinstance(factor, np.floating | float):
            return grads if factor >= 1 else {name: grad * grad.dtype.type(factor) for name, grad in grads.items()}
        xp = backend_of(factor).xp
        factor = xp.where(factor < 1, factor, xp.ones_like(factor))
        return {name: grad * xp.astype(factor, grad.dtype) for name, grad in grads.items()}

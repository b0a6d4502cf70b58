"""Operations on each element by itself."""

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["relu", "relu_backward"]


@operation
def relu(x: Array) -> tuple[Array, Array]:
    """Return max(x, 0) and where x is positive."""
    xp = array_api_compat.array_namespace(x)
    return xp.asarray(xp.maximum(x, _zero(xp, x))), xp.asarray(x > 0)  # NumPy makes scalars of arrays ()


@operation
def relu_backward(dout: Array, mask: Array) -> Array:
    """Return the gradient where the mask is, else 0."""
    xp = array_api_compat.array_namespace(dout)
    return xp.asarray(xp.where(mask, dout, _zero(xp, dout)))


def _zero(xp: object, like: Array) -> Array:
    return xp.zeros((), dtype=like.dtype, device=array_api_compat.device(like))  # type: ignore[attr-defined]

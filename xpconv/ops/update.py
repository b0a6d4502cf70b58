"""Updates of parameters in place."""

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["adam_step"]


@operation
def adam_step(w: Array, dw: Array, m: Array, v: Array, beta1: float, beta2: float, step: float, epsilon: float) -> None:
    """Update both averages and the parameter in place; `step` and `epsilon` hold the corrections."""
    xp = array_api_compat.array_namespace(w)
    m *= beta1
    m += (1 - beta1) * dw
    v *= beta2
    v += (1 - beta2) * dw * dw
    w -= step * m / (xp.sqrt(v) + epsilon)

"""Layers as pure functions: ``name_forward(x, ...) -> (out, cache)`` and ``name_backward(dout, cache)``."""

from xpconv.layers import activation, affine, channels, conv, conv_transpose, dropout, loss, norm, pool
from xpconv.layers.activation import *
from xpconv.layers.affine import *
from xpconv.layers.channels import *
from xpconv.layers.conv import *
from xpconv.layers.conv_transpose import *
from xpconv.layers.dropout import *
from xpconv.layers.loss import *
from xpconv.layers.norm import *
from xpconv.layers.pool import *

__all__: list[str] = []
__all__ += activation.__all__
__all__ += affine.__all__
__all__ += channels.__all__
__all__ += conv.__all__
__all__ += conv_transpose.__all__
__all__ += dropout.__all__
__all__ += loss.__all__
__all__ += norm.__all__
__all__ += pool.__all__

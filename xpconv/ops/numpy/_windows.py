"""Unfold on NumPy (im2col)."""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.ops.dispatch import accelerate
from xpconv.ops.windows import Pair, output_size, pad

Array = np.ndarray


@accelerate("numpy")
def unfold(x: Array, kernel_size: Pair, stride: Pair, padding: Pair) -> Array:
    """Copy all windows at once, from one strided view of them."""
    N, C, H, W = x.shape
    OH, OW = output_size((H, W), kernel_size, stride, padding)
    padded: Array = pad(x, padding)
    n, c, h, w = padded.strides
    view = as_strided(padded, (C, *kernel_size, N, OH, OW), (c, h, w, n, h * stride[0], w * stride[1]), writeable=False)
    return np.array(view, order="C").reshape(C * kernel_size[0] * kernel_size[1], N * OH * OW)

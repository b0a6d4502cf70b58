"""Unfold on NumPy (im2col)."""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.ops.dispatch import accelerate
from xpconv.ops.windows import Window, pad

Array = np.ndarray


@accelerate("numpy")
def unfold(x: Array, window: Window) -> Array:
    """Copy all windows at once, from one strided view of them."""
    (N, C), (KH, KW), (OH, OW) = x.shape[:2], window.kernel_size, window.output_size(x.shape[2:])
    padded: Array = pad(x, window.padding)
    (n, c, h, w), (SH, SW), (DH, DW) = padded.strides, window.stride, window.dilation
    strides = c, h * DH, w * DW, n, h * SH, w * SW
    view = as_strided(padded, (C, KH, KW, N, OH, OW), strides, writeable=False)
    return np.array(view, order="C").reshape(C * KH * KW, N * OH * OW)

"""Fast NumPy versions of the primitives."""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.primitives import accelerate
from xpconv.primitives.windows import Pair, output_size, pad, windows

Image = np.ndarray


@accelerate("unfold", "numpy")
def unfold(x: Image, size: Pair, stride: Pair, padding: Pair) -> Image:
    """Copy one strided view of all windows at once."""
    N, C, H, W = x.shape
    OH, OW = output_size((H, W), size, stride, padding)
    x = pad(x, padding)
    n, c, h, w = x.strides
    view = as_strided(x, (C, *size, N, OH, OW), (c, h, w, n, h * stride[0], w * stride[1]), writeable=False)
    return np.ascontiguousarray(view).reshape(C * size[0] * size[1], N * OH * OW)


@accelerate("fold", "numpy")
def fold(cols: Image, shape: tuple[int, int, int, int], size: Pair, stride: Pair, padding: Pair) -> Image:
    """Add in place, without a temporary for each place in the window."""
    (N, C, H, W), (PH, PW) = shape, padding
    OH, OW = output_size((H, W), size, stride, padding)
    places = cols.reshape(C, size[0] * size[1], N, OH, OW)
    padded = np.zeros((N, C, H + 2 * PH, W + 2 * PW), dtype=cols.dtype)
    for k, view in enumerate(windows(padded, size, stride, (OH, OW))):
        view += places[:, k].transpose(1, 0, 2, 3)
    return padded[:, :, PH:PH + H, PW:PW + W]


@accelerate("max_pool", "numpy")
def max_pool(x: Image, size: Pair, stride: Pair, padding: Pair) -> tuple[Image, Image]:
    """Update the best value and its place in place."""
    output = output_size(x.shape[2:], size, stride, padding)
    views = windows(pad(x, padding, -np.inf), size, stride, output)
    best = next(views).copy()
    place = np.zeros(best.shape, dtype=np.uint8 if size[0] * size[1] <= 256 else np.int64)
    for k, view in enumerate(views, start=1):
        np.copyto(place, k, where=view > best)
        np.maximum(best, view, out=best)
    return best, place

"""Max pooling on NumPy."""

import numpy as np

from xpconv.ops.dispatch import accelerate, portable
from xpconv.ops.numpy._elementwise import keep_where_mask
from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import for_each_tile
from xpconv.ops.pool import initial_argmax
from xpconv.ops.windows import Pair, output_size, pad, windows

Array = np.ndarray


@accelerate("numpy")
def max_pool(x: Array, kernel_size: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    """Compare contiguous copies of the views, image by image on all threads."""
    output = output_size(x.shape[2:], kernel_size, stride, padding)
    best, start = np.empty((*x.shape[:2], *output), x.dtype), initial_argmax(np, kernel_size, stride, padding, output)
    argmax = np.empty(best.shape, start.dtype)

    def task(tile: slice) -> None:
        mine, where = best[tile], argmax[tile]
        view, better = scratch("view", mine.shape, x.dtype), scratch("better", mine.shape, bool)
        index = scratch("index", mine.shape, argmax.dtype)
        for k, strided in enumerate(windows(pad(x[tile], padding, -np.inf), kernel_size, stride, output)):
            if k == 0:
                mine[...], where[...] = strided, start
                continue
            view[...] = strided
            np.greater(view, mine, out=better)
            np.maximum(mine, view, out=mine)
            np.multiply(better.view(np.uint8), argmax.dtype.type(k), out=index)  # 0 or k, which exceeds all so far
            np.maximum(where, index, out=where)
        if np.isnan(mine).any():  # which exceeds nothing
            where[...] = portable("max_pool")(x[tile], kernel_size, stride, padding)[1]

    for_each_tile(x, task, x.shape[0], x[0].nbytes)
    return best, argmax


@accelerate("numpy")
def max_pool_backward(
    dout: Array, argmax: Array, shape: tuple[int, ...], kernel_size: Pair, stride: Pair, padding: Pair
) -> Array:
    """Write where windows tile the image, add elsewhere, image by image on all threads."""
    (N, C, H, W), (PH, PW), output = shape, padding, dout.shape[2:]
    tiled = (
        stride == kernel_size
        and padding == (0, 0)
        and (output[0] * kernel_size[0], output[1] * kernel_size[1]) == (H, W)
    )
    dx = np.empty(shape, dout.dtype)

    def task(tile: slice) -> None:
        gradient, mine = scratch("gradient", dout[tile].shape, dout.dtype), dx[tile]
        into = mine if padding == (0, 0) else np.empty((len(mine), C, H + 2 * PH, W + 2 * PW), dout.dtype)
        if not tiled:
            into[...] = 0
        for k, view in enumerate(windows(into, kernel_size, stride, output)):
            keep_where_mask(dout[tile], argmax[tile] == k, gradient)
            if tiled:
                view[...] = gradient
            else:
                view += gradient
        if into is not mine:
            mine[...] = into[:, :, PH : PH + H, PW : PW + W]

    for_each_tile(dout, task, N, dx[0].nbytes)
    return dx

"""Max pooling on NumPy."""

import numpy as np

from xpconv.ops.dispatch import accelerate, portable
from xpconv.ops.numpy._elementwise import write_where
from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import for_each_tile
from xpconv.ops.pool import initial_argmax
from xpconv.ops.windows import Window, crop, pad, views

Array = np.ndarray


@accelerate("numpy")
def max_pool(x: Array, window: Window) -> tuple[Array, Array]:
    """Copy one position of all windows at a time to contiguous memory, and compare it with the maxima so far."""
    output = window.output_size(x.shape[2:])
    out, start = np.empty((*x.shape[:2], *output), x.dtype), initial_argmax(np, window, output)
    argmax = np.empty(out.shape, start.dtype)

    def task(tile: slice) -> None:
        maximum, index = out[tile], argmax[tile]
        view, better = scratch("view", maximum.shape, x.dtype), scratch("better", maximum.shape, bool)
        candidate = scratch("candidate", maximum.shape, argmax.dtype)
        for k, strided in enumerate(views(pad(x[tile], window.padding, -np.inf), window, output)):
            if k == 0:
                maximum[...], index[...] = strided, start
                continue
            view[...] = strided
            np.greater(view, maximum, out=better)
            np.maximum(maximum, view, out=maximum)
            # The candidate is 0, or k, which exceeds all indices so far.
            np.multiply(better.view(np.uint8), argmax.dtype.type(k), out=candidate)
            np.maximum(index, candidate, out=index)
        if np.isnan(maximum).any():  # Comparisons with NaN are false: the portable version searches this tile again.
            index[...] = portable("max_pool")(x[tile], window)[1]

    for_each_tile(x, task, x.shape[0], x[0].nbytes)
    return out, argmax


@accelerate("numpy")
def max_pool_backward(dout: Array, argmax: Array, shape: tuple[int, ...], window: Window) -> Array:
    """Write each gradient once if the windows tile the image, else add up those of overlapping windows."""
    (N, C, H, W), output, (KH, KW) = shape, dout.shape[2:], window.kernel_size
    padded_size = window.padded_size((H, W))
    padding_free = padded_size == (H, W)
    tiled = window.stride == (KH, KW) and padding_free and (output[0] * KH, output[1] * KW) == (H, W)
    dx = np.empty(shape, dout.dtype)

    def task(tile: slice) -> None:
        gradient, target = scratch("gradient", dout[tile].shape, dout.dtype), dx[tile]
        padded = target if padding_free else np.empty((len(target), C, *padded_size), dout.dtype)
        if not tiled:
            padded[...] = 0
        for k, view in enumerate(views(padded, window, output)):
            write_where(argmax[tile] == k, dout[tile], gradient)
            if tiled:
                view[...] = gradient
            else:
                view += gradient
        if padded is not target:
            target[...] = crop(padded, (H, W), window.padding)

    for_each_tile(dout, task, N, dx[0].nbytes)
    return dx

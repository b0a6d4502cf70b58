"""Max and average pooling on NumPy."""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from xpconv.backend._blocks import empty
from xpconv.ops.dispatch import accelerate, portable
from xpconv.ops.numpy._elementwise import write_where
from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import for_each_tile
from xpconv.ops.pool import divisor, initial_argmax
from xpconv.ops.windows import Pair, Window, crop, pad, views

Array = np.ndarray


@accelerate("numpy")
def max_pool(x: Array, window: Window) -> tuple[Array, Array]:
    """Copy one position of all windows at a time to contiguous memory, and compare it with the maxima so far."""
    output = window.output_size(x.shape[2:])
    out, start = empty((*x.shape[:2], *output), x.dtype), initial_argmax(np, window, output)
    argmax = empty(out.shape, start.dtype)

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
    dx = empty(shape, dout.dtype)

    def task(tile: slice) -> None:
        gradient, target = scratch("gradient", dout[tile].shape, dout.dtype), dx[tile]
        padded = target if padding_free else empty((len(target), C, *padded_size), dout.dtype)
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


@accelerate("numpy")
def avg_pool(x: Array, window: Window, counts: tuple[Pair, Pair]) -> Array:
    """Add up the rows of each window first, since rows are contiguous, and then the columns of those sums."""
    output = OH, _ = window.output_size(x.shape[2:])
    width = window.padded_size(x.shape[2:])[1]
    out, count = empty((*x.shape[:2], *output), x.dtype), divisor(counts, like=x)

    def task(tile: slice) -> None:
        total, part, across = out[tile], pad(x[tile], window.padding), window
        if 1 not in window.kernel_size:
            down, across = _split(window)
            rows = scratch("rows", (*total.shape[:3], width), x.dtype)
            _add_up(views(part, down, (OH, width)), rows)
            part = rows
        _add_up(views(part, across, output), total)
        total /= count

    for_each_tile(x, task, x.shape[0], x[0].nbytes)
    return out


@accelerate("numpy")
def avg_pool_backward(dout: Array, shape: tuple[int, ...], window: Window, counts: tuple[Pair, Pair]) -> Array:
    """Spread each gradient over the columns of its window, and then those columns over the rows."""
    output = OH, _ = dout.shape[2:]
    size = window.padded_size(shape[2:])
    dx, count = empty(shape, dout.dtype), divisor(counts, like=dout)

    def task(tile: slice) -> None:
        target = dx[tile]
        part = np.divide(dout[tile], count, out=scratch("gradient", dout[tile].shape, dout.dtype))
        padded = target if shape[2:] == size else scratch("padded", (*target.shape[:2], *size), dout.dtype)
        if 1 in window.kernel_size:
            _spread(part, padded, window, output)
        else:
            down, across = _split(window)
            columns = scratch("columns", (*target.shape[:2], OH, size[1]), dout.dtype)
            _spread(part, columns, across, output)
            _spread(columns, padded, down, (OH, size[1]))
        if padded is not target:
            target[...] = crop(padded, target.shape[2:], window.padding)

    for_each_tile(dout, task, shape[0], dx[0].nbytes)
    return dx


def _split(window: Window) -> tuple[Window, Window]:
    """Return windows of one column and of one row; applied in turn, they sum over the same pixels as `window`."""
    (KH, KW), (SH, SW), (DH, DW) = window.kernel_size, window.stride, window.dilation
    return Window((KH, 1), (SH, 1), dilation=(DH, 1)), Window((1, KW), (1, SW), dilation=(1, DW))


def _add_up(parts: Iterator[Any], out: Array) -> None:
    """Write the sum of arrays to `out`."""
    first, *others = parts
    if not others:
        out[...] = first
        return
    np.add(first, others[0], out=out)
    for part in others[1:]:
        out += part


def _spread(part: Array, out: Array, window: Window, output: Pair) -> None:
    """Add each element of `part` to all pixels of its window in `out`, from zero: the adjoint of summing windows."""
    disjoint = all(stride >= extent for stride, extent in zip(window.stride, window.extent, strict=True))
    if not disjoint or prod(output) * prod(window.kernel_size) < prod(out.shape[2:]):
        out[...] = 0
    for view in views(out, window, output):
        if disjoint:
            view[...] = part
        else:
            view += part

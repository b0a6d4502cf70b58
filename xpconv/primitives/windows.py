"""Sliding windows over images: unfold, its adjoint fold, and max pooling.

Letters: N images, C channels, (H, W) image, (KH, KW) window, (SH, SW) stride, (PH, PW) padding, (OH, OW) output.
"""

from collections.abc import Iterator
from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.primitives import primitive

__all__ = ["Pair", "first_places", "fold", "max_pool", "max_unpool", "output_size", "pad", "unfold", "windows"]

Pair = tuple[int, int]


def output_size(image: Pair, size: Pair, stride: Pair, padding: Pair) -> Pair:
    """Return how many windows fit below and beside each other; what is left over is not covered."""
    return (1 + (image[0] + 2 * padding[0] - size[0]) // stride[0],
            1 + (image[1] + 2 * padding[1] - size[1]) // stride[1])


def pad(x: Array, padding: Pair, value: float = 0.0) -> Array:
    """Surround the images (N, C, H, W) with `value`."""
    if padding == (0, 0):
        return x
    xp = array_api_compat.array_namespace(x)
    (N, C, H, W), (PH, PW) = x.shape, padding
    out = xp.full((N, C, H + 2 * PH, W + 2 * PW), value, dtype=x.dtype, device=array_api_compat.device(x))
    out[:, :, PH:PH + H, PW:PW + W] = x
    return out


def windows(padded: Array, size: Pair, stride: Pair, output: Pair) -> Iterator[Array]:
    """Yield, for each place in the window row by row, the view (N, C, OH, OW) of what all windows see there."""
    for i in range(size[0]):
        for j in range(size[1]):
            yield padded[:, :, i:i + stride[0] * (output[0] - 1) + 1:stride[0],
                         j:j + stride[1] * (output[1] - 1) + 1:stride[1]]


@primitive
def unfold(x: Array, size: Pair, stride: Pair, padding: Pair) -> Array:
    """Lay the windows of images out as columns (im2col).

    Parameters
    ----------
    x : array (N, C, H, W)
    size, stride, padding : (int, int)

    Returns
    -------
    array (C * KH * KW, N * OH * OW)
    """
    xp = array_api_compat.array_namespace(x)
    N, C, H, W = x.shape
    OH, OW = output_size((H, W), size, stride, padding)
    cols = xp.empty((C, size[0] * size[1], N, OH, OW), dtype=x.dtype, device=array_api_compat.device(x))
    for k, view in enumerate(windows(pad(x, padding), size, stride, (OH, OW))):
        cols[:, k, ...] = xp.permute_dims(view, (1, 0, 2, 3))
    return xp.reshape(cols, (C * size[0] * size[1], N * OH * OW))


@primitive
def fold(cols: Array, shape: tuple[int, int, int, int], size: Pair, stride: Pair, padding: Pair) -> Array:
    """Add columns back to where `unfold` took them from (col2im): its adjoint.

    Parameters
    ----------
    cols : array (C * KH * KW, N * OH * OW)
    shape : (N, C, H, W)
        The shape of the images.
    size, stride, padding : (int, int)

    Returns
    -------
    array (N, C, H, W)
    """
    xp = array_api_compat.array_namespace(cols)
    (N, C, H, W), (PH, PW) = shape, padding
    OH, OW = output_size((H, W), size, stride, padding)
    places = xp.reshape(cols, (C, size[0] * size[1], N, OH, OW))
    padded = xp.zeros((N, C, H + 2 * PH, W + 2 * PW), dtype=cols.dtype, device=array_api_compat.device(cols))
    for k, view in enumerate(windows(padded, size, stride, (OH, OW))):
        view[...] = view + xp.permute_dims(places[:, k, ...], (1, 0, 2, 3))
    return padded[:, :, PH:PH + H, PW:PW + W]


@primitive
def max_pool(x: Array, size: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    """Return the maximum of each window and its place in the window, the first one of equals; NaN exceeds all.

    Parameters
    ----------
    x : array (N, C, H, W)
    size, stride, padding : (int, int)
        The padding counts as minus infinity; it is less than the size, so that each window sees a pixel.

    Returns
    -------
    out : array (N, C, OH, OW)
    place : array (N, C, OH, OW) of integers
        Row-major in the window, 0 to KH * KW - 1, and never in the padding.
    """
    xp = array_api_compat.array_namespace(x)
    output = output_size(x.shape[2:], size, stride, padding)
    views = windows(pad(x, padding, -float("inf")), size, stride, output)
    best = xp.asarray(next(views), copy=True)
    start = first_places(xp, size, stride, padding, output, device=array_api_compat.device(x))
    place = xp.asarray(xp.broadcast_to(start, best.shape), copy=True)
    for k, view in enumerate(views, start=1):
        better = (view > best) | (xp.isnan(view) & ~xp.isnan(best))
        place = xp.where(better, xp.full_like(place, k), place)
        best = xp.maximum(best, view)
    return best, place


def first_places(xp: Any, size: Pair, stride: Pair, padding: Pair, output: Pair, device: Any = None) -> Array:
    """Return the place in each window (OH, OW) of its first pixel: at the upper and left edge, padding precedes it."""
    rows, columns = (xp.asarray([max(p - s * i, 0) for i in range(count)], dtype=xp.int64, device=device)
                     for s, p, count in zip(stride, padding, output, strict=True))
    return xp.astype(rows[:, None] * size[1] + columns[None, :], xp.uint8 if size[0] * size[1] <= 256 else xp.int64)


@primitive
def max_unpool(dout: Array, place: Array, shape: tuple[int, int, int, int],
               size: Pair, stride: Pair, padding: Pair) -> Array:
    """Add each gradient to the place that won its window: the adjoint of `max_pool`.

    Parameters
    ----------
    dout : array (N, C, OH, OW)
    place : array (N, C, OH, OW)
        As returned by `max_pool`.
    shape : (N, C, H, W)
        The shape of the images.
    size, stride, padding : (int, int)

    Returns
    -------
    array (N, C, H, W)
    """
    xp = array_api_compat.array_namespace(dout)
    (N, C, H, W), (PH, PW) = shape, padding
    device = array_api_compat.device(dout)
    padded = xp.zeros((N, C, H + 2 * PH, W + 2 * PW), dtype=dout.dtype, device=device)
    zero = xp.zeros((), dtype=dout.dtype, device=device)
    for k, view in enumerate(windows(padded, size, stride, dout.shape[2:])):
        view[...] = view + xp.where(place == k, dout, zero)
    return padded[:, :, PH:PH + H, PW:PW + W]

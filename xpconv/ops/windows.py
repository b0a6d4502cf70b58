"""Sliding windows over images: unfold, and its adjoint fold.

Letters: N images, C channels, (H, W) image, (KH, KW) window, (SH, SW) stride, (PH, PW) padding, (OH, OW) output.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["Pair", "fold", "output_size", "pad", "unfold", "windows"]

Pair: TypeAlias = tuple[int, ...]  # (height, width)


def output_size(image: Pair, kernel_size: Pair, stride: Pair, padding: Pair) -> Pair:
    """Return how many windows fit below and beside each other; what is left over is not covered."""
    return (
        1 + (image[0] + 2 * padding[0] - kernel_size[0]) // stride[0],
        1 + (image[1] + 2 * padding[1] - kernel_size[1]) // stride[1],
    )


def pad(x: Array, padding: Pair, value: float = 0.0) -> Any:
    """Surround the images (N, C, H, W) with `value`."""
    if padding == (0, 0):
        return x
    xp = array_api_compat.array_namespace(x)
    (N, C, H, W), (PH, PW) = x.shape, padding
    out = xp.full((N, C, H + 2 * PH, W + 2 * PW), value, dtype=x.dtype, device=array_api_compat.device(x))
    out[:, :, PH : PH + H, PW : PW + W] = x
    return out


def windows(padded: Array, kernel_size: Pair, stride: Pair, output: Pair) -> Iterator[Array]:
    """Yield, for each place in the window row by row, the view (N, C, OH, OW) of what all windows see there."""
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            yield padded[
                :,
                :,
                i : i + stride[0] * (output[0] - 1) + 1 : stride[0],
                j : j + stride[1] * (output[1] - 1) + 1 : stride[1],
            ]


@operation
def unfold(x: Array, kernel_size: Pair, stride: Pair, padding: Pair) -> Array:
    """Lay the windows of images out as columns (im2col).

    Parameters
    ----------
    x : array (N, C, H, W)
    kernel_size, stride, padding : (int, int)

    Returns
    -------
    array (C * KH * KW, N * OH * OW)
    """
    xp = array_api_compat.array_namespace(x)
    N, C, H, W = x.shape
    OH, OW = output_size((H, W), kernel_size, stride, padding)
    cols = xp.empty((C, kernel_size[0] * kernel_size[1], N, OH, OW), dtype=x.dtype, device=array_api_compat.device(x))
    for k, view in enumerate(windows(pad(x, padding), kernel_size, stride, (OH, OW))):
        cols[:, k, ...] = xp.permute_dims(view, (1, 0, 2, 3))
    return xp.reshape(cols, (C * kernel_size[0] * kernel_size[1], N * OH * OW))


@operation
def fold(cols: Array, shape: tuple[int, ...], kernel_size: Pair, stride: Pair, padding: Pair) -> Array:
    """Add columns back to where `unfold` took them from (col2im): its adjoint.

    Parameters
    ----------
    cols : array (C * KH * KW, N * OH * OW)
    shape : (N, C, H, W)
        The shape of the images.
    kernel_size, stride, padding : (int, int)

    Returns
    -------
    array (N, C, H, W)
    """
    xp = array_api_compat.array_namespace(cols)
    (N, C, H, W), (PH, PW) = shape, padding
    OH, OW = output_size((H, W), kernel_size, stride, padding)
    places = xp.reshape(cols, (C, kernel_size[0] * kernel_size[1], N, OH, OW))
    padded = xp.zeros((N, C, H + 2 * PH, W + 2 * PW), dtype=cols.dtype, device=array_api_compat.device(cols))
    for k, view in enumerate(windows(padded, kernel_size, stride, (OH, OW))):
        view[...] = view + xp.permute_dims(places[:, k, ...], (1, 0, 2, 3))
    return padded[:, :, PH : PH + H, PW : PW + W]

"""Max pooling over sliding windows.

Letters: N images, C channels, (H, W) image, (KH, KW) window, (SH, SW) stride, (PH, PW) padding, (OH, OW) output.
"""

from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation
from xpconv.ops.windows import Pair, output_size, pad, windows

__all__ = ["initial_argmax", "max_pool", "max_pool_backward"]


@operation
def max_pool(x: Array, kernel_size: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    """Return the maximum of each window and where in the window it is: the first of tied maxima. NaN exceeds all.

    Parameters
    ----------
    x : array (N, C, H, W)
    kernel_size, stride, padding : (int, int)
        The padding counts as minus infinity; it is less than kernel_size, so that each window sees a pixel.

    Returns
    -------
    out : array (N, C, OH, OW)
    argmax : array (N, C, OH, OW) of integers
        Row-major in the window, 0 to KH * KW - 1, and never in the padding.
    """
    xp = array_api_compat.array_namespace(x)
    output = output_size(x.shape[2:], kernel_size, stride, padding)
    views = windows(pad(x, padding, -float("inf")), kernel_size, stride, output)
    out = xp.asarray(next(views), copy=True)
    start = initial_argmax(xp, kernel_size, stride, padding, output, device=array_api_compat.device(x))
    argmax = xp.asarray(xp.broadcast_to(start, out.shape), copy=True)
    for k, view in enumerate(views, start=1):
        better = (view > out) | (xp.isnan(view) & ~xp.isnan(out))
        argmax = xp.where(better, xp.full_like(argmax, k), argmax)
        out = xp.maximum(out, view)
    return out, argmax


def initial_argmax(xp: Any, kernel_size: Pair, stride: Pair, padding: Pair, output: Pair, device: Any = None) -> Array:
    """Return the index in each window (OH, OW) of its first pixel: at the upper and left edge, padding precedes it."""
    rows, columns = (
        xp.asarray([max(p - s * i, 0) for i in range(count)], dtype=xp.int64, device=device)
        for s, p, count in zip(stride, padding, output, strict=True)
    )
    return xp.astype(
        rows[:, None] * kernel_size[1] + columns[None, :],
        xp.uint8 if kernel_size[0] * kernel_size[1] <= 256 else xp.int64,
    )


@operation
def max_pool_backward(
    dout: Array, argmax: Array, shape: tuple[int, ...], kernel_size: Pair, stride: Pair, padding: Pair
) -> Array:
    """Add each gradient to the maximum of its window: the adjoint of `max_pool`.

    Parameters
    ----------
    dout : array (N, C, OH, OW)
    argmax : array (N, C, OH, OW)
        As returned by `max_pool`.
    shape : (N, C, H, W)
        The shape of the images.
    kernel_size, stride, padding : (int, int)

    Returns
    -------
    array (N, C, H, W)
    """
    xp = array_api_compat.array_namespace(dout)
    (N, C, H, W), (PH, PW) = shape, padding
    device = array_api_compat.device(dout)
    padded = xp.zeros((N, C, H + 2 * PH, W + 2 * PW), dtype=dout.dtype, device=device)
    zero = xp.zeros((), dtype=dout.dtype, device=device)
    for k, view in enumerate(windows(padded, kernel_size, stride, dout.shape[2:])):
        view[...] = view + xp.where(argmax == k, dout, zero)
    return padded[:, :, PH : PH + H, PW : PW + W]

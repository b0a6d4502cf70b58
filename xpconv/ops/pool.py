"""Max pooling over sliding windows.

Letters: N images, C channels, (H, W) image, (KH, KW) window, (SH, SW) stride, (PH, PW) padding, (OH, OW) output.
"""

from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation
from xpconv.ops.windows import Pair, add_windows, output_size, pad, windows

__all__ = ["initial_argmax", "max_pool", "max_pool_backward"]


@operation
def max_pool(x: Array, kernel_size: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    """Return the maximum of each window and its index in the window.

    The first of tied maxima counts, and NaN counts as larger than every number.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    kernel_size, stride : (int, int)
        (KH, KW) and (SH, SW), in pixels.
    padding : (int, int)
        (PH, PW), pixels of minus infinity on each side; less than `kernel_size`, so that each window contains a pixel
        of the image.

    Returns
    -------
    out : array (N, C, OH, OW)
    argmax : array (N, C, OH, OW) of integers
        ``k * KW + l`` for row k and column l of the window; never a position in the padding.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[[[1.0, 5.0, 5.0], [2.0, 3.0, 4.0]]]])
    >>> max_pool(x, (2, 2), (1, 1), (0, 0))
    (array([[[[5., 5.]]]]), array([[[[1, 0]]]], dtype=uint8))
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
    """Return the index in each window of its first pixel inside the image: not 0 if the window begins in the padding.

    Parameters
    ----------
    xp : array namespace
    kernel_size, stride, padding : (int, int)
    output : (int, int)
        (OH, OW), the number of windows.
    device : device of `xp`, optional

    Returns
    -------
    array (OH, OW) of uint8, or of int64 if windows have more than 256 pixels

    Examples
    --------
    >>> import numpy as np
    >>> initial_argmax(np, (3, 3), (2, 2), (1, 1), (2, 2))
    array([[4, 3],
           [1, 0]], dtype=uint8)
    """
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
        Gradient of the output.
    argmax : array (N, C, OH, OW)
        As returned by `max_pool`.
    shape : (N, C, H, W)
        The shape of the images.
    kernel_size, stride, padding : (int, int)
        As given to `max_pool`.

    Returns
    -------
    array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[[[1.0, 5.0, 5.0], [2.0, 3.0, 4.0]]]])
    >>> out, argmax = max_pool(x, (2, 2), (1, 1), (0, 0))
    >>> max_pool_backward(np.array([[[[1.0, 10.0]]]]), argmax, x.shape, (2, 2), (1, 1), (0, 0))
    array([[[[ 0., 11.,  0.],
             [ 0.,  0.,  0.]]]])
    """
    xp = array_api_compat.array_namespace(dout)
    zero = xp.zeros((), dtype=dout.dtype, device=array_api_compat.device(dout))
    parts = (xp.where(argmax == k, dout, zero) for k in range(kernel_size[0] * kernel_size[1]))
    return add_windows(parts, shape, kernel_size, stride, padding, like=dout)

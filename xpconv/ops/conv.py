"""Convolution as one matrix product per tile of images (im2col).

Letters: N images, C channels, (H, W) image, F filters, (KH, KW) window, (OH, OW) output;
a tile of m images is unfolded to a matrix (K, P), with K = C * KH * KW and P = m * OH * OW.
"""

from math import prod

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation
from xpconv.ops.tiling import for_each_tile, sum_over_tiles
from xpconv.ops.windows import Pair, fold, output_size, unfold

__all__ = ["convolve", "convolve_backward"]


@operation
def convolve(x: Array, w: Array, b: Array | None, stride: Pair, padding: Pair, algorithm: str) -> Array:
    """Convolve images with filters: multiply the filters by the unfolded images, one tile of images at a time.

    ``out[n, f, i, j] = b[f] + sum over c, k, l of x[n, c, i * SH + k - PH, j * SW + l - PW] * w[f, c, k, l]``

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    w : array (F, C, KH, KW)
        Filters.
    b : array (F,) or None
        Bias.
    stride : (int, int)
        (SH, SW), in pixels.
    padding : (int, int)
        (PH, PW), pixels of zeros on each side.
    algorithm : {"auto", "im2col"}
        A hint for the accelerated versions; the portable version always unfolds the images (im2col).

    Returns
    -------
    array (N, F, OH, OW)

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    >>> convolve(x, w, np.array([0.5]), (1, 1), (0, 0), "auto")
    array([[[[4.5, 4.5],
             [4.5, 4.5]]]])
    """
    xp = array_api_compat.array_namespace(x)
    (N, F), (OH, OW) = (x.shape[0], w.shape[0]), output_size(x.shape[2:], w.shape[2:], stride, padding)
    rows = xp.reshape(w, (F, -1))  # (F, K)
    out = xp.empty((N, F, OH, OW), dtype=x.dtype, device=array_api_compat.device(x))

    def task(tile: slice) -> None:
        y = rows @ unfold(x[tile, ...], w.shape[2:], stride, padding)  # (F, K) @ (K, P)
        if b is not None:
            y += b[:, None]
        out[tile, ...] = xp.permute_dims(xp.reshape(y, (F, -1, OH, OW)), (1, 0, 2, 3))

    for_each_tile(x, task, N, _column_bytes(x, w, OH * OW))
    return out


@operation
def convolve_backward(
    dout: Array, x: Array, w: Array, stride: Pair, padding: Pair, algorithm: str, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    """Return the gradients of a convolution: those of an affine layer whose inputs are the unfolded images.

    Parameters
    ----------
    dout : array (N, F, OH, OW)
        Gradient of the output.
    x, w, stride, padding, algorithm
        As given to `convolve`.
    need_dx : bool
        If False, skip the gradient of the images.

    Returns
    -------
    dx : array (N, C, H, W) or None
    dw : array (F, C, KH, KW)
    db : array (F,)

    Examples
    --------
    >>> import numpy as np
    >>> x, w, dout = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    >>> dx, dw, db = convolve_backward(dout, x, w, (1, 1), (0, 0), "auto", need_dx=True)
    >>> dx
    array([[[[1., 2., 1.],
             [2., 4., 2.],
             [1., 2., 1.]]]])
    >>> dw, db
    (array([[[[4., 4.],
             [4., 4.]]]]), array([4.]))
    """
    xp = array_api_compat.array_namespace(x)
    F, (OH, OW) = w.shape[0], dout.shape[2:]
    rows = xp.reshape(w, (F, -1))  # (F, K)
    dx = xp.empty(x.shape, dtype=x.dtype, device=array_api_compat.device(x)) if need_dx else None

    def task(tile: slice) -> tuple[Array, Array]:
        images = x[tile, ...]  # (m, C, H, W)
        dy = xp.reshape(xp.permute_dims(dout[tile, ...], (1, 0, 2, 3)), (F, -1))  # (F, P)
        dw = dy @ unfold(images, w.shape[2:], stride, padding).T  # (F, P) @ (P, K)
        if dx is not None:
            dx[tile, ...] = fold(rows.T @ dy, images.shape, w.shape[2:], stride, padding)
        return dw, xp.sum(dy, axis=1)

    dw, db = sum_over_tiles(x, task, x.shape[0], 2 * _column_bytes(x, w, OH * OW))
    return dx, xp.reshape(dw, w.shape), db


def _column_bytes(x: Array, w: Array, windows: int) -> int:
    """Return the size of one image's columns, in bytes."""
    return int(prod(w.shape[1:])) * windows * (8 if "64" in str(x.dtype) else 4)

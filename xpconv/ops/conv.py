"""Convolution as one matrix product per tile of images (im2col).

Letters: N images, C channels, (H, W) image, F filters, (KH, KW) window, (OH, OW) output, G groups;
a tile of m images is unfolded to G matrices (K, P), with G * K = C * KH * KW and P = m * OH * OW.
"""

from math import prod
from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation
from xpconv.ops.tiling import for_each_tile, sum_over_tiles
from xpconv.ops.windows import Pair, Window, fold, unfold

__all__ = ["convolve", "convolve_backward", "convolve_transposed"]


@operation
def convolve(x: Array, w: Array, b: Array | None, window: Window, groups: int, algorithm: str) -> Array:
    """Convolve images with filters: multiply the filters by the unfolded images, one tile of images at a time.

    ``out[n, f, i, j] = b[f] + sum over c, k, l of padded[n, c, i * SH + k * DH, j * SW + l * DW] * w[f, c, k, l]``,
    where ``padded`` is x with zeros around it. With several groups, the channels c are those of the filter's own group:
    the first F / groups filters see the first C / groups channels, and so on.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    w : array (F, C / groups, KH, KW)
        Filters.
    b : array (F,) or None
        Bias.
    window : Window
        Of the filters' size; the padding is zeros.
    groups : int
        A divisor of C and of F.
    algorithm : {"auto", "im2col"}
        A hint for the accelerated versions; the portable version always unfolds the images (im2col).

    Returns
    -------
    array (N, F, OH, OW)

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    >>> convolve(x, w, np.array([0.5]), Window((2, 2)), 1, "auto")
    array([[[[4.5, 4.5],
             [4.5, 4.5]]]])
    """
    xp = array_api_compat.array_namespace(x)
    (N, F), (OH, OW) = (x.shape[0], w.shape[0]), window.output_size(x.shape[2:])
    rows = xp.reshape(w, (groups, F // groups, -1))  # (G, F / G, K)
    out = xp.empty((N, F, OH, OW), dtype=x.dtype, device=array_api_compat.device(x))

    def task(tile: slice) -> None:
        cols = unfold(x[tile, ...], window)
        y = rows @ xp.reshape(cols, (groups, -1, cols.shape[1]))  # (G, F / G, K) @ (G, K, P)
        y = xp.reshape(y, (F, -1, OH, OW))
        if b is not None:
            y += b[:, None, None, None]
        out[tile, ...] = xp.permute_dims(y, (1, 0, 2, 3))

    for_each_tile(x, task, N, _column_bytes(x, window, OH * OW))
    return out


@operation
def convolve_backward(
    dout: Array, x: Array, w: Array, window: Window, groups: int, algorithm: str, need_dx: bool, need_db: bool
) -> tuple[Array | None, Array, Array | None]:
    """Return the gradients of a convolution: those of an affine layer whose inputs are the unfolded images.

    Parameters
    ----------
    dout : array (N, F, OH, OW)
        Gradient of the output.
    x, w, window, groups, algorithm
        As given to `convolve`.
    need_dx, need_db : bool
        If False, skip the gradient of the images or of the bias.

    Returns
    -------
    dx : array (N, C, H, W) or None
    dw : array (F, C / groups, KH, KW)
    db : array (F,) or None

    Examples
    --------
    >>> import numpy as np
    >>> x, w, dout = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2))
    >>> dx, dw, db = convolve_backward(
    ...     dout, x, w, Window((2, 2)), 1, "auto", need_dx=True, need_db=True
    ... )
    >>> dx
    array([[[[1., 2., 1.],
             [2., 4., 2.],
             [1., 2., 1.]]]])
    >>> dw, db
    (array([[[[4., 4.],
             [4., 4.]]]]), array([4.]))
    """
    xp = array_api_compat.array_namespace(x)
    OH, OW = dout.shape[2:]
    columns = _filters_as_columns(xp, w, groups)
    dx = xp.empty(x.shape, dtype=x.dtype, device=array_api_compat.device(x)) if need_dx else None

    def task(tile: slice) -> tuple[Array, ...]:
        images = x[tile, ...]  # (m, C, H, W)
        dy = _images_as_rows(xp, dout[tile, ...], groups)
        cols = xp.reshape(unfold(images, window), (groups, -1, dy.shape[2]))  # (G, K, P)
        dw = dy @ xp.matrix_transpose(cols)
        if dx is not None:
            dx[tile, ...] = fold(xp.reshape(columns @ dy, (-1, dy.shape[2])), images.shape, window)
        return (dw, xp.sum(dy, axis=2)) if need_db else (dw,)

    dw, *db = sum_over_tiles(x, task, x.shape[0], 2 * _column_bytes(x, window, OH * OW))
    return dx, xp.reshape(dw, w.shape), xp.reshape(db[0], (w.shape[0],)) if need_db else None


@operation
def convolve_transposed(
    x: Array, w: Array, b: Array | None, size: Pair, window: Window, groups: int, algorithm: str
) -> Array:
    """Return the gradient of a convolution's images, given the gradient `x` of its output, plus a bias.

    Parameters
    ----------
    x : array (N, F, OH, OW)
        In place of the gradient of the convolution's output.
    w : array (F, C / groups, KH, KW)
        Filters of the convolution.
    b : array (C,) or None
        Bias.
    size : (int, int)
        (H, W), such that windows of images of this size give (OH, OW).
    window, groups, algorithm
        As given to `convolve`.

    Returns
    -------
    array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.asarray([[[[1.0, 2.0]]]]), np.ones((1, 1, 1, 3))
    >>> convolve_transposed(x, w, None, (1, 5), Window((1, 3), stride=(1, 2)), 1, "auto")
    array([[[[1., 1., 3., 2., 2.]]]])
    """
    xp = array_api_compat.array_namespace(x)
    C, columns = w.shape[1] * groups, _filters_as_columns(xp, w, groups)
    out = xp.empty((x.shape[0], C, *size), dtype=x.dtype, device=array_api_compat.device(x))

    def task(tile: slice) -> None:
        rows = _images_as_rows(xp, x[tile, ...], groups)
        cols = xp.reshape(columns @ rows, (-1, rows.shape[2]))
        images = fold(cols, (tile.stop - tile.start, C, *size), window)
        out[tile, ...] = images if b is None else images + b[:, None, None]

    for_each_tile(x, task, x.shape[0], 2 * _column_bytes(out, window, x.shape[2] * x.shape[3]))
    return out


def _filters_as_columns(xp: Any, w: Array, groups: int) -> Array:
    """Return filters (F, C / G, KH, KW) as one matrix for each group: (G, K, F / G)."""
    return xp.matrix_transpose(xp.reshape(w, (groups, w.shape[0] // groups, -1)))


def _images_as_rows(xp: Any, images: Array, groups: int) -> Array:
    """Return images (m, F, OH, OW) as one matrix for each group: (G, F / G, P)."""
    return xp.reshape(xp.permute_dims(images, (1, 0, 2, 3)), (groups, images.shape[1] // groups, -1))


def _column_bytes(x: Array, window: Window, windows: int) -> int:
    """Return the size of one image's columns, in bytes."""
    return int(x.shape[1] * prod(window.kernel_size)) * windows * (8 if "64" in str(x.dtype) else 4)

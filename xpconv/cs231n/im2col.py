"""The assignment's im2col: windows as columns, in its order: neighbouring columns belong to neighbouring images.

Letters: N images, C channels, (H, W) image, (FH, FW) window, P windows on an image, K = C * FH * FW.
"""

from collections.abc import Sequence

import numpy as np

from xpconv.backend import Array
from xpconv.layers._checks import make_window, window_output
from xpconv.ops.windows import fold, unfold

__all__ = ["col2im_indices", "get_im2col_indices", "im2col_indices"]


def get_im2col_indices(
    x_shape: Sequence[int], field_height: int, field_width: int, padding: int = 1, stride: int = 1
) -> tuple[Array, Array, Array]:
    """Return the channel, row and column in the padded image of each element of the columns.

    Parameters
    ----------
    x_shape : (N, C, H, W)
    field_height, field_width : int
        Size of the window in pixels.
    padding, stride : int
        In pixels.

    Returns
    -------
    k : array (K, 1) of int
    i, j : array (K, P) of int
        ``padded[:, k, i, j]`` holds the columns of each image.

    Raises
    ------
    ArgumentError
        If the window is larger than the padded image.

    Examples
    --------
    >>> k, i, j = get_im2col_indices((2, 3, 4, 4), 2, 2, padding=0, stride=2)
    >>> k.shape, i.shape, j.tolist()[0]
    ((12, 1), (12, 4), [0, 2, 0, 2])
    """
    output = window_output(x_shape, make_window((field_height, field_width), stride, padding))
    k, row, column = (a.reshape(-1, 1) for a in np.indices((x_shape[1], field_height, field_width)))
    down, across = (stride * a.reshape(1, -1) for a in np.indices(output))
    return k, row + down, column + across


def im2col_indices(x: Array, field_height: int, field_width: int, padding: int = 1, stride: int = 1) -> Array:
    """Lay the windows of images out as columns.

    Parameters
    ----------
    x : array (N, C, H, W)
    field_height, field_width, padding, stride : int
        In pixels.

    Returns
    -------
    array (K, P * N)

    Examples
    --------
    >>> im2col_indices(np.arange(8.0).reshape(2, 1, 2, 2), 2, 1, padding=0)
    array([[0., 4., 1., 5.],
           [2., 6., 3., 7.]])
    """
    window = make_window((field_height, field_width), stride, padding)
    window_output(x.shape, window)
    cols = np.asarray(unfold(x, window))
    K, N = cols.shape[0], x.shape[0]
    return np.reshape(np.transpose(np.reshape(cols, (K, N, -1)), (0, 2, 1)), (K, -1))


def col2im_indices(
    cols: Array, x_shape: Sequence[int], field_height: int = 3, field_width: int = 3, padding: int = 1, stride: int = 1
) -> Array:
    """Add each element of the columns to the pixel that `im2col_indices` took it from.

    Parameters
    ----------
    cols : array (K, P * N)
    x_shape : (N, C, H, W)
    field_height, field_width, padding, stride : int
        In pixels.

    Returns
    -------
    array (N, C, H, W)

    Examples
    --------
    >>> col2im_indices(np.ones((4, 4)), (1, 1, 3, 3), 2, 2, padding=0)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    (N, C, H, W), window = x_shape, make_window((field_height, field_width), stride, padding)
    window_output(x_shape, window)
    K = cols.shape[0]
    own = np.reshape(np.transpose(np.reshape(np.asarray(cols), (K, -1, N)), (0, 2, 1)), (K, -1))
    return fold(own, (N, C, H, W), window)

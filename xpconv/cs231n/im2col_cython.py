"""The assignment's compiled functions for windows as columns, by xpconv's kernels: nothing needs to be compiled."""

import numpy as np

from xpconv.backend import Array
from xpconv.cs231n.im2col import col2im_indices, im2col_indices

__all__ = ["col2im_6d_cython", "col2im_cython", "im2col_cython"]


def im2col_cython(x: Array, field_height: int, field_width: int, padding: int, stride: int) -> Array:
    """Lay the windows of x (N, C, H, W) out as columns; see `xpconv.cs231n.im2col.im2col_indices`.

    Examples
    --------
    >>> im2col_cython(np.arange(8.0).reshape(2, 1, 2, 2), 2, 1, 0, 1)
    array([[0., 4., 1., 5.],
           [2., 6., 3., 7.]])
    """
    return im2col_indices(x, field_height, field_width, padding, stride)


def col2im_cython(
    cols: Array, N: int, C: int, H: int, W: int, field_height: int, field_width: int, padding: int, stride: int
) -> Array:
    """Add each element of the columns to the pixel that `im2col_cython` took it from.

    Examples
    --------
    >>> col2im_cython(np.ones((4, 4)), 1, 1, 3, 3, 2, 2, 0, 1)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    return col2im_indices(cols, (N, C, H, W), field_height, field_width, padding, stride)


def col2im_6d_cython(cols: Array, N: int, C: int, H: int, W: int, HH: int, WW: int, pad: int, stride: int) -> Array:
    """Add each element of cols (C, HH, WW, N, out_h, out_w) to the pixel that it was taken from.

    Examples
    --------
    >>> col2im_6d_cython(np.ones((1, 2, 2, 1, 2, 2)), 1, 1, 3, 3, 2, 2, 0, 1)[0, 0]
    array([[1., 2., 1.],
           [2., 4., 2.],
           [1., 2., 1.]])
    """
    columns = np.reshape(np.moveaxis(np.asarray(cols), 3, -1), (C * HH * WW, -1))
    return col2im_indices(columns, (N, C, H, W), HH, WW, pad, stride)

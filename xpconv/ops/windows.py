"""Sliding windows over images: unfold, and its adjoint fold.

Letters: N images, C channels, (H, W) image, (KH, KW) window, (SH, SW) stride, (PH, PW) padding, (OH, OW) output.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["Pair", "add_windows", "fold", "output_size", "pad", "unfold", "windows"]

Pair: TypeAlias = tuple[int, ...]  # (height, width)


def output_size(image: Pair, kernel_size: Pair, stride: Pair, padding: Pair) -> Pair:
    """Return how many windows fit down and across an image.

    ``1 + (H + 2 * PH - KH) // SH`` down, and likewise across; no window covers the pixels left over at the end.

    Parameters
    ----------
    image : (int, int)
        (H, W).
    kernel_size, stride, padding : (int, int)

    Returns
    -------
    (int, int)
        (OH, OW).

    Examples
    --------
    >>> output_size((7, 6), (3, 3), (2, 2), (0, 1))
    (3, 3)
    """
    return (
        1 + (image[0] + 2 * padding[0] - kernel_size[0]) // stride[0],
        1 + (image[1] + 2 * padding[1] - kernel_size[1]) // stride[1],
    )


def pad(x: Array, padding: Pair, value: float = 0.0) -> Any:
    """Surround images with a border of `value`.

    Parameters
    ----------
    x : array (N, C, H, W)
    padding : (int, int)
        (PH, PW), pixels on each side.
    value : float

    Returns
    -------
    array (N, C, H + 2 * PH, W + 2 * PW)
        `x` itself if the padding is (0, 0).

    Examples
    --------
    >>> import numpy as np
    >>> pad(np.ones((1, 1, 1, 2)), (1, 1))
    array([[[[0., 0., 0., 0.],
             [0., 1., 1., 0.],
             [0., 0., 0., 0.]]]])
    """
    if padding == (0, 0):
        return x
    xp = array_api_compat.array_namespace(x)
    (N, C, H, W), (PH, PW) = x.shape, padding
    out = xp.full((N, C, H + 2 * PH, W + 2 * PW), value, dtype=x.dtype, device=array_api_compat.device(x))
    out[:, :, PH : PH + H, PW : PW + W] = x
    return out


def windows(padded: Array, kernel_size: Pair, stride: Pair, output: Pair) -> Iterator[Array]:
    """Yield a view for each position in the window, row by row: the pixel at that position of every window.

    Parameters
    ----------
    padded : array (N, C, H + 2 * PH, W + 2 * PW)
    kernel_size, stride : (int, int)
    output : (int, int)
        (OH, OW), the number of windows.

    Yields
    ------
    array (N, C, OH, OW)

    Examples
    --------
    >>> import numpy as np
    >>> x = np.asarray([[[[0, 1, 2], [3, 4, 5]]]])
    >>> [view.tolist() for view in windows(x, kernel_size=(2, 1), stride=(1, 1), output=(1, 3))]
    [[[[[0, 1, 2]]]], [[[[3, 4, 5]]]]]
    """
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            yield padded[
                :,
                :,
                i : i + stride[0] * (output[0] - 1) + 1 : stride[0],
                j : j + stride[1] * (output[1] - 1) + 1 : stride[1],
            ]


def add_windows(
    parts: Iterable[Array], shape: tuple[int, ...], kernel_size: Pair, stride: Pair, padding: Pair, like: Array
) -> Array:
    """Add values to the pixels that the windows have at each position, starting from zeros: the adjoint of `windows`.

    Parameters
    ----------
    parts : iterable of array (N, C, OH, OW)
        What to add for each position in the window, row by row.
    shape : (N, C, H, W)
        The shape of the images.
    kernel_size, stride, padding : (int, int)
    like : array
        Gives the result's library, dtype and device.

    Returns
    -------
    array (N, C, H, W)
        Without the padding, whose sums are dropped.

    Examples
    --------
    >>> import numpy as np
    >>> part = np.ones((1, 1, 1, 2))
    >>> add_windows([part, 10 * part], (1, 1, 1, 3), (1, 2), (1, 1), (0, 0), like=part)
    array([[[[ 1., 11., 10.]]]])
    """
    xp = array_api_compat.array_namespace(like)
    (N, C, H, W), (PH, PW) = shape, padding
    padded = xp.zeros((N, C, H + 2 * PH, W + 2 * PW), dtype=like.dtype, device=array_api_compat.device(like))
    output = output_size((H, W), kernel_size, stride, padding)
    for view, part in zip(windows(padded, kernel_size, stride, output), parts, strict=True):
        view += part
    return padded[:, :, PH : PH + H, PW : PW + W]


@operation
def unfold(x: Array, kernel_size: Pair, stride: Pair, padding: Pair) -> Array:
    """Lay out each window of the images as a column (im2col).

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    kernel_size, stride, padding : (int, int)
        (KH, KW), (SH, SW) and (PH, PW), in pixels; the padding is zeros.

    Returns
    -------
    array (C * KH * KW, N * OH * OW)
        Never shares memory with `x`.

    Examples
    --------
    >>> import numpy as np
    >>> unfold(np.asarray([[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]]), (2, 2), (1, 1), (0, 0))
    array([[0., 1.],
           [1., 2.],
           [3., 4.],
           [4., 5.]])
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
    """Add each element of the columns to the pixel that `unfold` takes it from (col2im): the adjoint of `unfold`.

    Parameters
    ----------
    cols : array (C * KH * KW, N * OH * OW)
    shape : (N, C, H, W)
        The shape of the images.
    kernel_size, stride, padding : (int, int)
        As given to `unfold`.

    Returns
    -------
    array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> fold(np.ones((4, 2)), (1, 1, 2, 3), (2, 2), (1, 1), (0, 0))
    array([[[[1., 2., 1.],
             [1., 2., 1.]]]])
    """
    xp = array_api_compat.array_namespace(cols)
    N, C, H, W = shape
    OH, OW = output_size((H, W), kernel_size, stride, padding)
    positions = xp.reshape(cols, (C, kernel_size[0] * kernel_size[1], N, OH, OW))
    parts = (xp.permute_dims(positions[:, k, ...], (1, 0, 2, 3)) for k in range(positions.shape[1]))
    return add_windows(parts, shape, kernel_size, stride, padding, like=cols)

"""Sliding windows over images: unfold, and its adjoint fold.

Letters: N images, C channels, (H, W) image, (KH, KW) window, (SH, SW) stride, (DH, DW) dilation, (OH, OW) output.
"""

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any, NamedTuple, TypeAlias

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation

__all__ = ["Pair", "Sides", "Window", "add_windows", "crop", "fold", "pad", "unfold", "views"]

Pair: TypeAlias = tuple[int, ...]  # (height, width)
Sides: TypeAlias = tuple[Pair, Pair]  # ((top, bottom), (left, right))


class Window(NamedTuple):
    """A window that slides over images: its size, and the places where it stops.

    Attributes
    ----------
    kernel_size : (int, int)
        (KH, KW), the pixels that the window has down and across.
    stride : (int, int)
        (SH, SW), from one window to the next, in pixels.
    padding : ((int, int), (int, int))
        ((top, bottom), (left, right)), the pixels added around the image.
    dilation : (int, int)
        (DH, DW), from one pixel of the window to the next, in pixels of the image.

    Examples
    --------
    >>> window = Window((3, 3), stride=(2, 2), padding=((0, 0), (1, 1)))
    >>> window.extent, window.output_size((7, 6))
    ((3, 3), (3, 3))
    """

    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Sides = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)

    @property
    def extent(self) -> Pair:
        """The pixels from the window's first to its last, down and across: ``1 + (KH - 1) * DH``."""
        return tuple(1 + (k - 1) * d for k, d in zip(self.kernel_size, self.dilation, strict=True))

    def padded_size(self, image: Pair) -> Pair:
        """Return the size (H, W) of a padded image."""
        return tuple(size + sum(sides) for size, sides in zip(image, self.padding, strict=True))

    def output_size(self, image: Pair) -> Pair:
        """Return how many windows fit down and across an image (H, W); pixels that are left over are in no window.

        ``1 + (H + top + bottom - extent) // SH`` down, and likewise across.
        """
        sizes = zip(self.padded_size(image), self.extent, self.stride, strict=True)
        return tuple(1 + (size - extent) // stride for size, extent, stride in sizes)


def pad(x: Array, padding: Sides, value: float = 0.0) -> Any:
    """Surround images with a border of `value`.

    Parameters
    ----------
    x : array (N, C, H, W)
    padding : ((int, int), (int, int))
        ((top, bottom), (left, right)), in pixels.
    value : float

    Returns
    -------
    array (N, C, H + top + bottom, W + left + right)
        `x` itself if there is nothing to add.

    Examples
    --------
    >>> import numpy as np
    >>> pad(np.ones((1, 1, 1, 2)), ((1, 0), (1, 1)))
    array([[[[0., 0., 0., 0.],
             [0., 1., 1., 0.]]]])
    """
    (N, C, H, W), ((top, bottom), (left, right)) = x.shape, padding
    if top == bottom == left == right == 0:
        return x
    xp = array_api_compat.array_namespace(x)
    shape = N, C, H + top + bottom, W + left + right
    out = xp.full(shape, value, dtype=x.dtype, device=array_api_compat.device(x))
    crop(out, (H, W), padding)[...] = x
    return out


def crop(padded: Any, size: Pair, padding: Sides) -> Any:
    """Return the view of padded images without their border.

    Parameters
    ----------
    padded : array (N, C, H + top + bottom, W + left + right)
    size : (int, int)
        (H, W).
    padding : ((int, int), (int, int))
        ((top, bottom), (left, right)).

    Returns
    -------
    array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> crop(np.asarray([[[[0.0, 1.0, 2.0, 3.0]]]]), (1, 2), ((0, 0), (1, 1)))
    array([[[[1., 2.]]]])
    """
    (H, W), ((top, _), (left, _)) = size, padding
    return padded[:, :, top : top + H, left : left + W]


def views(padded: Array, window: Window, output: Pair) -> Iterator[Array]:
    """Yield a view for each position in the window, row by row: the pixel at that position of every window.

    Parameters
    ----------
    padded : array (N, C, H + top + bottom, W + left + right)
    window : Window
    output : (int, int)
        (OH, OW), the number of windows.

    Yields
    ------
    array (N, C, OH, OW)

    Examples
    --------
    >>> import numpy as np
    >>> x = np.asarray([[[[0, 1, 2], [3, 4, 5]]]])
    >>> [view.tolist() for view in views(x, Window((2, 1)), output=(1, 3))]
    [[[[[0, 1, 2]]]], [[[[3, 4, 5]]]]]
    """
    (KH, KW), (SH, SW), (DH, DW), (OH, OW) = window.kernel_size, window.stride, window.dilation, output
    for i in range(0, KH * DH, DH):
        for j in range(0, KW * DW, DW):
            yield padded[:, :, i : i + SH * (OH - 1) + 1 : SH, j : j + SW * (OW - 1) + 1 : SW]


def add_windows(parts: Iterable[Array], shape: tuple[int, ...], window: Window, like: Array) -> Any:
    """Add values to the pixels that the windows have at each position, starting from zeros: the adjoint of `views`.

    Parameters
    ----------
    parts : iterable of array (N, C, OH, OW)
        What to add for each position in the window, row by row.
    shape : (N, C, H, W)
        The shape of the images.
    window : Window
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
    >>> add_windows([part, 10 * part], (1, 1, 1, 3), Window((1, 2)), like=part)
    array([[[[ 1., 11., 10.]]]])
    """
    xp = array_api_compat.array_namespace(like)
    N, C, *image = shape
    padded_shape = N, C, *window.padded_size(tuple(image))
    padded = xp.zeros(padded_shape, dtype=like.dtype, device=array_api_compat.device(like))
    for view, part in zip(views(padded, window, window.output_size(tuple(image))), parts, strict=True):
        view += part
    return crop(padded, tuple(image), window.padding)


@operation
def unfold(x: Array, window: Window) -> Array:
    """Lay out each window of the images as a column (im2col).

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    window : Window
        The padding is zeros.

    Returns
    -------
    array (C * KH * KW, N * OH * OW)
        Never shares memory with `x`.

    Examples
    --------
    >>> import numpy as np
    >>> unfold(np.asarray([[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]]), Window((2, 2)))
    array([[0., 1.],
           [1., 2.],
           [3., 4.],
           [4., 5.]])
    """
    xp = array_api_compat.array_namespace(x)
    (N, C, *_), (KH, KW), (OH, OW) = x.shape, window.kernel_size, window.output_size(x.shape[2:])
    cols = xp.empty((C, KH * KW, N, OH, OW), dtype=x.dtype, device=array_api_compat.device(x))
    for k, view in enumerate(views(pad(x, window.padding), window, (OH, OW))):
        cols[:, k, ...] = xp.permute_dims(view, (1, 0, 2, 3))
    return xp.reshape(cols, (C * KH * KW, N * OH * OW))


@operation
def fold(cols: Array, shape: tuple[int, ...], window: Window) -> Array:
    """Add each element of the columns to the pixel that `unfold` takes it from (col2im): the adjoint of `unfold`.

    Parameters
    ----------
    cols : array (C * KH * KW, N * OH * OW)
    shape : (N, C, H, W)
        The shape of the images.
    window : Window
        As given to `unfold`.

    Returns
    -------
    array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> fold(np.ones((4, 2)), (1, 1, 2, 3), Window((2, 2)))
    array([[[[1., 2., 1.],
             [1., 2., 1.]]]])
    """
    xp = array_api_compat.array_namespace(cols)
    N, C = shape[:2]
    positions = xp.reshape(cols, (C, prod(window.kernel_size), N, *window.output_size(shape[2:])))
    parts = (xp.permute_dims(positions[:, k, ...], (1, 0, 2, 3)) for k in range(positions.shape[1]))
    return add_windows(parts, shape, window, like=cols)

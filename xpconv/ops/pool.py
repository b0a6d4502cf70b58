"""Max and average pooling over sliding windows.

Letters: N images, C channels, (H, W) image, (KH, KW) window, (OH, OW) output.
"""

from itertools import groupby, repeat
from math import prod
from typing import Any

import array_api_compat

from xpconv.backend import Array
from xpconv.ops.dispatch import operation
from xpconv.ops.windows import Pair, Window, add_windows, pad, views

__all__ = ["avg_pool", "avg_pool_backward", "divisor", "initial_argmax", "max_pool", "max_pool_backward"]


@operation
def max_pool(x: Array, window: Window) -> tuple[Array, Array]:
    """Return the maximum of each window and its index in the window.

    The first of tied maxima counts, and NaN counts as larger than every number.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    window : Window
        The padding is minus infinity; each window must contain a pixel of the image.

    Returns
    -------
    out : array (N, C, OH, OW)
    argmax : array (N, C, OH, OW) of integers
        ``k * KW + l`` for row k and column l of the window; never a position in the padding.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[[[1.0, 5.0, 5.0], [2.0, 3.0, 4.0]]]])
    >>> max_pool(x, Window((2, 2)))
    (array([[[[5., 5.]]]]), array([[[[1, 0]]]], dtype=uint8))
    """
    xp = array_api_compat.array_namespace(x)
    output = window.output_size(x.shape[2:])
    first, *others = views(pad(x, window.padding, -float("inf")), window, output)
    out = xp.asarray(first, copy=True)
    start = initial_argmax(xp, window, output, device=array_api_compat.device(x))
    argmax = xp.asarray(xp.broadcast_to(start, out.shape), copy=True)
    for k, view in enumerate(others, start=1):
        better = (view > out) | (xp.isnan(view) & ~xp.isnan(out))
        argmax = xp.where(better, xp.full_like(argmax, k), argmax)
        out = xp.maximum(out, view)
    return out, argmax


def initial_argmax(xp: Any, window: Window, output: Pair, device: Any = None) -> Array:
    """Return the index in each window of its first pixel inside the image: not 0 if the window begins in the padding.

    Parameters
    ----------
    xp : array namespace
    window : Window
    output : (int, int)
        (OH, OW), the number of windows.
    device : device of `xp`, optional

    Returns
    -------
    array (OH, OW) of uint8, or of int64 if windows have more than 256 pixels

    Examples
    --------
    >>> import numpy as np
    >>> initial_argmax(np, Window((3, 3), (2, 2), ((1, 1), (1, 1))), output=(2, 2))
    array([[4, 3],
           [1, 0]], dtype=uint8)
    """
    KH, KW = window.kernel_size
    sides = zip(window.stride, window.padding, output, strict=True)
    # Computed on the device: a copy from the host could not be captured in a CUDA graph.
    steps = (xp.arange(count, dtype=xp.int64, device=device) * s - p for s, (p, _), count in sides)
    firsts = (-(start // d) for start, d in zip(steps, window.dilation, strict=True))
    rows, columns = (xp.where(first > 0, first, xp.zeros_like(first)) for first in firsts)
    return xp.astype(rows[:, None] * KW + columns[None, :], xp.uint8 if KH * KW <= 256 else xp.int64)


@operation
def max_pool_backward(dout: Array, argmax: Array, shape: tuple[int, ...], window: Window) -> Array:
    """Add each gradient to the maximum of its window: the adjoint of `max_pool`.

    Parameters
    ----------
    dout : array (N, C, OH, OW)
        Gradient of the output.
    argmax : array (N, C, OH, OW)
        As returned by `max_pool`.
    shape : (N, C, H, W)
        The shape of the images.
    window : Window
        As given to `max_pool`.

    Returns
    -------
    array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[[[1.0, 5.0, 5.0], [2.0, 3.0, 4.0]]]])
    >>> out, argmax = max_pool(x, Window((2, 2)))
    >>> max_pool_backward(np.array([[[[1.0, 10.0]]]]), argmax, x.shape, Window((2, 2)))
    array([[[[ 0., 11.,  0.],
             [ 0.,  0.,  0.]]]])
    """
    xp = array_api_compat.array_namespace(dout)
    zero = xp.zeros((), dtype=dout.dtype, device=array_api_compat.device(dout))
    parts = (xp.where(argmax == k, dout, zero) for k in range(prod(window.kernel_size)))
    return add_windows(parts, shape, window, like=dout)


@operation
def avg_pool(x: Array, window: Window, counts: tuple[Pair, Pair]) -> Array:
    """Return the sum of each window divided by its count.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    window : Window
        The padding is zeros.
    counts : (OH ints, OW ints)
        How many image rows count in each row of windows, and how many image columns in each column of windows.

    Returns
    -------
    array (N, C, OH, OW)

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[[[1.0, 5.0, 6.0], [2.0, 4.0, 7.0]]]])
    >>> avg_pool(x, Window((2, 2)), counts=((2,), (2, 2)))
    array([[[[3. , 5.5]]]])
    """
    first, *others = views(pad(x, window.padding), window, window.output_size(x.shape[2:]))
    total = first + 0.0
    for view in others:
        total += view
    return total / divisor(counts, like=total)


@operation
def avg_pool_backward(dout: Array, shape: tuple[int, ...], window: Window, counts: tuple[Pair, Pair]) -> Array:
    """Add each gradient, divided by its window's count, to all pixels of the window: the adjoint of `avg_pool`.

    Parameters
    ----------
    dout : array (N, C, OH, OW)
        Gradient of the output.
    shape : (N, C, H, W)
        The shape of the images.
    window, counts
        As given to `avg_pool`.

    Returns
    -------
    array (N, C, H, W)

    Examples
    --------
    >>> import numpy as np
    >>> avg_pool_backward(
    ...     np.array([[[[4.0, 8.0]]]]),
    ...     (1, 1, 2, 3),
    ...     Window((2, 2)),
    ...     counts=((2,), (2, 2)),
    ... )
    array([[[[1., 3., 2.],
             [1., 3., 2.]]]])
    """
    gradient = dout / divisor(counts, like=dout)
    return add_windows(repeat(gradient, prod(window.kernel_size)), shape, window, like=dout)


def divisor(counts: tuple[Pair, Pair], like: Array) -> Any:
    """Return how many pixels count in each window: a number if it is the same for all, otherwise an array (OH, OW).

    Parameters
    ----------
    counts : (OH ints, OW ints)
        As for `avg_pool`.
    like : array
        Gives the result's library, dtype and device.

    Examples
    --------
    >>> import numpy as np
    >>> divisor(((2,), (2, 2)), like=np.ones(1))
    4
    >>> divisor(((2, 1), (2, 2)), like=np.ones(1))
    array([[4., 4.],
           [2., 2.]])
    """
    rows, columns = counts
    if len(set(rows)) == len(set(columns)) == 1:
        return rows[0] * columns[0]
    xp, device = array_api_compat.array_namespace(like), array_api_compat.device(like)
    # Computed on the device: a copy from the host could not be captured in a CUDA graph.
    runs = ([(len(list(run)), size) for size, run in groupby(sizes)] for sizes in counts)
    down, across = (
        xp.concat([xp.full((length,), size, dtype=like.dtype, device=device) for length, size in each]) for each in runs
    )
    return down[:, None] * across[None, :]

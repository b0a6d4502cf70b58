"""Max and average pooling on CuPy."""

from math import prod

import cupy
import numpy as np

from xpconv.ops.cupy._launch import Array, Grid, Shape, aligned, grid_of, launch
from xpconv.ops.cupy._windows import windows_and_grids
from xpconv.ops.dispatch import accelerate, portable
from xpconv.ops.windows import Pair, Window


@accelerate("cupy")
def max_pool(x: Array, window: Window) -> tuple[Array, Array]:
    """Let each thread search one or more windows of a row."""
    output, windows, (grid, wide), _ = windows_and_grids(x.shape, window, x.dtype)
    x = aligned(x)
    shape, index = (*x.shape[:2], *output), "uint8" if prod(window.kernel_size) <= 256 else "int64"
    out, argmax = cupy.empty(shape, x.dtype), cupy.empty(shape, index)
    name = "max_pool_2x2" if _halves(x.shape, output, window) else "max_pool"
    launch(name, x.dtype, grid, x, out, argmax, windows, index=index, wide=wide)
    return out, argmax


@accelerate("cupy")
def max_pool_backward(dout: Array, argmax: Array, shape: Shape, window: Window) -> Array:
    """Let each thread add up the gradients of the windows whose maximum is one of its pixels."""
    dx, dout, argmax = cupy.empty(shape, dout.dtype), aligned(dout), aligned(argmax)
    names = "max_pool_2x2_backward", "max_pool_apart_backward", "max_pool_backward"
    name, grid, windows, wide = _plan_backward(shape, window, dout.dtype, names)
    launch(name, dout.dtype, grid, dout, argmax, dx, windows, index=argmax.dtype.name, wide=wide)
    return dx


@accelerate("cupy")
def avg_pool(x: Array, window: Window, counts: tuple[Pair, Pair]) -> Array:
    """Use one kernel if all windows count equally many pixels."""
    count = _single_count(counts)
    if not count:
        return portable("avg_pool")(x, window, counts)
    output, windows, (grid, wide), _ = windows_and_grids(x.shape, window, x.dtype)
    out = cupy.empty((*x.shape[:2], *output), x.dtype)
    name = "avg_pool_2x2" if _halves(x.shape, output, window) else "avg_pool"
    launch(name, x.dtype, grid, aligned(x), out, count, windows, wide=wide)
    return out


@accelerate("cupy")
def avg_pool_backward(dout: Array, shape: Shape, window: Window, counts: tuple[Pair, Pair]) -> Array:
    """Let each thread add up the gradients of the windows that contain its pixels, if all count equally many."""
    count = _single_count(counts)
    if not count:
        return portable("avg_pool_backward")(dout, shape, window, counts)
    dx, dout = cupy.empty(shape, dout.dtype), aligned(dout)
    names = "avg_pool_2x2_backward", "avg_pool_apart_backward", "avg_pool_backward"
    name, grid, windows, wide = _plan_backward(shape, window, dout.dtype, names)
    launch(name, dout.dtype, grid, dout, dx, count, windows, wide=wide)
    return dx


def _plan_backward(
    shape: Shape, window: Window, dtype: np.dtype, names: tuple[str, str, str]
) -> tuple[str, Grid, np.ndarray, int]:
    """Return the kernel, its grid, the struct Windows, and values per load.

    `names` are the kernels for windows of 2 x 2 pixels that cover the images, for other windows without overlaps,
    padding and dilation, and for all windows.
    """
    output, windows, _, (grid, wide) = windows_and_grids(shape, window, dtype)
    if _halves(shape, output, window):  # a thread writes two rows
        return names[0], grid_of(shape[1], shape[0] * prod(shape[2:]) // 2, wide=wide), windows, wide
    apart = window == Window(window.kernel_size, window.kernel_size)
    return names[1 if apart else 2], grid, windows, wide


def _single_count(counts: tuple[Pair, Pair]) -> float:
    """Return how many pixels count in each window, or 0 if their numbers differ."""
    rows, columns = counts
    return float(rows[0] * columns[0]) if len({*rows}) == len({*columns}) == 1 else 0.0


def _halves(shape: Shape, output: Pair, window: Window) -> bool:
    """Return whether windows of 2 x 2 pixels at stride 2 cover the images."""
    return window == Window((2, 2), (2, 2)) and shape[2:] == (2 * output[0], 2 * output[1])

"""Unfold and fold on CuPy (im2col), and the struct Windows, which describes windows to kernels."""

from functools import lru_cache
from math import prod

import cupy
import numpy as np

from xpconv.ops.cupy._launch import DIVISOR, Array, Grid, Shape, aligned, divisor, grid_of, launch, struct, width
from xpconv.ops.dispatch import accelerate
from xpconv.ops.windows import Pair, Window

_SIZES = ("N", "C", "H", "W", "KH", "KW", "SH", "SW", "DH", "DW", "PH", "PW", "OH", "OW")
_DIVISORS = ("image", "row", "output", "output_row", "down", "across", "apart_down", "apart_across")
_LEAST_PIXELS = 4  # of a thread that writes pixels: it has 4 / WIDE rounds if WIDE is less, as ROUNDS in kernels.cu
_WINDOWS = np.dtype([*((name, np.int32) for name in _SIZES), *((name, DIVISOR) for name in _DIVISORS)])


@lru_cache(maxsize=4096)
def windows_and_grids(
    shape: Shape, window: Window, dtype: np.dtype
) -> tuple[Pair, np.ndarray, tuple[Grid, int], tuple[Grid, int]]:
    """Return the output's size, the struct Windows, and grid and values per load over outputs and over pixels."""
    (N, C, H, W), (kernel_size, stride, ((top, _), (left, _)), dilation) = shape, window
    output = window.output_size((H, W))
    sizes = dict(zip(_SIZES, (*shape, *kernel_size, *stride, *dilation, top, left, *output), strict=True))
    divisors = (H * W, W, prod(output), output[1], *stride, *dilation)
    windows = struct(_WINDOWS, **sizes, **dict(zip(_DIVISORS, map(divisor, divisors), strict=True)))
    of_outputs, of_pixels = width(output[1], dtype, stride[1]), width(W, dtype)
    output_grid = grid_of(C, N * prod(output), wide=of_outputs)
    pixel_grid = grid_of(C, N * H * W, wide=max(of_pixels, _LEAST_PIXELS))
    return output, windows, (output_grid, of_outputs), (pixel_grid, of_pixels)


@accelerate("cupy")
def unfold(x: Array, window: Window) -> Array:
    """Let each thread copy one or more windows of a row."""
    output, windows, (grid, wide), _ = windows_and_grids(x.shape, window, x.dtype)
    cols = cupy.empty((x.shape[1] * prod(window.kernel_size), x.shape[0] * prod(output)), x.dtype)
    name, across = "unfold", width(cols.shape[1], x.dtype, window.stride[1])
    if across > wide:  # rows of windows are short of a wide store, but all windows together are not
        name, grid, wide = "unfold_across_rows", grid_of(x.shape[1], cols.shape[1], wide=across), across
    elif window.stride == (1, 1) and window.dilation[1] == 1:
        name = "unfold_at_stride_1"
    x = aligned(x) if x.shape[3] % wide == 0 else cupy.ascontiguousarray(x)
    launch(name, x.dtype, grid, x, cols, windows, wide=wide)
    return cols


@accelerate("cupy")
def fold(cols: Array, shape: Shape, window: Window) -> Array:
    """Let each thread add up the values that the columns have for one pixel."""
    x = cupy.empty(shape, cols.dtype)
    fold_into(x, cols, window)
    return x


def fold_into(x: Array, cols: Array, window: Window, bias: Array | None = None) -> None:
    """Write the folded columns to `x`, plus the bias of each channel."""
    _, windows, _, (grid, wide) = windows_and_grids(x.shape, window, x.dtype)
    cols = cupy.ascontiguousarray(cols)
    if window.stride[1] == 1:
        launch("fold_at_stride_1", x.dtype, grid, cols, bias, x, windows, wide=wide)
    else:
        launch("fold", x.dtype, grid, cols, bias, x, windows, wide=wide)

"""Convolution on CuPy: im2col and one matrix product for as many images as the workspace holds."""

from math import prod

import cupy

from xpconv.ops.cupy._groups import groups_and_grid
from xpconv.ops.cupy._launch import THREADS, Array, launch
from xpconv.ops.cupy._windows import fold_into, unfold
from xpconv.ops.dispatch import accelerate
from xpconv.ops.tiling import for_each_tile, sum_over_tiles
from xpconv.ops.windows import Pair, output_size


@accelerate("cupy")
def convolve(x: Array, w: Array, b: Array | None, stride: Pair, padding: Pair, algorithm: str) -> Array:
    """Multiply the filters by the columns."""
    (F, *_), kernel_size = w.shape, w.shape[2:]
    output = output_size(x.shape[2:], kernel_size, stride, padding)
    L, filters = prod(output), w.reshape(F, -1)
    out = cupy.empty((x.shape[0], F, *output), x.dtype)
    bias = None if b is None else cupy.ascontiguousarray(b)

    def task(tile: slice) -> None:
        y = filters.dot(unfold(x[tile], kernel_size, stride, padding))
        grid, groups, _ = groups_and_grid((tile.stop - tile.start, F, L), (), (0, 2))
        launch("to_images", x.dtype, grid, y, bias, out[tile], groups)

    for_each_tile(x, task, x.shape[0], (w[0].size + F) * L * x.itemsize)
    return out


@accelerate("cupy")
def convolve_backward(
    dout: Array, x: Array, w: Array, stride: Pair, padding: Pair, algorithm: str, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    """Multiply dout, as rows of filters, by the columns for dw and by the filters for the gradient of the columns."""
    (F, *_), kernel_size, L = w.shape, w.shape[2:], prod(dout.shape[2:])
    filters = w.reshape(F, -1)
    dx = cupy.empty(x.shape, x.dtype) if need_dx else None

    def task(tile: slice) -> tuple[Array, Array]:
        dy, db = images_to_rows(dout[tile])
        dw = dy.dot(unfold(x[tile], kernel_size, stride, padding).T)
        if dx is not None:
            fold_into(dx[tile], filters.T.dot(dy), kernel_size, stride, padding)
        return dw, db

    dw, db = sum_over_tiles(x, task, x.shape[0], (2 * w[0].size + F) * L * x.itemsize)
    return dx, dw.reshape(w.shape), db


def images_to_rows(images: Array) -> tuple[Array, Array]:
    """Return images (m, F, ...) as a matrix (F, m * L), and the sum of each of its rows."""
    (m, F), L, dtype = images.shape[:2], prod(images.shape[2:]), images.dtype
    grid, groups, _ = groups_and_grid((m, F, L), (), (0, 2))
    rows, pieces, sums = cupy.empty((F, m * L), dtype), cupy.empty(grid[0], dtype), cupy.empty(F, dtype)
    launch("to_rows", dtype, grid, cupy.ascontiguousarray(images), rows, pieces, groups)
    launch("total", dtype, ((F,), (THREADS,)), pieces, sums, groups)
    return rows, sums

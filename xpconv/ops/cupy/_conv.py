"""Convolution on CuPy: im2col and one matrix product for as many images as the workspace holds."""

from math import prod

import cupy

from xpconv.ops.cupy._gemm import gemm
from xpconv.ops.cupy._groups import plan_sums
from xpconv.ops.cupy._launch import THREADS, Array, aligned, launch, sum_dtype
from xpconv.ops.cupy._windows import fold_into, unfold
from xpconv.ops.dispatch import accelerate
from xpconv.ops.tiling import for_each_tile
from xpconv.ops.windows import Pair, Window


@accelerate("cupy")
def convolve(x: Array, w: Array, b: Array | None, window: Window, groups: int, algorithm: str) -> Array:
    """Multiply the filters by the columns."""
    (F, *_), output = w.shape, window.output_size(x.shape[2:])
    L, filters = prod(output), _by_groups(w.astype(x.dtype, copy=False), groups)  # (G, F / G, K)
    out = cupy.empty((x.shape[0], F, *output), x.dtype)
    bias = None if b is None else cupy.ascontiguousarray(b)

    def task(tile: slice) -> None:
        y = gemm(filters, _by_groups(unfold(x[tile], window), groups))
        grid, struct, _, wide = plan_sums((tile.stop - tile.start, F, L), x.dtype, (0, 2))
        launch("to_images", x.dtype, grid, y, bias, out[tile], struct, wide=wide)

    for_each_tile(x, task, x.shape[0], (groups * w[0].size + F) * L * x.itemsize)
    return out


@accelerate("cupy")
def convolve_backward(
    dout: Array, x: Array, w: Array, window: Window, groups: int, algorithm: str, need_dx: bool, need_db: bool
) -> tuple[Array | None, Array, Array | None]:
    """Multiply dout, as rows of filters, by the columns for dw and by the filters for the gradient of the columns."""
    F, L = w.shape[0], prod(dout.shape[2:])
    columns = _by_groups(w.astype(x.dtype, copy=False), groups).transpose(0, 2, 1)  # (G, K, F / G)
    dx = cupy.empty(x.shape, x.dtype) if need_dx else None
    dw, sums = cupy.empty((groups, F // groups, columns.shape[1]), sum_dtype(x.dtype)), []

    def task(tile: slice) -> None:
        dy, db = images_to_rows(dout[tile])
        dy = _by_groups(dy, groups)  # (G, F / G, P)
        cols = _by_groups(unfold(x[tile], window), groups)
        gemm(dy, cols.transpose(0, 2, 1), out=dw, beta=float(tile.start > 0))  # tiles are added up in order
        if dx is not None:
            fold_into(dx[tile], gemm(columns, dy), window)
        sums.append(db)

    for_each_tile(x, task, x.shape[0], (2 * groups * w[0].size + F) * L * x.itemsize)
    return dx, dw.reshape(w.shape), sum(sums[1:], start=sums[0]) if need_db else None


@accelerate("cupy")
def convolve_transposed(
    x: Array, w: Array, b: Array | None, size: Pair, window: Window, groups: int, algorithm: str
) -> Array:
    """Multiply the transposed filters by x, which gives columns; fold the columns and add the bias in one kernel."""
    F, L = w.shape[0], prod(x.shape[2:])
    columns = _by_groups(w.astype(x.dtype, copy=False), groups).transpose(0, 2, 1)  # (G, K, F / G)
    out = cupy.empty((x.shape[0], groups * w.shape[1], *size), x.dtype)
    bias = None if b is None else cupy.ascontiguousarray(b)

    def task(tile: slice) -> None:
        rows = _by_groups(images_to_rows(x[tile])[0], groups)
        fold_into(out[tile], gemm(columns, rows), window, bias)

    for_each_tile(x, task, x.shape[0], (groups * w[0].size + F) * L * x.itemsize)
    return out


def _by_groups(a: Array, groups: int) -> Array:
    """Return filters, or the rows of a matrix, as one matrix for each group of channels."""
    return a.reshape(groups, a.shape[0] // groups, -1)


def images_to_rows(images: Array) -> tuple[Array, Array]:
    """Return images (m, F, ...) as a matrix (F, m * L), and the sum of each of its rows."""
    (m, F), L, dtype = images.shape[:2], prod(images.shape[2:]), images.dtype
    grid, groups, _, wide = plan_sums((m, F, L), dtype, (0, 2))
    rows, pieces, sums = cupy.empty((F, m * L), dtype), *(cupy.empty(n, sum_dtype(dtype)) for n in (grid[0], F))
    launch("to_rows", dtype, grid, aligned(images), rows, pieces, groups, wide=wide)
    launch("total", dtype, ((F,), (THREADS,)), pieces, sums, groups)
    return rows, sums

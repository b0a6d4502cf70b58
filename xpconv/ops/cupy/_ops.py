"""CuPy versions of the primitives: the kernels of kernels.cu, and matrix products of two dimensions.

Nothing here waits for the device, and nothing adds in an order that may vary, so runs repeat bit by bit. Kernels take
contiguous arrays; others are copied first.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain
from math import prod
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from xpconv.errors import ArgumentError
from xpconv.ops.dispatch import accelerate
from xpconv.ops.tiling import for_each_tile, sum_over_tiles
from xpconv.ops.windows import Pair, output_size

Grid = tuple[tuple[int, int], tuple[int]]
Shape = tuple[int, ...]
Array = Any  # CuPy's, which has no types

_THREADS = 256  # of a block, as in kernels.cu
_BLOCKS = 1056  # that share a reduction: a GPU's processors hold 8 such blocks each, and an H200 has 132
_MOST = 65535  # blocks along a grid's second side
_REAL = {"f": "float", "d": "double"}


# ---- launching


@lru_cache
def _kernel(name: str, dtype: str, index: str = "uint8") -> Any:
    return _module(_REAL[dtype], index).get_function(name)


@lru_cache
def _module(real: str, index: str) -> Any:
    source = Path(__file__).with_name("kernels.cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=source, options=("-std=c++17", f"-DReal={real}", f"-DIndex={index}"))


def _struct(*numbers: int) -> np.ndarray:
    """Return ints as one argument, which a kernel takes as a struct."""
    packed = np.asarray(numbers, np.uint32)
    return packed.view(f"V{packed.nbytes}")


def _divisor(d: int) -> tuple[int, int, int]:
    """Return the struct Divisor."""
    shift = (d - 1).bit_length()
    return d, (1 << 32) * ((1 << shift) - d) // d + 1, shift


def _grid(rows: int, count: int, most: int = _MOST) -> Grid:
    """Return the blocks, and the threads of each, for rows of so many values; `most` blocks may share a row."""
    if count >= 2**31:
        raise ArgumentError(f"the batch has {count} values a channel; expected fewer than 2**31: take a smaller batch")
    return (rows, min(-(-count // _THREADS), _MOST, most)), (_THREADS,)


# ---- windows


@lru_cache(maxsize=4096)
def _windows(shape: Shape, kernel_size: Pair, stride: Pair, padding: Pair) -> tuple[Pair, np.ndarray, Grid, Grid]:
    """Return the output's size, the struct Windows, and the grids over outputs and over pixels."""
    N, C, H, W = shape
    output = output_size((H, W), kernel_size, stride, padding)
    divisors = (H * W, W, prod(output), output[1], *stride)
    return (
        output,
        _struct(*shape, *kernel_size, *stride, *padding, *output, *chain.from_iterable(map(_divisor, divisors))),
        _grid(C, N * prod(output)),
        _grid(C, N * H * W),
    )


@accelerate("cupy")
def unfold(x: Array, kernel_size: Pair, stride: Pair, padding: Pair) -> Array:
    """Let each thread copy one window."""
    output, windows, grid, _ = _windows(x.shape, kernel_size, stride, padding)
    cols = cupy.empty((x.shape[1] * kernel_size[0] * kernel_size[1], x.shape[0] * output[0] * output[1]), x.dtype)
    _kernel("unfold", x.dtype.char)(*grid, (cupy.ascontiguousarray(x), cols, windows))
    return cols


@accelerate("cupy")
def fold(cols: Array, shape: Shape, kernel_size: Pair, stride: Pair, padding: Pair) -> Array:
    """Let each thread add up what belongs to one pixel."""
    x = cupy.empty(shape, cols.dtype)
    _fold_into(x, cols, kernel_size, stride, padding)
    return x


def _fold_into(x: Array, cols: Array, kernel_size: Pair, stride: Pair, padding: Pair) -> None:
    _, windows, _, grid = _windows(x.shape, kernel_size, stride, padding)
    _kernel("fold", x.dtype.char)(*grid, (cupy.ascontiguousarray(cols), x, windows))


@accelerate("cupy")
def max_pool(x: Array, kernel_size: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    """Let each thread search one window."""
    output, windows, grid, _ = _windows(x.shape, kernel_size, stride, padding)
    shape, index = (*x.shape[:2], *output), "uint8" if kernel_size[0] * kernel_size[1] <= 256 else "int64"
    out, argmax = cupy.empty(shape, x.dtype), cupy.empty(shape, index)
    _kernel("max_pool", x.dtype.char, index)(*grid, (cupy.ascontiguousarray(x), out, argmax, windows))
    return out, argmax


@accelerate("cupy")
def max_pool_backward(
    dout: Array, argmax: Array, shape: Shape, kernel_size: Pair, stride: Pair, padding: Pair
) -> Array:
    """Let each thread ask the windows that see one pixel."""
    _, windows, _, grid = _windows(shape, kernel_size, stride, padding)
    dx = cupy.empty(shape, dout.dtype)
    _kernel("max_pool_backward", dout.dtype.char, argmax.dtype.name)(
        *grid, (cupy.ascontiguousarray(dout), cupy.ascontiguousarray(argmax), dx, windows)
    )
    return dx


# ---- convolution


@accelerate("cupy")
def convolve(x: Array, w: Array, b: Array | None, stride: Pair, padding: Pair, algorithm: str) -> Array:
    """Multiply the filters with the columns of as many images as the workspace holds."""
    (F, *_), kernel_size = w.shape, w.shape[2:]
    output = output_size(x.shape[2:], kernel_size, stride, padding)
    L, filters = prod(output), w.reshape(F, -1)
    out = cupy.empty((x.shape[0], F, *output), x.dtype)
    bias = None if b is None else cupy.ascontiguousarray(b)

    def task(tile: slice) -> None:
        y = filters.dot(unfold(x[tile], kernel_size, stride, padding))
        grid, groups, _ = _groups((tile.stop - tile.start, F, L), (), (0, 2))
        _kernel("to_images", x.dtype.char)(*grid, (y, bias, out[tile], groups))

    for_each_tile(x, task, x.shape[0], (w[0].size + F) * L * x.itemsize)
    return out


@accelerate("cupy")
def convolve_backward(
    dout: Array, x: Array, w: Array, stride: Pair, padding: Pair, algorithm: str, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    """Multiply the gradient's rows with the columns for the filters, and with the filters for the columns."""
    (F, *_), kernel_size, L = w.shape, w.shape[2:], prod(dout.shape[2:])
    filters = w.reshape(F, -1)
    dx = cupy.empty(x.shape, x.dtype) if need_dx else None

    def task(tile: slice) -> tuple[Array, Array]:
        dy, db = _rows(dout[tile])
        dw = dy.dot(unfold(x[tile], kernel_size, stride, padding).T)
        if dx is not None:
            _fold_into(dx[tile], filters.T.dot(dy), kernel_size, stride, padding)
        return dw, db

    dw, db = sum_over_tiles(x, task, x.shape[0], (2 * w[0].size + F) * L * x.itemsize)
    return dx, dw.reshape(w.shape), db


def _rows(images: Array) -> tuple[Array, Array]:
    """Return images (m, F, ...) as a matrix (F, m * L), and the sum of each of its rows."""
    (m, F), L, dtype = images.shape[:2], prod(images.shape[2:]), images.dtype
    grid, groups, _ = _groups((m, F, L), (), (0, 2))
    rows, parts, sums = cupy.empty((F, m * L), dtype), cupy.empty(grid[0], dtype), cupy.empty(F, dtype)
    _kernel("to_rows", dtype.char)(*grid, (cupy.ascontiguousarray(images), rows, parts, groups))
    _kernel("total", dtype.char)((F,), (_THREADS,), (parts, sums, groups))
    return rows, sums


# ---- normalisation


@lru_cache(maxsize=4096)
def _groups(shape: Shape, scale: Shape, axes: tuple[int, ...], pieces: int = 0) -> tuple[Grid, np.ndarray, Shape]:
    """Return the grid for sums over `axes`, the struct Groups, and the shape of the sums.

    The axes that stay lie side by side. `scale` is the shape of gamma, whose axes of more than 1 value do so, too.
    The struct gets the grid's own number of pieces, or the one given.
    """
    stay = [axis for axis in range(len(shape)) if axis not in axes]
    A, S, B = prod(shape[: stay[0]]), prod(shape[axis] for axis in stay), prod(shape[stay[-1] + 1 :])
    last = max((axis for axis, count in enumerate(scale) if count > 1), default=None)
    inner = B if last is None else prod(shape[last + 1 :])  # of a single channel only whether it is B or more counts
    grid = _grid(S, A * B, max(1, _BLOCKS // S))
    return (
        grid,
        _struct(A, S, pieces or grid[0][1], prod(scale), *_divisor(B), *_divisor(inner)),
        tuple(1 if axis in axes else count for axis, count in enumerate(shape)),
    )


@accelerate("cupy")
def normalise(
    x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], tile_axis: int, eps: float
) -> tuple[Array, Array, Array, Array]:
    """Sum pieces of x, then of its squared deviations from the mean; scale and shift in a third kernel."""
    grid, groups, shape = _groups(x.shape, gamma.shape, tuple(axes))
    x, gamma, beta = (cupy.ascontiguousarray(a) for a in (x, gamma, beta))
    dtype = x.dtype
    out, mean, var, inv_std = cupy.empty(x.shape, dtype), *(cupy.empty(shape, dtype) for _ in range(3))
    sums, squares = (cupy.empty(grid[0], "float64") for _ in range(2))
    _kernel("sum", dtype.char)(*grid, (x, sums, groups))
    _kernel("sum_of_squares", dtype.char)(*grid, (x, sums, squares, groups))
    _kernel("normalise", dtype.char)(
        *grid, (x, gamma, beta, sums, squares, float(eps), out, mean, var, inv_std, groups)
    )
    return out, mean, var, inv_std


@accelerate("cupy")
def normalise_backward(
    dout: Array,
    x: Array,
    mean: Array,
    inv_std: Array,
    gamma: Array,
    *,
    axes: Sequence[int],
    param_axes: Sequence[int],
    tile_axis: int,
) -> tuple[Array, Array, Array]:
    """Take all sums in one kernel, one for each value of dgamma; a second one adds them up where groups are larger."""
    fine, rows, shape = _groups(x.shape, gamma.shape, tuple(param_axes))
    grid, groups, _ = _groups(x.shape, gamma.shape, tuple(axes), fine[0][1])
    dout, x, mean, inv_std, gamma = (cupy.ascontiguousarray(a) for a in (dout, x, mean, inv_std, gamma))
    dtype, share = x.dtype, fine[0][0] // grid[0][0]
    dx, dgamma, dbeta = cupy.empty(x.shape, dtype), cupy.empty(shape, dtype), cupy.empty(shape, dtype)
    parts = cupy.empty((4, *fine[0]), dtype)
    _kernel("gradient_sums", dtype.char)(*fine, (dout, x, mean, inv_std, gamma, parts, share, rows))
    _kernel("normalise_backward", dtype.char)(
        *grid, (dout, x, mean, inv_std, gamma, parts, dx, dgamma, dbeta, share, groups)
    )
    return dx, dgamma, dbeta


# ---- element by element, of any strides


_relu = cupy.ElementwiseKernel(
    "T x", "T out, bool mask", "mask = x > 0; out = mask || x != x ? x : T(0)", "xpconv_relu"
)
_relu_backward = cupy.ElementwiseKernel("T dout, bool mask", "T dx", "dx = mask ? dout : T(0)", "xpconv_relu_backward")
_update_running_average = cupy.ElementwiseKernel(
    "T old, T now, T momentum, T rest", "T out", "out = momentum * old + rest * now", "xpconv_update_running_average"
)
_adam_step = cupy.ElementwiseKernel(
    "T dw, T beta1, T rest1, T beta2, T rest2, T step, T epsilon",
    "T w, T m, T v",
    "m = beta1 * m + rest1 * dw; v = beta2 * v + rest2 * dw * dw; w -= step * m / (sqrt(v) + epsilon)",
    "xpconv_adam_step",
)


@accelerate("cupy")
def relu(x: Array) -> tuple[Array, Array]:
    """Write both results at once."""
    out, mask = _relu(x)
    return out, mask


@accelerate("cupy")
def relu_backward(dout: Array, mask: Array) -> Array:
    """Choose in one kernel."""
    return _relu_backward(dout, mask)


@accelerate("cupy")
def update_running_average(old: Array, new: Array, momentum: float) -> Array:
    """Use one kernel for the two products and their sum."""
    return _update_running_average(old, new, momentum, 1 - momentum)


@accelerate("cupy")
def adam_step(w: Array, dw: Array, m: Array, v: Array, beta1: float, beta2: float, step: float, epsilon: float) -> None:
    """Update all three arrays in one kernel."""
    _adam_step(dw, beta1, 1 - beta1, beta2, 1 - beta2, step, epsilon, w, m, v)


# ---- losses


@accelerate("cupy")
def add_l2_penalty(loss: Array, weights: Sequence[Array], grads: Sequence[Array], reg: float) -> Array:
    """Read each weight once, and add up what all of them left in one more kernel."""
    weights, grads = ([a for a in some if a.size] for some in (weights, grads))
    dtype, grids = loss.dtype, [_grid(1, W.size, _BLOCKS) for W in weights]
    ends = list(accumulate((grid[1] for grid, _ in grids), initial=0))
    parts, out = cupy.empty(ends[-1], dtype), cupy.empty((), dtype)
    for W, grad, grid, start in zip(weights, grads, grids, ends, strict=False):
        flat = cupy.ascontiguousarray(grad)
        _kernel("decay", dtype.char)(*grid, (cupy.ascontiguousarray(W), flat, parts[start:], float(reg), W.size))
        if flat is not grad:
            grad[...] = flat
    _kernel("penalty", dtype.char)((1,), (_THREADS,), (loss, parts, out, float(reg), parts.size))
    return out


@accelerate("cupy")
def largest_finite(a: Array) -> Array:
    """Reduce the array to one pair a block, then those to one."""
    grid, dtype = _grid(1, a.size, _BLOCKS), a.dtype
    blocks = grid[0][1]
    pieces, out = cupy.empty((2, blocks), dtype), cupy.empty(2, dtype)
    _kernel("largest_finite", dtype.char)(*grid, (cupy.ascontiguousarray(a), pieces, a.size))
    _kernel("largest_finite_of_pieces", dtype.char)((1,), (_THREADS,), (pieces, out, blocks))
    return out


@accelerate("cupy")
def softmax_cross_entropy(x: Array, y: Array) -> tuple[Array, Array]:
    """Give each sample to the 32 threads of a warp."""
    (N, C), samples = x.shape, _THREADS // 32
    losses, dx = cupy.empty(N, x.dtype), cupy.empty((N, C), x.dtype)
    labels = cupy.ascontiguousarray(y, dtype="int64")
    _kernel("softmax", x.dtype.char)(
        (-(-N // samples),), (32, samples), (cupy.ascontiguousarray(x), labels, losses, dx, N, C)
    )
    return losses, dx

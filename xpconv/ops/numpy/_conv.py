"""Convolution on NumPy by memory-efficient lowering (MEC; Cho and Brand 2017): im2col along the width alone.

Each row of the padded images becomes one *line*: a matrix (C * KW, m * OW) with a row for each channel and each column
of the window, and a column for each image of the tile and each window across it. Example, for one channel, one image
of 5 pixels across, and windows of KW = 3 columns at stride 1::

    image row   p0 p1 p2 p3 p4          line   p0 p1 p2     first column of the 3 windows
                                               p1 p2 p3     second
                                               p2 p3 p4     third

The window's height needs no copies: a window covers KH image rows, and reads their KH lines where they are. Lines are
stored in one of two orders, so that the lines that a matrix product needs are contiguous.

Example: windows of KH = 3 rows at stride SH = 2, and OH = 3 rows of output. The number of an image row is written as
``q * SH + phase``; every window begins at phase 0.

*By rows*, lines have the order of the image rows. The KH lines that one row of the output depends on, its *section*,
are then one matrix (KH * C * KW, m * OW), and ``out row = filters @ section``. Sections overlap::

    image row   q   phase   line              section of output row
        0       0     0     [C*KW, m*OW]      0
        1       0     1     [C*KW, m*OW]      0
        2       1     0     [C*KW, m*OW]      0   1
        3       1     1     [C*KW, m*OW]          1
        4       2     0     [C*KW, m*OW]          1   2
        5       2     1     [C*KW, m*OW]              2
        6       3     0     [C*KW, m*OW]              2
        7       3     1     [C*KW, m*OW]      (in no section)

*By channels*, lines of the same phase are side by side in one matrix of C * KW rows. The OH lines that one row of the
window meets on its way down the image, its *slice*, are then one matrix (C * KW, OH * m * OW), and
``dw of the window row = slice @ dout.T``::

                 q = 0    1    2    3         slice of window row
    phase 0        | 0  | 2  | 4  | 6  |      0: image rows 0 2 4      2: image rows 2 4 6
    phase 1        | 1  | 3  | 5  | 7  |      1: image rows 1 3 5

Letters: N images, C channels, F filters, (H, W) image, (KH, KW) window, (SH, SW) stride, (OH, OW)
output; m images in a tile, Q values of q.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod
from operator import le
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.backend._blocks import empty
from xpconv.ops.dispatch import accelerate, portable
from xpconv.ops.numpy import _depthwise as depthwise
from xpconv.ops.numpy import _dilated as dilated
from xpconv.ops.numpy import _winograd as winograd
from xpconv.ops.numpy._blas import has_small_products
from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._sums import sum_of_products
from xpconv.ops.numpy._tiles import for_each_tile, map_tiles, sum_over_tiles
from xpconv.ops.windows import Pair, Window

Array = np.ndarray
_BY_ROWS, _BY_CHANNELS = (0, 1, 2, 3, 4, 5), (1, 2, 3, 0, 4, 5)  # Orders of the axes (Q, phases, C, KW, m, OW).
_FEW_WEIGHTS = 1 << 13  # With fewer weights, dw is computed for each row of the output and then summed.
_FEW_WEIGHTS_WITH_SMALL_PRODUCTS = 1 << 15  # The same limit where BLAS multiplies small matrices fast.
_MIN_COLUMNS = 128  # From this number of columns on, a matrix product is fast.
_SMALL_PRODUCT = 1_000_000  # Up to this number of multiplications, OpenBLAS computes ``a @ b`` 1.3 times as fast.
_SMALL_RESULT = 1200  # Up to this number of elements in the result, it computes ``a @ b.T`` 1.4 times as fast.


@lru_cache
class _Lines:
    """The lines of one tile: their geometry, and the copies to and from them."""

    def __init__(self, shape: tuple[int, ...], window: Window) -> None:
        (self.m, self.C, H, W), (self.KH, KW), stride = shape, window.kernel_size, window.stride
        self.window, self.image, self.padded_size = window, (H, W), window.padded_size((H, W))
        self.OH, self.OW = window.output_size((H, W))
        Q, phases = self.OH + (self.KH - 1) // stride[0], min(self.KH, stride[0])
        self.shape = Q, phases, self.C, KW, self.m, self.OW
        self.height = (Q - 1) * stride[0] + phases  # Rows that a padded image needs, to have one for every line.
        self.nothing_to_copy = self.m == H == 1 and W >= _MIN_COLUMNS and window == Window((1, 1))

    def lower(self, images: Array, order: tuple[int, ...]) -> Array:
        """Copy images (m, C, H, W) to lines, by rows or by channels."""
        shape = tuple(self.shape[axis] for axis in order)
        if self.nothing_to_copy:
            return np.ascontiguousarray(images).reshape(shape)
        padded = inside = images.transpose(1, 2, 0, 3)
        if self.padded_size != self.image or self.height > self.image[0]:
            (H, W), ((top, _), (left, _)) = self.image, self.window.padding
            padded, inside = self._padded("padded", images.dtype)
            padded[:, :top], padded[:, top + H :], padded[..., :left], padded[..., left + W :] = 0, 0, 0, 0
            inside[...] = images.transpose(1, 2, 0, 3)
        lines = scratch("lines", shape, images.dtype)
        lines[...] = self._windows(padded).transpose(order)
        return lines

    def image_bytes(self, itemsize: int, columns: bool = False) -> int:
        """Return the size of one image's lines or, if `columns`, of its columns, in bytes.

        If nothing is copied, return a huge size, which makes every tile a single image.
        """
        if self.nothing_to_copy:
            return sys.maxsize
        Q, phases = self.shape[:2]
        rows = self.KH * self.OH if columns else Q * phases
        return rows * prod(self.shape[2:]) // self.m * itemsize

    def _padded(self, name: str, dtype: np.dtype) -> tuple[Array, Array]:
        """Return a scratch array for padded images (C, rows, m, columns), and a view of it without the padding."""
        (H, W), ((top, _), (left, _)), (height, width) = self.image, self.window.padding, self.padded_size
        padded = scratch(name, (self.C, max(height, self.height), self.m, width), dtype)
        return padded, padded[:, top : top + H, :, left : left + W]

    def _windows(self, padded: Array) -> Array:
        """Return padded images as a view in the shape of the lines."""
        (SH, SW), (c, h, n, w) = self.window.stride, padded.strides
        return as_strided(padded, self.shape, (h * SH, h, c, w, n, w * SW))

    def sections(self, lines: Array) -> Array:
        """Return the sections of lines by rows: a view (OH, KH * C * KW, m * OW) whose sections overlap."""
        K, L = self.KH * self.C * self.shape[3], self.m * self.OW
        return as_strided(lines, (self.OH, K, L), (lines.strides[0], L * lines.itemsize, lines.itemsize))

    def slices(self, lines: Array) -> list[Array]:
        """Return the slices of lines by channels: KH views (C * KW, OH * m * OW)."""
        starts = [divmod(i, self.window.stride[0]) for i in range(self.KH)]
        return [lines[phase, :, :, q : q + self.OH].reshape(-1, self.OH * self.m * self.OW) for q, phase in starts]

    def fold(self, cols: Array, images: Array) -> None:
        """Add columns (KH, C * KW, OH * m * OW) to the pixels that they came from, and write `images` (m, C, H, W)."""
        if self.nothing_to_copy:
            images[...] = cols.reshape(images.shape)
            return
        lines = scratch("dlines", tuple(self.shape[axis] for axis in _BY_CHANNELS), cols.dtype)
        lines[...] = 0
        for lines_of_row, cols_of_row in zip(self.slices(lines), cols, strict=True):
            lines_of_row += cols_of_row
        padded, inside = self._padded("dpadded", cols.dtype)
        padded[...] = 0
        windows = self._windows(padded).transpose(_BY_CHANNELS)
        for j in range(self.shape[3]):  # Windows overlap across: add one column of the window at a time.
            windows[:, :, j] += lines[:, :, j]
        images[...] = inside.transpose(2, 0, 1, 3)


def _flatten_for_1x1(x: Array, window: Window) -> Array:
    """Reshape images to a single row for a 1x1 convolution with stride 1, if they are large; else return `x`."""
    return x.reshape(*x.shape[:2], 1, -1) if window == Window((1, 1)) and x[0, 0].size >= _MIN_COLUMNS else x


def _padding_before(window: Window) -> Pair:
    """Return the padding of a window above the images and on their left."""
    (top, _), (left, _) = window.padding
    return top, left


@accelerate("numpy")
def convolve(x: Array, w: Array, b: Array | None, window: Window, groups: int, algorithm: str) -> Array:
    """Convolve each group by itself, or all at once if they have one channel each."""
    if not _is_fast(window, w, groups):
        slow: Array = portable("convolve")(x, w, b, window, groups, algorithm)
        return slow
    out = empty((len(x), len(w), *window.output_size(x.shape[2:])), x.dtype)
    if _is_depthwise(window, w, groups):
        depthwise.convolve(x, w, b, window, out)
    else:
        for channels, filters in _groups(w, groups):
            bias = None if b is None else b[filters]
            _convolve_group(x[:, channels], w[filters], bias, window, algorithm, out[:, filters])
    return out


@accelerate("numpy")
def convolve_backward(
    dout: Array, x: Array, w: Array, window: Window, groups: int, algorithm: str, need_dx: bool, need_db: bool
) -> tuple[Array | None, Array, Array | None]:
    """Compute the gradients of each group by itself, or of all at once if they have one channel each."""
    if not _is_fast(window, w, groups):
        slow: tuple[Array | None, Array, Array | None] = portable("convolve_backward")(
            dout, x, w, window, groups, algorithm, need_dx, need_db
        )
        return slow
    dx = empty(x.shape, x.dtype) if need_dx else None
    db = _bias_gradient(dout) if need_db else None
    if _is_depthwise(window, w, groups):
        return dx, depthwise.convolve_backward(dout, x, w, window, dx), db
    parts = [
        _convolve_group_backward(
            dout[:, filters], x[:, channels], w[filters], window, algorithm, None if dx is None else dx[:, channels]
        )
        for channels, filters in _groups(w, groups)
    ]
    return dx, np.concatenate(parts) if groups > 1 else parts[0], db


def _bias_gradient(dout: Array) -> Array:
    """Return db, the sum of dout over images and pixels."""
    rows = dout.reshape(*dout.shape[:2], -1)
    (total,) = map_tiles(rows, function=lambda rows: (sum_of_products((0, 2), rows),), axis=1)
    return total.reshape(-1)


@accelerate("numpy")
def convolve_transposed(
    x: Array, w: Array, b: Array | None, size: Pair, window: Window, groups: int, algorithm: str
) -> Array:
    """Convolve with rotated filters at stride 1 and phase by phase at larger strides, or fold where that is faster."""
    if _is_rotated_convolution(window, w, groups):
        rotated, full = _rotated(w, window, groups)
        return convolve(x, rotated, b, full, groups, algorithm)
    if window.dilation != (1, 1) or _is_faster_to_fold(window, w, groups) or _is_depthwise(window, w, groups):
        slow: Array = portable("convolve_transposed")(x, w, b, size, window, groups, algorithm)
        return slow
    out = empty((len(x), w.shape[1] * groups, *size), x.dtype)
    for channels, filters in _groups(w, groups):
        bias = None if b is None else b[channels]
        _run(x, _input_gradient(x[:, filters], w[filters], bias, window, out[:, channels]))
    return out


def _is_rotated_convolution(window: Window, w: Array, groups: int) -> bool:
    """Return whether dx is fastest as a convolution of dout with the rotated filters."""
    within_window = all(max(sides) < extent for sides, extent in zip(window.padding, window.extent, strict=True))
    return window.stride == (1, 1) and within_window and not _is_faster_to_fold(window, w, groups)


def _is_faster_to_fold(window: Window, w: Array, groups: int) -> bool:
    """Return whether columns are smaller than lines of dout: for few channels, or windows that do not overlap."""
    apart = window.stride != (1, 1) and any(map(le, window.extent, window.stride))
    return apart or 2 * w.shape[1] * groups < w.shape[0]


def _rotated(w: Array, window: Window, groups: int) -> tuple[Array, Window]:
    """Return the filters and the window whose convolution with dout is dx, at stride 1.

    The filters are rotated by 180 degrees, with C and F exchanged in each group, and dout gets as much padding as keeps
    every pixel of the images in all the windows that have it.
    """
    by_groups = w.reshape(groups, -1, *w.shape[1:])[..., ::-1, ::-1]  # (G, F / G, C / G, KH, KW)
    rotated = by_groups.swapaxes(1, 2).reshape(-1, by_groups.shape[1], *w.shape[2:])
    (top, bottom), (left, right) = window.padding
    rows, columns = (extent - 1 for extent in window.extent)
    full = (rows - top, rows - bottom), (columns - left, columns - right)
    return rotated, window._replace(padding=full)


def _is_fast(window: Window, w: Array, groups: int) -> bool:
    """Return whether there is a fast version: for windows with stride and dilation, only that for single channels."""
    return (1, 1) in (window.stride, window.dilation) or _is_depthwise(window, w, groups)


def _is_depthwise(window: Window, w: Array, groups: int) -> bool:
    """Return whether each group is a channel; windows must touch, since the memory of planes grows with the stride."""
    touching = all(stride <= extent for stride, extent in zip(window.stride, window.extent, strict=True))
    return groups > 1 and w.shape[1] == 1 and touching


def _groups(w: Array, groups: int) -> Iterator[tuple[slice, slice]]:
    """Yield the channels and the filters of each group."""
    F, C = w.shape[0] // groups, w.shape[1]
    return ((slice(g * C, (g + 1) * C), slice(g * F, (g + 1) * F)) for g in range(groups))


def _convolve_group(x: Array, w: Array, b: Array | None, window: Window, algorithm: str, out: Array) -> None:
    """Convolve images with filters that see all their channels, by the fastest algorithm."""
    if window.dilation != (1, 1):
        dilated.convolve(x, w, b, window, algorithm, out)
    elif algorithm == "auto" and winograd.is_applicable(x, w, window):
        winograd.convolve(x, w, b, _padding_before(window), out)
    else:
        x, out = (_flatten_for_1x1(a, window) for a in (x, out))
        _run(x, [_Convolution(x, w, b, window, out)])


def _convolve_group_backward(
    dout: Array, x: Array, w: Array, window: Window, algorithm: str, dx: Array | None
) -> Array:
    """Write dx unless it is None, and return dw."""
    if window.dilation != (1, 1):
        return dilated.convolve_backward(dout, x, w, window, algorithm, dx)
    if algorithm == "auto" and winograd.is_applicable(x, w, window):
        return winograd.convolve_backward(dout, x, w, _padding_before(window), dx)
    return _convolve_lines_backward(dout, x, w, window, dx)


class _Convolution:
    """A convolution of images (N, C, H, W) by their lines, with the array that its output is written to."""

    def __init__(self, x: Array, w: Array, b: Array | None, window: Window, out: Array) -> None:
        self.x, self.b, self.window, self.out = x, b, window, out
        self.filters = w.transpose(0, 2, 1, 3).reshape(len(w), -1)  # (F, KH * C * KW)
        self.image_bytes = _Lines(x[:1].shape, window).image_bytes(x.itemsize)

    def write(self, tile: slice) -> None:
        """Write the output of a tile's images."""
        lines = _Lines(self.x[tile].shape, self.window)
        _multiply(self.filters, lines.sections(lines.lower(self.x[tile], _BY_ROWS)), self.b, self.out[tile])


def _multiply(filters: Array, sections: Array, b: Array | None, out: Array) -> None:
    """Multiply the filters by every section, add the bias, and write the result to an output (m, F, OH, OW)."""
    (m, F, OH, OW), K = out.shape, filters.shape[1]
    parts = _parts_of_images(F * K * OW, m, OW) if has_small_products() else 1
    rows = out.reshape(parts, m // parts, F, OH, OW).transpose(3, 0, 2, 1, 4)
    y = rows if rows.flags.c_contiguous else scratch("y", rows.shape, rows.dtype)
    columns = sections.reshape(OH, K, parts, -1).transpose(0, 2, 1, 3)
    np.matmul(filters, columns, out=y.reshape(OH, parts, F, -1))
    if b is not None:
        y += b[:, None, None]
    if y is not rows:
        rows[...] = y


def _parts_of_images(multiplications: int, m: int, OW: int) -> int:
    """Return into how many equal parts m images are cut, for products that BLAS does not pack."""
    most = min(m, m * OW // 32)  # With few columns, a product is slow.
    divisors = (parts for parts in range(1, most + 1) if m % parts == 0)
    return next((parts for parts in divisors if multiplications * m // parts <= _SMALL_PRODUCT), 1)


def _run(x: Array, convolutions: Sequence[_Convolution]) -> None:
    """Write the outputs of convolutions that read the images `x` or parts of them."""

    def task(tile: slice) -> None:
        for convolution in convolutions:
            convolution.write(tile)

    for_each_tile(x, task, len(x), _image_bytes(convolutions))


def _image_bytes(convolutions: Sequence[_Convolution]) -> int:
    """Return the size of one image's lines in the largest of some convolutions, in bytes."""
    return max((convolution.image_bytes for convolution in convolutions), default=0)


def _input_gradient(dout: Array, w: Array, b: Array | None, window: Window, dx: Array) -> list[_Convolution]:
    """Return the convolutions that write dx plus a bias, one for each phase of the pixels.

    The number of a row of the padded images is again ``q * SH + phase``. Pixels of a phase meet only the rows
    ``phase``, ``phase + SH``, ... of a window, so their dx is the convolution of dout with these rows of the filters,
    rotated by 180 degrees. The same holds for columns. Windows must be at least as large as the stride. Example: with
    3x3 filters at stride 2, pixels of phase 0 meet rows 0 and 2 of the filters, and pixels of phase 1 meet row 1.
    """
    before = _padding_before(window)
    sizes = zip(dx.shape[2:], dout.shape[2:], window.kernel_size, window.stride, before, strict=True)
    down, across = (list(_phases(*axis)) for axis in sizes)
    return [
        _Convolution(
            dout[:, :, row.outputs, column.outputs],
            w[:, :, row.weights, column.weights][:, :, ::-1, ::-1].swapaxes(0, 1),
            b,
            Window((row.extent, column.extent), padding=(row.padding, column.padding)),
            dx[:, :, row.pixels, column.pixels],
        )
        for row in down
        for column in across
    ]


class _Phase(NamedTuple):
    """One phase of the pixels along an axis, the weights that meet them, and the outputs of their windows."""

    pixels: slice
    weights: slice
    extent: int  # number of these weights
    outputs: slice
    padding: Pair  # outputs that are missing before and after these


def _phases(size: int, outputs: int, extent: int, stride: int, before: int) -> Iterator[_Phase]:
    """Yield the phases of `size` pixels that follow `before` pixels of padding, along one axis."""
    for phase in range(stride):
        pixels, weights = range((phase - before) % stride, size, stride), range(phase, extent, stride)
        if pixels:
            stop = (pixels[-1] + before) // stride + 1
            start = stop - len(pixels) - len(weights) + 1
            existing = slice(min(max(start, 0), outputs), min(stop, outputs))
            missing = max(-start, 0)
            padding = missing, stop - start - missing - (existing.stop - existing.start)
            pixels_of_phase, weights_of_phase = (slice(each.start, None, stride) for each in (pixels, weights))
            yield _Phase(pixels_of_phase, weights_of_phase, len(weights), existing, padding)


def _convolve_lines_backward(dout: Array, x: Array, w: Array, window: Window, dx: Array | None) -> Array:
    """Compute dw from sections or slices, and dx by convolving dout or by folding the gradient of the columns."""
    F, C, KH, KW = w.shape
    if dx is not None and _has_few_weights(w) and _is_rotated_convolution(window, w, 1):
        return _rotated_gradients(dout, x, *_rotated(w, window, 1), dx)
    x, dout = (_flatten_for_1x1(a, window) for a in (x, dout))
    dx = None if dx is None else _flatten_for_1x1(dx, window)
    folds = dx is not None and _is_faster_to_fold(window, w, 1)
    convolutions = [] if dx is None or folds else _input_gradient(dout, w, None, window, dx)
    filters = w.transpose(2, 1, 3, 0).reshape(-1, F)  # (KH * C * KW, F)

    def task(tile: slice) -> tuple[Array]:
        lines = _Lines(x[tile].shape, window)
        dy = _by_channels(dout[tile])  # (F, OH * m * OW)
        if _has_few_weights(w):
            dw = _sum_over_rows(lines.sections(lines.lower(x[tile], _BY_ROWS)), dy)
        else:
            slices = lines.slices(lines.lower(x[tile], _BY_CHANNELS))
            dw = np.concatenate([lines_of_row @ dy.T for lines_of_row in slices])
        if dx is not None and folds:
            dcols = np.matmul(filters, dy, out=scratch("columns", (len(filters), dy.shape[1]), x.dtype))
            lines.fold(dcols.reshape(KH, C * KW, -1), dx[tile])
        for convolution in convolutions:
            convolution.write(tile)
        return (dw,)

    image_bytes = _Lines(x[:1].shape, window).image_bytes(x.itemsize, columns=folds)
    (dw,) = sum_over_tiles(x, task, len(x), max(image_bytes, _image_bytes(convolutions)))
    return np.ascontiguousarray(dw.reshape(KH, C, KW, F).transpose(3, 1, 0, 2))


def _has_few_weights(w: Array) -> bool:
    """Return whether dw is fastest as a sum over the rows of the output."""
    return w.size < (_FEW_WEIGHTS_WITH_SMALL_PRODUCTS if has_small_products() else _FEW_WEIGHTS)


def _rotated_gradients(dout: Array, x: Array, rotated: Array, full: Window, dx: Array) -> Array:
    """Write dx, the convolution of dout with the rotated filters (C, F, KH, KW), and return dw.

    The sections of dout also give the gradient of the rotated filters, by their products with the rows of x.
    """
    C, F, KH, KW = rotated.shape
    filters = rotated.transpose(0, 2, 1, 3).reshape(C, -1)  # (C, KH * F * KW)

    def task(tile: slice) -> tuple[Array]:
        lines = _Lines(dout[tile].shape, full)
        sections = lines.sections(lines.lower(dout[tile], _BY_ROWS))
        _multiply(filters, sections, None, dx[tile])
        return (_sum_over_rows(sections, _by_channels(x[tile])),)

    (dw,) = sum_over_tiles(x, task, len(x), _Lines(dout[:1].shape, full).image_bytes(x.itemsize))
    return np.ascontiguousarray(dw.reshape(KH, F, KW, C).transpose(1, 3, 0, 2)[..., ::-1, ::-1])


def _by_channels(images: Array) -> Array:
    """Return images (m, C, H, W) as (C, H * m * W), in scratch memory if they must be copied."""
    pixels = rows = images.transpose(1, 2, 0, 3)
    if not rows.flags.c_contiguous:
        pixels = scratch("pixels", rows.shape, images.dtype)
        pixels[...] = rows
    return pixels.reshape(len(pixels), -1)


def _sum_over_rows(sections: Array, pixels: Array) -> Array:
    """Return the sum over rows of ``section @ row.T``, of shape (K, channels).

    `sections` has the shape (rows, K, m * width), and `pixels` (channels, rows * m * width).
    """
    (rows, K, length), channels = sections.shape, len(pixels)
    parts = _parts_of_section(K, channels) if has_small_products() else 1
    by_rows = pixels.reshape(channels, rows, 1, length).transpose(1, 2, 3, 0)
    terms = scratch("terms", (rows, parts, K // parts, channels), pixels.dtype)
    np.matmul(sections.reshape(rows, parts, -1, length), by_rows, out=terms)
    total: Array = terms.reshape(rows, K, channels).sum(axis=0)
    return total


@lru_cache
def _parts_of_section(K: int, channels: int) -> int:
    """Return into how many equal parts a section of K rows is cut, for products that BLAS does not pack."""
    divisors = (parts for parts in range(1, K // 16 + 1) if K % parts == 0)  # With fewer rows, a product is slow.
    return next((parts for parts in divisors if K // parts * channels <= _SMALL_RESULT), 1)

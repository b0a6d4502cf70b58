"""Convolution on NumPy by memory-efficient lowering (MEC; Cho and Brand 2017): im2col along the width alone.

In each row of an image, each column of the window meets OW pixels. Laid side by side for all images of a tile, channels
and columns of the window, those make a line (C * KW, m * OW). What one row of the output sees are KH lines that follow
each other: a matrix already, so that nothing is copied for the height of the window.

With lines that follow each other by output rows, filters meet all that they see at once (`sections`). With channels
outermost, each row of the window meets one long slice, whatever the row of the output (`slices`).

Letters: N images, C channels, F filters, (H, W) image, (KH, KW) window, (SH, SW) stride, (OH, OW) output; m images in
a tile, Hq groups of rows, each of the `phases` rows of a stride that windows meet.
"""

import sys
from functools import lru_cache
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.ops.dispatch import accelerate
from xpconv.ops.numpy import _winograd as winograd
from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import for_each_tile, sum_over_tiles
from xpconv.ops.windows import Pair, output_size

Array = np.ndarray
_BY_ROWS, _BY_CHANNELS = (0, 1, 2, 3, 4, 5), (1, 2, 3, 0, 4, 5)  # orders of the axes (Hq, phases, C, KW, m, OW)
_FEW = 1 << 13  # weights: so few that a sum of their gradients over rows of the output costs little
_ENOUGH = 128  # columns that make a matrix product fast


@lru_cache
class _Lines:
    """The geometry of one tile's lines, and the copies to them and from them."""

    def __init__(self, shape: tuple[int, ...], size: Pair, stride: Pair, padding: Pair) -> None:
        (self.m, self.C, H, W), (self.KH, KW), self.stride, self.padding = shape, size, stride, padding
        self.image, (self.OH, self.OW) = (H, W), output_size((H, W), size, stride, padding)
        self.Hq, self.phases = self.OH + (self.KH - 1) // stride[0], min(self.KH, stride[0])
        self.shape = self.Hq, self.phases, self.C, KW, self.m, self.OW
        self.height = (self.Hq - 1) * stride[0] + self.phases  # of a padded image which has all those rows
        self.nothing_to_copy = self.m == H == 1 and size == stride == (1, 1) and padding == (0, 0)

    def fill(self, images: Array, order: tuple[int, ...]) -> Array:
        """Lay images (m, C, H, W) out as lines: one strided copy of the padded images."""
        shape = tuple(self.shape[axis] for axis in order)
        if self.nothing_to_copy:
            return np.ascontiguousarray(images).reshape(shape)
        padded = inside = images.transpose(1, 2, 0, 3)
        if self.padding != (0, 0) or self.height > self.image[0]:
            (H, W), (PH, PW) = self.image, self.padding
            padded, inside = self._padded("padded", images.dtype)
            padded[:, :PH], padded[:, PH + H :], padded[..., :PW], padded[..., PW + W :] = 0, 0, 0, 0
            inside[...] = images.transpose(1, 2, 0, 3)
        lines = scratch("lines", shape, images.dtype)
        lines[...] = self._windows(padded).transpose(order)
        return lines

    def image_bytes(self, itemsize: int, columns: bool = False) -> int:
        """Return how much of a tile an image takes: what its lines do, or its columns, or all if none are copied."""
        if self.nothing_to_copy:
            return sys.maxsize
        rows = self.KH * self.OH if columns else self.Hq * self.phases
        return rows * prod(self.shape[2:]) // self.m * itemsize

    def _padded(self, name: str, dtype: np.dtype) -> tuple[Array, Array]:
        """Return a place for padded images, channel by channel, and the part of it which is the images."""
        (H, W), (PH, PW) = self.image, self.padding
        padded = scratch(name, (self.C, max(H + 2 * PH, self.height), self.m, W + 2 * PW), dtype)
        return padded, padded[:, PH : PH + H, :, PW : PW + W]

    def _windows(self, padded: Array) -> Array:
        """Return a view of what the columns of the window meet."""
        (SH, SW), (c, h, n, w) = self.stride, padded.strides
        return as_strided(padded, self.shape, (h * SH, h, c, w, n, w * SW))

    def sections(self, lines: Array) -> Array:
        """Return what each row of the output sees: views (OH, KH * C * KW, m * OW) of lines by rows, which overlap."""
        K, L = self.KH * self.C * self.shape[3], self.m * self.OW
        return as_strided(lines, (self.OH, K, L), (lines.strides[0], L * lines.itemsize, lines.itemsize))

    def slices(self, lines: Array) -> list[Array]:
        """Return what each row of the window meets: views (C * KW, OH * m * OW) of lines by channels."""
        starts = [divmod(i, self.stride[0]) for i in range(self.KH)]
        return [lines[phase, :, :, q : q + self.OH].reshape(-1, self.OH * self.m * self.OW) for q, phase in starts]

    def fold(self, cols: Array, images: Array) -> None:
        """Write the images to which the columns of im2col (KH, C * KW, OH * m * OW) add up."""
        if self.nothing_to_copy:
            images[...] = cols.reshape(images.shape)
            return
        lines = scratch("dlines", tuple(self.shape[axis] for axis in _BY_CHANNELS), cols.dtype)
        lines[...] = 0
        for view, seen in zip(self.slices(lines), cols, strict=True):
            view += seen
        padded, inside = self._padded("dpadded", cols.dtype)
        padded[...] = 0
        windows = self._windows(padded).transpose(_BY_CHANNELS)
        for j in range(self.shape[3]):  # windows of neighbours overlap
            windows[:, :, j] += lines[:, :, j]
        images[...] = inside.transpose(2, 0, 1, 3)


def _as_row(x: Array, w: Array, stride: Pair, padding: Pair) -> Array:
    """Return images of which a 1x1 window sees one pixel at a time as images of a single row, if that is long."""
    alone = w.shape[2:] == stride == (1, 1) and padding == (0, 0) and x[0, 0].size >= _ENOUGH
    return x.reshape(*x.shape[:2], 1, -1) if alone else x


@accelerate("numpy")
def convolve(x: Array, w: Array, b: Array | None, stride: Pair, padding: Pair, algorithm: str) -> Array:
    """Multiply the filters with the sections of each tile."""
    if algorithm == "auto" and winograd.is_applicable(x, w, stride, padding):
        return winograd.convolve(x, w, b, padding)
    F, size, output = w.shape[0], w.shape[2:], output_size(x.shape[2:], w.shape[2:], stride, padding)
    x = _as_row(x, w, stride, padding)
    OH, OW = output_size(x.shape[2:], size, stride, padding)
    out = np.empty((len(x), F, OH, OW), x.dtype)
    filters = w.transpose(0, 2, 1, 3).reshape(F, -1)

    def task(tile: slice) -> None:
        lines = _Lines(x[tile].shape, size, stride, padding)
        mine = out[tile].transpose(2, 1, 0, 3)  # (OH, F, m, OW)
        y = mine if lines.nothing_to_copy else scratch("y", mine.shape, x.dtype)
        np.matmul(filters, lines.sections(lines.fill(x[tile], _BY_ROWS)), out=y.reshape(OH, F, -1))
        if b is not None:
            y += b[:, None, None]
        if y is not mine:
            mine[...] = y

    for_each_tile(x, task, len(x), _Lines(x[:1].shape, size, stride, padding).image_bytes(x.itemsize))
    return out.reshape(len(x), F, *output)


@accelerate("numpy")
def convolve_backward(
    dout: Array, x: Array, w: Array, stride: Pair, padding: Pair, algorithm: str, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    """Multiply the output's gradient with what the filters met, and with filters for the images."""
    if algorithm == "auto" and winograd.is_applicable(x, w, stride, padding):
        return winograd.convolve_backward(dout, x, w, padding, need_dx)
    (F, C, KH, KW), size, shape = w.shape, w.shape[2:], x.shape
    x, dout = (_as_row(a, w, stride, padding) for a in (x, dout))
    OH = dout.shape[2]
    # The images' gradient is a convolution, too: of dout with the filters turned and exchanged.
    turn = need_dx and stride == (1, 1) and padding[0] < KH and padding[1] < KW and 2 * C >= F
    dx = np.empty(x.shape, x.dtype) if need_dx and not turn else None
    filters = w.transpose(2, 1, 3, 0).reshape(-1, F)  # (KH * C * KW, F)

    def task(tile: slice) -> tuple[Array, Array]:
        lines = _Lines(x[tile].shape, size, stride, padding)
        dy = np.ascontiguousarray(dout[tile].transpose(1, 2, 0, 3)).reshape(F, -1)  # (F, OH * m * OW)
        if w.size < _FEW:
            sections = lines.sections(lines.fill(x[tile], _BY_ROWS))
            dw = np.matmul(sections, dy.reshape(F, OH, -1).transpose(1, 2, 0)).sum(axis=0)
        else:
            slices = lines.slices(lines.fill(x[tile], _BY_CHANNELS))
            dw = np.concatenate([view @ dy.T for view in slices])
        if dx is not None:
            dcols = np.matmul(filters, dy, out=scratch("columns", (len(filters), dy.shape[1]), x.dtype))
            lines.fold(dcols.reshape(KH, C * KW, -1), dx[tile])
        return dw, dy.sum(axis=1)

    image_bytes = _Lines(x[:1].shape, size, stride, padding).image_bytes(x.itemsize, columns=dx is not None)
    dw, db = sum_over_tiles(x, task, len(x), image_bytes)
    if turn:
        turned = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
        dx = convolve(dout, turned, None, stride, (KH - 1 - padding[0], KW - 1 - padding[1]), algorithm)
    dw = np.ascontiguousarray(dw.reshape(KH, C, KW, F).transpose(3, 1, 0, 2))
    return dx if dx is None else dx.reshape(shape), dw, db

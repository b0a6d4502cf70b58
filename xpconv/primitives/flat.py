"""Convolution on NumPy by flat signals: im2col whose columns are copies of long slices.

For each channel and each column j of the window, the pixels that this column meets are laid out flat, one image row
behind the other: what place (i, j) of the window meets is then one slice of that signal, i rows further on. With a
stride, each of SH phases (every SH-th row) has a signal of its own. The rows of all images of a tile alternate, so
that a slice holds nothing but what belongs to the output.

Letters: N images, C channels, F filters, (H, W) image, (KH, KW) window, (SH, SW) stride, (OH, OW) output;
m images in a tile, Hq rows of a phase, L = OH * m * OW.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.primitives import accelerate, winograd
from xpconv.primitives.tiling import for_each_tile, scratch, sum_over_tiles
from xpconv.primitives.windows import Pair, output_size

Array = np.ndarray
_FEW = 32  # fewer rows than this make a matrix product slow


@lru_cache
class _Signal:
    """The geometry of one tile's signal (SH, C, KW, Hq * m * OW), and the copies to it and from it."""

    def __init__(self, shape: tuple[int, ...], size: Pair, stride: Pair, padding: Pair) -> None:
        self.m, self.C, H, W = shape
        (self.KH, self.KW), (SH, SW) = size, stride
        self.output = OH, OW = output_size((H, W), size, stride, padding)
        self.phases, self.row = min(self.KH, SH), self.m * OW
        self.Hq, self.L = OH + (self.KH - 1) // SH, OH * self.row
        self.shifts = [(i % SH, i // SH * self.row) for i in range(self.KH)]
        self.rows = [_overlap(a, SH, padding[0], H, self.Hq) for a in range(self.phases)]
        self.columns = [_overlap(j, SW, padding[1], W, OW) for j in range(self.KW)]
        self.stride, self.padding = stride, padding
        self.rows_needed = (self.Hq - 1) * SH + self.phases  # of a padded image, so that all phases have Hq rows
        self.is_image = self.m == 1 and stride == (1, 1) and padding == (0, 0) and self.KW == 1

    def fill(self, images: Array) -> Array:
        """Lay images (m, C, H, W) out as a signal: one strided copy a phase, of the padded images."""
        if self.is_image and images.flags.c_contiguous:
            return images.reshape(1, self.C, 1, -1)
        m, C, H, W = images.shape
        OW, (SH, SW), (PH, PW) = self.output[1], self.stride, self.padding
        padded = images
        if (PH, PW) != (0, 0) or self.rows_needed > H:
            padded = scratch("padded", (m, C, max(H + 2 * PH, self.rows_needed), W + 2 * PW), images.dtype)
            padded[...] = 0
            padded[:, :, PH:PH + H, PW:PW + W] = images
        n, c, h, w = padded.strides
        signal = scratch("signal", (self.phases, C, self.KW, self.Hq, m, OW), images.dtype)
        for a in range(self.phases):
            signal[a] = as_strided(padded[:, :, a:], (C, self.KW, self.Hq, m, OW), (c, w, h * SH, n, w * SW))
        return signal.reshape(self.phases, C, self.KW, -1)

    def spread(self, signal: Array, images: Array) -> None:
        """Add a signal back to images: the adjoint of `fill`."""
        for here, there in self._pieces(signal, images):
            there += here

    def zeros(self, name: str, dtype: np.dtype) -> Array:
        signal = scratch(name, (self.phases, self.C, self.KW, self.Hq * self.row), dtype)
        signal[...] = 0
        return signal

    def _pieces(self, signal: Array, images: Array) -> Iterator[tuple[Array, Array]]:
        places = signal.reshape(self.phases, self.C, self.KW, self.Hq, self.m, -1)
        by_row = images.transpose(1, 2, 0, 3)                                       # (C, H, m, W)
        for a, (r, rows) in enumerate(self.rows):
            for j, (c, columns) in enumerate(self.columns):
                yield places[a, :, j, r, :, c], by_row[:, rows, :, columns]

    def slices(self, signal: Array) -> list[Array]:
        """Return what each row of the window meets: views (C, KW, L)."""
        return [signal[phase][..., shift:shift + self.L] for phase, shift in self.shifts]

    def unfold(self, images: Array) -> Array:
        """Return the columns of im2col (C * KH * KW, L)."""
        signal = self.fill(images)
        if self.KH == 1:
            return signal.reshape(-1, self.L)
        cols = scratch("columns", (self.C, self.KH, self.KW, self.L), images.dtype)
        for a in range(self.phases):  # window rows a, a + SH, ... meet this phase, each one signal row further on
            here = cols[:, a::self.stride[0]]
            c, j, p = signal[a].strides
            here[...] = as_strided(signal[a], here.shape, (c, self.row * p, j, p))
        return cols.reshape(-1, self.L)

    def fold(self, cols: Array, images: Array) -> None:
        """Add columns back to images: the adjoint of `unfold`."""
        signal = self.zeros("dsignal", cols.dtype)
        cols = cols.reshape(self.C, self.KH, self.KW, self.L)
        for i, view in enumerate(self.slices(signal)):
            view += cols[:, i]
        self.spread(signal, images)


def _overlap(start: int, stride: int, padding: int, extent: int, count: int) -> tuple[slice, slice]:
    """Return which of ``start - padding + k * stride``, k = 0 .. count - 1, lie on the image, and where there."""
    first = max(0, -((start - padding) // stride))
    last = max(first, min(count, (extent - 1 + padding - start) // stride + 1))
    pixel = first * stride + start - padding
    return slice(first, last), slice(pixel, pixel + (last - first) * stride, stride)


def _column_bytes(x: Array, w: Array, output: Pair) -> int:
    return int(w[0].size * output[0] * output[1] * x.itemsize)


@accelerate("convolve", "numpy")
def convolve(x: Array, w: Array, b: Array | None, stride: Pair, padding: Pair, algorithm: str) -> Array:
    """Multiply the filters with the columns of each tile."""
    if algorithm == "auto" and winograd.suits(x, w, stride, padding):
        return winograd.convolve(x, w, b, padding)
    F, size, output = w.shape[0], w.shape[2:], output_size(x.shape[2:], w.shape[2:], stride, padding)
    out = np.empty((x.shape[0], F, *output), x.dtype)
    filters = w.reshape(F, -1)

    def task(tile: slice) -> None:
        signal = _Signal(x[tile].shape, size, stride, padding)
        cols = signal.unfold(x[tile])
        y = out[tile].reshape(F, -1) if signal.m == 1 else scratch("y", (F, signal.L), x.dtype)
        np.matmul(filters, cols, out=y)
        if b is not None:
            y += b[:, None]
        if signal.m > 1:
            out[tile] = y.reshape(F, output[0], signal.m, -1).transpose(2, 0, 1, 3)

    for_each_tile(task, x.shape[0], _column_bytes(x, w, output), x)
    return out


@accelerate("convolve_gradients", "numpy")
def convolve_gradients(dout: Array, x: Array, w: Array, stride: Pair, padding: Pair, algorithm: str,
                       need_dx: bool) -> tuple[Array | None, Array, Array]:
    """Multiply the output's gradient with slices for the filters, and with filters for the images."""
    if algorithm == "auto" and winograd.suits(x, w, stride, padding):
        return winograd.convolve_gradients(dout, x, w, padding, need_dx)
    (F, C, KH, KW), size = w.shape, w.shape[2:]
    # The images' gradient is a convolution, too: of dout with the filters turned and exchanged.
    turn = need_dx and stride == (1, 1) and padding[0] < KH and padding[1] < KW and 2 * C >= F
    dx = np.zeros(x.shape, x.dtype) if need_dx and not turn else None
    filters = w.reshape(F, -1)

    def task(tile: slice) -> tuple[Array, Array]:
        signal = _Signal(x[tile].shape, size, stride, padding)
        dy = np.ascontiguousarray(dout[tile].transpose(1, 2, 0, 3)).reshape(F, -1)  # (F, L)
        if C * KW < _FEW:
            dw = (signal.unfold(x[tile]) @ dy.T).T.reshape(w.shape)  # BLAS is slower at dy @ cols.T
        else:  # the slices as they are, without copies
            dw = np.empty_like(w, order="C")
            for i, view in enumerate(signal.slices(signal.fill(x[tile]))):
                dw[:, :, i] = (view.reshape(C * KW, -1) @ dy.T).T.reshape(F, C, KW)
        if dx is not None:
            dcols = scratch("columns", (C * KH * KW, signal.L), x.dtype)
            signal.fold(np.matmul(filters.T, dy, out=dcols), dx[tile])
        return dw, dy.sum(axis=1)

    dw, db = sum_over_tiles(task, x.shape[0], _column_bytes(x, w, dout.shape[2:]), x)
    if turn:
        turned = np.ascontiguousarray(w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
        dx = convolve(dout, turned, None, stride, (KH - 1 - padding[0], KW - 1 - padding[1]), algorithm)
    return dx, dw, db

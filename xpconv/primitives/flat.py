"""Convolution on NumPy by flat signals: im2col whose columns are copies of long slices.

For each channel and each column j of the window, the pixels that this column meets are laid out flat, one image row
behind the other: what place (i, j) of the window meets is then one slice of that signal, i rows further on. With a
stride, each of SH phases (every SH-th row) has a signal of its own. The rows of all images of a tile alternate, so
that a slice holds nothing but what belongs to the output.

Letters: N images, C channels, F filters, (H, W) image, (KH, KW) window, (SH, SW) stride, (OH, OW) output;
m images in a tile, Hq rows of a phase, L = OH * m * OW.
"""

import sys
from collections.abc import Iterator
from functools import lru_cache
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.primitives import accelerate, winograd
from xpconv.primitives.tiling import for_each_tile, scratch, sum_over_tiles
from xpconv.primitives.windows import Pair, output_size

Array = np.ndarray
_FEW = 32  # fewer rows than this make a matrix product slow
_ENOUGH = 128  # columns that make it fast


@lru_cache
class _Signal:
    """The geometry of one tile's signal (SH, C, KW, Hq * m * OW), and the copies to it and from it."""

    def __init__(self, shape: tuple[int, ...], size: Pair, stride: Pair, padding: Pair) -> None:
        self.m, self.C, H, W = shape
        (self.KH, self.KW), SH = size, stride[0]
        self.output = OH, OW = output_size((H, W), size, stride, padding)
        self.phases, self.row = min(self.KH, SH), self.m * OW
        self.Hq, self.L = OH + (self.KH - 1) // SH, OH * self.row
        self.shifts = [(i % SH, i // SH * self.row) for i in range(self.KH)]
        self.image, self.stride, self.padding = (H, W), stride, padding
        self.rows_needed = (self.Hq - 1) * SH + self.phases  # of a padded image, so that all phases have Hq rows
        self.pointwise = size == stride == (1, 1) and padding == (0, 0)

    def fill(self, images: Array) -> Array:
        """Lay images (m, C, H, W) out as a signal: one strided copy a phase, of the padded images."""
        if self.pointwise and self.m == 1 and images.flags.c_contiguous:
            return images.reshape(1, self.C, 1, -1)
        padded = inside = images.transpose(1, 2, 0, 3)                                  # (C, H, m, W): rows alternate
        if self.padding != (0, 0) or self.rows_needed > self.image[0]:
            padded, inside = self._padded("padded", images.dtype)
            inside[...] = images.transpose(1, 2, 0, 3)
        signal = scratch("signal", (self.phases, self.C, self.KW, self.Hq, self.m, self.output[1]), images.dtype)
        for here, there in zip(signal, self._windows(padded), strict=True):
            here[...] = there
        return signal.reshape(self.phases, self.C, self.KW, -1)

    def spread(self, signal: Array, images: Array) -> None:
        """Write the images to which a signal adds up: the adjoint of `fill`."""
        padded, inside = self._padded("dpadded", images.dtype)
        signal = signal.reshape(self.phases, self.C, self.KW, self.Hq, self.m, -1)
        for here, there in zip(signal, self._windows(padded), strict=True):
            for j in range(self.KW):  # windows of neighbours overlap
                there[:, j] += here[:, j]
        images[...] = inside.transpose(2, 0, 1, 3)

    def _padded(self, name: str, dtype: np.dtype) -> tuple[Array, Array]:
        """Return zeros for padded images, whose rows alternate, and the part of them which is the images."""
        (H, W), (PH, PW) = self.image, self.padding
        padded = scratch(name, (self.C, max(H + 2 * PH, self.rows_needed), self.m, W + 2 * PW), dtype)
        padded[...] = 0
        return padded, padded[:, PH:PH + H, :, PW:PW + W]

    def _windows(self, padded: Array) -> Iterator[Array]:
        """Yield, for each phase, a view (C, KW, Hq, m, OW) of what the columns of the window meet."""
        (SH, SW), (c, h, n, w) = self.stride, padded.strides
        for a in range(self.phases):
            yield as_strided(padded[:, a:], (self.C, self.KW, self.Hq, self.m, self.output[1]),
                             (c, w, h * SH, n, w * SW))

    def zeros(self, name: str, dtype: np.dtype) -> Array:
        signal = scratch(name, (self.phases, self.C, self.KW, self.Hq * self.row), dtype)
        signal[...] = 0
        return signal

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
        """Write the images to which columns add up: the adjoint of `unfold`."""
        if self.pointwise:
            images[...] = cols.reshape(self.C, self.image[0], self.m, -1).transpose(2, 0, 1, 3)
            return
        signal = self.zeros("dsignal", cols.dtype)
        cols = cols.reshape(self.C, self.KH, self.KW, self.L)
        for i, view in enumerate(self.slices(signal)):
            view += cols[:, i]
        self.spread(signal, images)


def _image_bytes(x: Array, w: Array, output: Pair) -> int:
    """Return how much of a tile an image takes: what its columns do, or all of it if the image is its own columns."""
    if w.shape[2:] == (1, 1) and output == x.shape[2:] and prod(output) >= _ENOUGH:
        return sys.maxsize
    return int(w[0].size * prod(output) * x.itemsize)


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

    for_each_tile(task, x.shape[0], _image_bytes(x, w, output), x)
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
    dx = np.empty(x.shape, x.dtype) if need_dx and not turn else None
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

    dw, db = sum_over_tiles(task, x.shape[0], _image_bytes(x, w, dout.shape[2:]), x)
    if turn:
        turned = np.ascontiguousarray(w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
        dx = convolve(dout, turned, None, stride, (KH - 1 - padding[0], KW - 1 - padding[1]), algorithm)
    return dx, dw, db

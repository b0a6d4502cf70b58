"""Dilated convolution at stride 1 on NumPy: a convolution without dilation of every DH-th row and DW-th column.

With dilation (DH, DW), the windows that begin in the rows p, p + DH, p + 2 * DH, ... read those rows alone. The same
holds for columns. These rows and columns of an image make a smaller image, its *phase* (p, s). The phases of all images
are stacked to one larger batch, whose windows are those of a convolution without dilation.

Letters: N images, C channels, F filters, (H, W) image, (KH, KW) window, (DH, DW) dilation, (OH, OW) output; (h, w)
output of a phase, the largest one if they differ.
"""

from itertools import product
from math import prod
from typing import Any

import numpy as np

from xpconv.ops.conv import convolve as convolve_any
from xpconv.ops.conv import convolve_backward as convolve_any_backward
from xpconv.ops.dispatch import portable
from xpconv.ops.numpy._workers import run_parallel
from xpconv.ops.windows import Pair, Sides, Window

__all__ = ["convolve", "convolve_backward"]

Array = np.ndarray


class _Phases:
    """The phases of padded images (N, C, H, W): copies to and from an array (DH * DW * N, C, height, width)."""

    def __init__(self, image: Pair, size: Pair, padding: Sides, dilation: Pair) -> None:
        self.size, self.count = size, prod(dilation)
        axes = (
            [_steps(*axis, phase) for phase in range(axis[-1])]
            for axis in zip(image, size, (before for before, _ in padding), dilation, strict=True)
        )
        self.slices = list(product(*axes))

    def split(self, images: Array) -> Array:
        """Return the phases, with zeros in the padding and where a phase is smaller than others."""
        N, C = images.shape[:2]
        phases = np.zeros((self.count, N, C, *self.size), images.dtype)

        def copy(k: int) -> None:
            (row, down), (column, across) = self.slices[k]
            phases[k, :, :, row, column] = images[:, :, down, across]

        run_parallel(copy, self.count)
        return phases.reshape(-1, *phases.shape[2:])

    def join(self, phases: Array, images: Array) -> None:
        """Write the phases to the images, all of whose pixels are in a phase."""
        phases = phases.reshape(self.count, *images.shape[:2], *self.size)

        def copy(k: int) -> None:
            (row, down), (column, across) = self.slices[k]
            images[:, :, down, across] = phases[k, :, :, row, column]

        run_parallel(copy, self.count)


def _steps(size: int, count: int, before: int, dilation: int, phase: int) -> tuple[slice, slice]:
    """Return which of the `count` pixels of a phase lie in the image along an axis, and these pixels of the image."""
    first = max(-((phase - before) // dilation), 0)
    stop = max(min(-((phase - before - size) // dilation), count), first)
    start = first * dilation + phase - before
    return slice(first, stop), slice(start, start + max((stop - first - 1) * dilation + 1, 0), dilation)


def _geometry(x: Array, window: Window, algorithm: str) -> tuple[_Phases, _Phases, Window, str]:
    """Return the phases of the input and of the output, the window without dilation, and the algorithm for it."""
    image, output = x.shape[2:], window.output_size(x.shape[2:])
    small = tuple(-(-size // dilation) for size, dilation in zip(output, window.dilation, strict=True))
    large = tuple(size + k - 1 for size, k in zip(small, window.kernel_size, strict=True))
    no_padding = (0, 0), (0, 0)
    return (
        _Phases(image, large, window.padding, window.dilation),
        _Phases(output, small, no_padding, window.dilation),
        Window(window.kernel_size),
        algorithm if min(small) >= 4 else "im2col",  # Winograd's blocks are larger than such outputs.
    )


def convolve(x: Array, w: Array, b: Array | None, window: Window, algorithm: str, out: Array) -> None:
    """Convolve the phases of as many images at once as fit a part of the workspace."""
    inputs, outputs, plain, algorithm = _geometry(x, window, algorithm)

    def task(tile: slice) -> None:
        y: Any = convolve_any(inputs.split(x[tile]), w, b, plain, 1, algorithm)
        outputs.join(y, out[tile])

    portable("for_each_tile")(x, task, len(x), _image_bytes(x, out))


def convolve_backward(dout: Array, x: Array, w: Array, window: Window, algorithm: str, dx: Array | None) -> Array:
    """Take the gradients of the convolution of the phases: write dx unless it is None, and return dw."""
    inputs, outputs, plain, algorithm = _geometry(x, window, algorithm)

    def task(tile: slice) -> tuple[Array]:
        phases, dphases = inputs.split(x[tile]), outputs.split(dout[tile])
        gradients: Any = convolve_any_backward(
            dphases, phases, w, plain, 1, algorithm, need_dx=dx is not None, need_db=False
        )
        dimages, dw, _ = gradients
        if dx is not None:
            inputs.join(dimages, dx[tile])
        return (dw,)

    sums: tuple[Array] = portable("sum_over_tiles")(x, task, len(x), _image_bytes(x, dout))
    return sums[0]


def _image_bytes(x: Array, out: Array) -> int:
    """Return a generous estimate of the memory that the phases of one image take, and their convolution."""
    return int(4 * (x[0].nbytes + out[0].nbytes))

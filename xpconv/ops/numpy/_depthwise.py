"""Depthwise convolution on NumPy: multiply shifted images by one weight of the filters at a time.

The stride cuts a padded image into SH * SW *planes* of Q x R pixels: pixel (q * SH + p, r * SW + s) of the image is
pixel (q, r) of its plane (p, s). The window of output (i, j) begins in pixel (i, j) of plane (0, 0), and its weight
(k, l) meets pixel ``(i + k * DH // SH, j + l * DW // SW)`` of plane ``(k * DH % SH, l * DW % SW)``. In the flat array
of a plane, where output (i, j) has the index ``i * R + j``, this pixel lies at the same *distance* from every output.
So each weight takes one multiplication of a whole plane. Example: rows of R = 4 pixels, windows of 1 x 2 pixels at
stride 1, and OW = 3::

    flat plane       p0  p1  p2  p3 | p4  p5  p6  p7
    distance 1       p1  p2  p3  p4 | p5  p6  p7          multiplied by the second weight
    outputs          y0  y1  y2  -- | y4  y5  y6          -- is computed, but is no output

In the backward pass the gradients of these others are 0.

Letters: N images, C channels, F filters, M = F / C filters of each channel, (H, W) image, (KH, KW) window, (SH, SW)
stride, (DH, DW) dilation, (OH, OW) output; m images in a tile, c channels in a chunk.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import for_each_tile, sum_over_tiles
from xpconv.ops.windows import Pair, Window

__all__ = ["convolve", "convolve_backward"]

Array = np.ndarray
_CHUNK_BYTES = 1 << 18  # Of a chunk's planes, so that they, the products and the sums fit L2.


@lru_cache
class _Planes:
    """The planes of m images: their geometry, and the copies to and from them."""

    def __init__(self, m: int, image: Pair, window: Window) -> None:
        self.m, self.output, (self.SH, self.SW) = m, window.output_size(image), window.stride
        reaches = [
            [k * dilation for k in range(size)]
            for size, dilation in zip(window.kernel_size, window.dilation, strict=True)
        ]
        axes = list(zip(self.output, reaches, window.stride, strict=True))
        self.size = Q, R = tuple(count + reach[-1] // stride for count, reach, stride in axes)
        self.shape = self.SH, self.SW, m, Q, R
        self.length = ((m - 1) * Q + self.output[0] - 1) * R + self.output[1]  # From the first output to the last.
        self.taps = [
            (
                down % self.SH,
                across % self.SW,
                slice(start := down // self.SH * R + across // self.SW, start + self.length),
            )
            for down, across in product(*reaches)
        ]
        (top, _), (left, _) = window.padding
        self.rows = list(_rows_of_planes(image[0], Q, top, self.SH))
        self.columns = list(_rows_of_planes(image[1], R, left, self.SW))

    def chunks(self, C: int, itemsize: int) -> Iterator[slice]:
        """Yield slices of the channels."""
        c = max(1, _CHUNK_BYTES // (prod(self.shape) * itemsize))
        return (slice(first, min(first + c, C)) for first in range(0, C, c))

    def split(self, images: Array) -> Array:
        """Copy images (m, c, H, W) to flat planes (c, SH, SW, m * Q * R), with zeros in the padding."""
        planes = self.zeros("planes", images)
        for (p, q, down), (s, r, across) in product(self.rows, self.columns):
            planes[:, p, s, :, q, r] = images[:, :, down, across].transpose(1, 0, 2, 3)
        return planes.reshape(*planes.shape[:3], -1)

    def join(self, planes: Array, images: Array) -> None:
        """Copy flat planes to their images (m, c, H, W); pixels in no plane become 0."""
        if self.SH * self.SW > 1:
            images[...] = 0
        planes = planes.reshape(-1, *self.shape)
        for (p, q, down), (s, r, across) in product(self.rows, self.columns):
            images[:, :, down, across] = planes[:, p, s, :, q, r].transpose(1, 0, 2, 3)

    def zeros(self, name: str, images: Array) -> Array:
        """Return a scratch array for the planes of images (m, c, H, W), filled with zeros."""
        planes = scratch(name, (images.shape[1], *self.shape), images.dtype)
        planes[...] = 0
        return planes

    def outputs(self, flat: Array) -> Array:
        """Return the outputs in a flat array (c, m * Q * R) as a view (m, c, OH, OW)."""
        (OH, OW), planes = self.output, flat.reshape(-1, self.m, *self.size)
        return planes[:, :, :OH, :OW].transpose(1, 0, 2, 3)


def _rows_of_planes(size: int, count: int, before: int, stride: int) -> Iterator[tuple[int, slice, slice]]:
    """Yield for each phase of an axis its pixels in the planes, and the same pixels in the images."""
    for phase in range(stride):
        first = max(-((phase - before) // stride), 0)
        stop = min(-((phase - before - size) // stride), count)
        if first < stop:
            start = first * stride + phase - before
            yield phase, slice(first, stop), slice(start, start + (stop - first - 1) * stride + 1, stride)


def convolve(x: Array, w: Array, b: Array | None, window: Window, out: Array) -> None:
    """Add up the products of all weights in an array that stays in the cache."""
    (N, C), F = x.shape[:2], len(w)
    weights = w.reshape(F, -1, 1)

    def task(tile: slice) -> None:
        planes = _Planes(len(x[tile]), x.shape[2:], window)
        for channels in planes.chunks(C, x.itemsize):
            flat = planes.split(x[tile, channels])
            sums, products = (scratch(name, (len(flat), flat.shape[3]), x.dtype) for name in ("sums", "products"))
            total, term = sums[:, : planes.length], products[:, : planes.length]
            for filters in _filters_of(channels, F // C):
                for k, (p, s, pixels) in enumerate(planes.taps):
                    np.multiply(flat[:, p, s, pixels], weights[filters, k], out=term if k else total)
                    if k:
                        total += term
                if b is not None:
                    total += b[filters, None]
                out[tile, filters] = planes.outputs(sums)

    for_each_tile(x, task, N, _image_bytes(x, window))


def convolve_backward(dout: Array, x: Array, w: Array, window: Window, dx: Array | None) -> Array:
    """Return dw, the scalar products of dout and shifted planes; unless dx is None, write sums of products to it."""
    (N, C), F = x.shape[:2], len(w)
    weights = w.reshape(F, -1, 1)

    def task(tile: slice) -> tuple[Array]:
        planes = _Planes(len(x[tile]), x.shape[2:], window)
        dw = np.empty(weights.shape[:2], x.dtype)
        for channels in planes.chunks(C, x.itemsize):
            flat = planes.split(x[tile, channels])
            gradients, products = (scratch(name, (len(flat), flat.shape[3]), x.dtype) for name in ("sums", "products"))
            dy, term = gradients[:, : planes.length], products[:, : planes.length]
            gradients[...] = 0
            dplanes = None if dx is None else planes.zeros("dplanes", x[tile, channels]).reshape(flat.shape)
            for filters in _filters_of(channels, F // C):
                planes.outputs(gradients)[...] = dout[tile, filters]
                for k, (p, s, pixels) in enumerate(planes.taps):
                    dw[filters, k] = np.vecdot(flat[:, p, s, pixels], dy)
                    if dplanes is not None:
                        np.multiply(dy, weights[filters, k], out=term)
                        dplanes[:, p, s, pixels] += term
            if dx is not None and dplanes is not None:
                planes.join(dplanes, dx[tile, channels])
        return (dw,)

    (dw,) = sum_over_tiles(x, task, N, _image_bytes(x, window))
    return dw.reshape(w.shape)


def _filters_of(channels: slice, M: int) -> Iterator[slice]:
    """Yield slices of filters: the first filter of each channel, then the second, ..."""
    return (slice(channels.start * M + j, channels.stop * M, M) for j in range(M))


def _image_bytes(x: Array, window: Window) -> int:
    """Return the size of one image's planes, in bytes."""
    return int(x.shape[1] * prod(_Planes(1, x.shape[2:], window).shape) * x.itemsize)

"""Winograd's convolution F(4x4, 3x3) on NumPy: a quarter of the multiplications, as five matrix products.

Four neighbours of a 3-wide convolution need 6 products instead of 12: ``y = A @ ((G @ g) * (B @ d))`` for 6 pixels d,
3 weights g and 4 results y (Winograd 1980; Lavin and Gray 2016). In two dimensions every 4x4 block of results needs
36 products instead of 144, and over all blocks and channels these are 36 matrix products.

Down the image both transforms are such small matrices, applied to whole rows of pixels. Across it they are written out
for a few blocks at a time, with the image's padding, and so also bring the channels to the last axis. The order of axes
lets every step read and write BLAS matrices where they lie.

Letters: N images, C channels, F filters, (H, W) image, (OH, OW) output; m images in a tile, (th, tw) blocks of an
image, a and b the 6 places in a block down and across.
"""

from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import for_each_tile, matmul, sum_over_tiles
from xpconv.ops.windows import Pair

__all__ = ["convolve", "convolve_backward", "is_applicable"]

Array = np.ndarray
_B = np.asarray(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    float,
)
_G = np.asarray(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_G2 = np.kron(_G, _G)  # (36, 9): both directions at once
_A = np.asarray([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float)
_KINDS = {"input": _B, "output": _A.T}


def is_applicable(x: Array, w: Array, stride: Pair, padding: Pair) -> bool:
    """Whether this is right and fast: float32, 3x3, stride 1, many channels.

    In float64 its rounding would show; with few channels the 36 products are too small.
    """
    return (
        x.dtype == np.float32
        and w.shape[2:] == (3, 3)
        and stride == (1, 1)
        and max(padding) <= 2
        and min(w.shape[:2]) >= 24
    )


Bands = list[tuple[slice, slice, Array]]  # of a matrix: the band's rows, its columns, and what stands there


@lru_cache
def _across(kind: str, blocks: int, extent: int, padding: int) -> tuple[Bands, Bands]:
    """Return the matrix of a whole row of blocks, and its transpose, in bands of a few blocks: most of it is zeros."""
    T = _KINDS[kind]
    reach = T.shape[1]

    def part(first: int, last: int, start: int, stop: int) -> Array:
        """Return the matrix from the pixels `start` to `stop` to the blocks `first` to `last`."""
        whole = np.zeros((last - first, 6, 4 * (last - first - 1) + reach), np.float32)
        for k in range(last - first):
            whole[k, :, 4 * k : 4 * k + reach] = T
        seen = 4 * first - padding
        return whole.reshape(6 * (last - first), -1)[:, start - seen : stop - seen]

    into, back = [], []
    for first in range(0, blocks, 4):
        last = min(first + 4, blocks)
        start, stop = max(4 * first - padding, 0), min(4 * (last - 1) + reach - padding, extent)
        band = np.ascontiguousarray(part(first, last, start, stop))
        into.append((slice(6 * first, 6 * last), slice(start, stop), band))
    for start in range(0, extent, 16):
        stop = min(start + 16, extent)
        first, last = max((start + padding - reach) // 4 + 1, 0), min((stop - 1 + padding) // 4 + 1, blocks)
        band = part(first, last, start, stop).T
        used = np.flatnonzero(band.any(axis=0))
        places = slice(6 * first + int(used[0]), 6 * first + int(used[-1]) + 1)
        back.append((slice(start, stop), places, np.ascontiguousarray(band[:, used[0] : used[-1] + 1])))
    return into, back


class _Blocks:
    """The transform of a tile's images into blocks (6, th * m * tw, 6, channels), and its adjoint.

    A block sees 6 x 6 pixels of the padded input ("input"), or gives 4 x 4 pixels of the output ("output").
    """

    def __init__(self, kind: str, m: int, image: Pair, padding: Pair, blocks: Pair) -> None:
        (self.H, W), (self.PH, PW), (self.th, self.tw), self.m = image, padding, blocks, m
        self.T = _KINDS[kind].astype(np.float32)  # (6, pixels that a block sees)
        self.into, self.back = _across(kind, self.tw, W, PW)
        self.P = self.th * m * self.tw

    def forward(self, images: Array, name: str) -> Array:
        """Transform images (m, C, H, W)."""
        C, reach = images.shape[1], self.T.shape[1]
        rows, inside = self._rows(C)
        rows[: self.PH], rows[self.PH + self.H :] = 0, 0
        for places, pixels, band in self.into:  # for each row and image
            np.matmul(band, images[..., pixels].transpose(2, 0, 3, 1), out=inside[:, :, places])
        blocks = scratch(name, (6, self.th, rows[0].size), rows.dtype)
        flat = rows.reshape(len(rows), -1)
        windows = as_strided(flat, (self.th, reach, blocks.shape[2]), (4 * flat.strides[0], *flat.strides))
        np.matmul(self.T, windows, out=blocks.transpose(1, 0, 2))
        return blocks.reshape(6, self.P, 6, C)

    def backward(self, blocks: Array, images: Array) -> None:
        """Write the adjoint's images."""
        rows, inside = self._rows(blocks.shape[3])
        blocks = blocks.reshape(6, self.th, -1).transpose(1, 0, 2)
        flat = rows.reshape(len(rows), -1)
        first, then = flat[: 4 * self.th].reshape(self.th, 4, -1), flat[4:].reshape(self.th, 4, -1)
        np.matmul(self.T[:, :4].T, blocks, out=first)
        if self.T.shape[1] > 4:  # the last pixels that a block sees are the first ones of the next
            flat[4 * self.th :] = 0
            rest = scratch("rest", (self.th, 2, flat.shape[1]), flat.dtype)
            then[:, :2] += np.matmul(self.T[:, 4:].T, blocks, out=rest)
        for pixels, places, band in self.back:
            np.matmul(inside[:, :, places].transpose(0, 1, 3, 2), band.T, out=images[..., pixels].transpose(2, 0, 1, 3))

    def _rows(self, channels: int) -> tuple[Array, Array]:
        """Return a place for rows that are transformed across, and the part of it which is the image."""
        rows = scratch("rows", (4 * self.th + 4, self.m, 6 * self.tw, channels), np.float32)
        return rows, rows[self.PH : self.PH + self.H]


def _points(blocks: Array) -> Array:
    """Return blocks as 36 matrices: views (6, 6, P, channels)."""
    return blocks.transpose(0, 2, 1, 3)


def _filters(w: Array) -> Array:
    """Transform filters to (6, 6, F, C)."""
    points: Array = matmul(_G2.astype(w.dtype), w.reshape(-1, 9).T)
    return points.reshape(6, 6, *w.shape[:2])


@lru_cache
def _in_and_out(m: int, image: Pair, padding: Pair) -> tuple[_Blocks, _Blocks]:
    """Return the transforms of a tile's inputs, and those of its outputs as their adjoint."""
    output = image[0] + 2 * padding[0] - 2, image[1] + 2 * padding[1] - 2
    blocks = -(-output[0] // 4), -(-output[1] // 4)
    return _Blocks("input", m, image, padding, blocks), _Blocks("output", m, output, (0, 0), blocks)


def _bytes(x: Array, w: Array) -> int:
    """Return what counts as an image's scratch: half of its blocks, since the 36 products want many rows."""
    return int(36 / 16 * x[0, 0].size * sum(w.shape[:2]) * x.itemsize) // 2


def convolve(x: Array, w: Array, b: Array | None, padding: Pair) -> Array:
    """Transform, multiply, transform back."""
    (N, _, H, W), F = x.shape, w.shape[0]
    out = np.empty((N, F, H + 2 * padding[0] - 2, W + 2 * padding[1] - 2), x.dtype)
    filters = _filters(w).transpose(0, 1, 3, 2)  # (6, 6, C, F)

    def task(tile: slice) -> None:
        inputs, outputs = _in_and_out(tile.stop - tile.start, (H, W), padding)
        product = scratch("points", (6, inputs.P, 6, F), x.dtype)
        np.matmul(_points(inputs.forward(x[tile], "blocks")), filters, out=_points(product))
        if b is not None:
            product[1, :, 1] += b  # of this place A makes the same everywhere
        outputs.backward(product, out[tile])

    for_each_tile(x, task, N, _bytes(x, w))
    return out


def convolve_backward(
    dout: Array, x: Array, w: Array, padding: Pair, need_dx: bool
) -> tuple[Array | None, Array, Array]:
    """Do the adjoint of each step, in the opposite order."""
    (F, C), (H, W) = w.shape[:2], x.shape[2:]
    filters = _filters(w)
    dx = np.empty(x.shape, x.dtype) if need_dx else None

    def task(tile: slice) -> tuple[Array, Array]:
        inputs, outputs = _in_and_out(tile.stop - tile.start, (H, W), padding)
        dy = _points(outputs.forward(dout[tile], "points"))  # (6, 6, P, F)
        blocks = inputs.forward(x[tile], "blocks")
        dU = scratch("dU", (36, F * C), x.dtype)
        np.matmul(dy.transpose(0, 1, 3, 2), _points(blocks), out=dU.reshape(6, 6, F, C))
        dw = _G2.astype(x.dtype).T @ dU  # (9, F * C)
        if dx is not None:
            np.matmul(dy, filters, out=_points(blocks))
            inputs.backward(blocks, dx[tile])
        return dw, dout[tile].sum(axis=(0, 2, 3))

    dw, db = sum_over_tiles(x, task, x.shape[0], _bytes(x, w))
    return dx, np.ascontiguousarray(dw.reshape(3, 3, F, C).transpose(2, 3, 0, 1)), db

"""Winograd's convolution F(4x4, 3x3) on NumPy: a quarter of the multiplications, as 36 matrix products.

Four neighbouring outputs of a convolution with 3 weights need 6 products instead of 12: ``y = A @ ((G @ g) * (B @ d))``
for 6 pixels d, 3 weights g and 4 outputs y (Winograd 1980; Lavin and Gray 2016, whose ``A^T`` and ``B^T`` are A and B
here). In two dimensions, for 6x6 pixels d, 3x3 weights g and 4x4 outputs y::

    y = A @ ((G @ g @ G.T) * (B @ d @ B.T)) @ A.T

so a block of 4x4 outputs needs 36 products instead of 144. Its 36 *points* are the elements of the product in the
middle. For each point, the products of all blocks and channels, summed over C, are one matrix product
(P, C) @ (C, F): 36 matrix products in all.

Multiplying by B and ``B.T`` (or A and ``A.T``) is done one direction at a time. Down the image, B is applied to whole
rows of pixels. Across the image, one matrix transforms a whole row of pixels into all its blocks, and moves the
channels to the last axis. Example: a row of W = 8 pixels p0 to p7 with padding 1 has 2 blocks. Block 0 reads the pixels
-1 to 4, block 1 the pixels 3 to 8. Pixels -1 and 8 are padding, so their columns are left out; both blocks read pixels
3 and 4::

               p0  p1  p2  p3  p4  p5  p6  p7
    block 0  [ B1  B2  B3  B4  B5   0   0   0 ]       Bk is column k of B, 6 numbers:
    block 1  [  0   0   0  B0  B1  B2  B3  B4 ]       the matrix is 12 x 8.

For a long row, most of the matrix is 0. It is therefore stored as bands of 4 blocks and the pixels that they read, and
its transpose as bands of 16 pixels and the blocks that read them.

Blocks are stored as (6 points down, P, 6 points across, channels): in this order of axes BLAS can read and write the
matrices of every step without copies.

Letters: N images, C channels, F filters, (H, W) image, (OH, OW) output; m images in a tile, (th, tw) blocks of an
image, P = th * m * tw blocks of a tile.
"""

from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import for_each_tile, matmul, sum_over_tiles
from xpconv.ops.windows import Pair, Window

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
_G2 = np.kron(_G, _G)  # (36, 9): G @ g @ G.T for flat g.
_A = np.asarray([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float)
_TRANSFORMS = {"input": _B, "output": _A.T}  # The output uses the adjoint, so that both turn pixels into points.


def is_applicable(x: Array, w: Array, window: Window) -> bool:
    """Return whether Winograd's algorithm is exact enough and faster: float32, 3x3, stride 1, many channels.

    Its rounding errors are too large for float64. With few channels, the 36 matrix products are too small to be fast.
    """
    return (
        x.dtype == np.float32
        and window.kernel_size == (3, 3)
        and window.stride == window.dilation == (1, 1)
        and all(before == after <= 2 for before, after in window.padding)
        and min(w.shape[:2]) >= 24
    )


Bands = list[tuple[slice, slice, Array]]  # Rows, columns and values of each band of a matrix.


@lru_cache
def _row_transform(kind: str, blocks: int, extent: int, padding: int) -> tuple[Bands, Bands]:
    """Return the bands of the matrix that transforms a row of `extent` pixels, and those of its transpose."""
    T = _TRANSFORMS[kind]
    reach = T.shape[1]  # Block k covers the pixels 4 * k - padding to 4 * k - padding + reach - 1.

    def submatrix(first: int, last: int, start: int, stop: int) -> Array:
        """Return the matrix from pixels start:stop to blocks first:last."""
        padded = np.zeros((last - first, 6, 4 * (last - first - 1) + reach), np.float32)
        for k in range(last - first):
            padded[k, :, 4 * k : 4 * k + reach] = T
        first_pixel = 4 * first - padding
        return padded.reshape(6 * (last - first), -1)[:, start - first_pixel : stop - first_pixel]

    forward, backward = [], []
    for first in range(0, blocks, 4):
        last = min(first + 4, blocks)
        start, stop = max(4 * first - padding, 0), min(4 * (last - 1) + reach - padding, extent)
        band = np.ascontiguousarray(submatrix(first, last, start, stop))
        forward.append((slice(6 * first, 6 * last), slice(start, stop), band))
    for start in range(0, extent, 16):
        stop = min(start + 16, extent)
        first, last = max((start + padding - reach) // 4 + 1, 0), min((stop - 1 + padding) // 4 + 1, blocks)
        band = submatrix(first, last, start, stop).T
        used = np.flatnonzero(band.any(axis=0))  # Leave out points at both ends that depend on none of these pixels.
        points = slice(6 * first + int(used[0]), 6 * first + int(used[-1]) + 1)
        backward.append((slice(start, stop), points, np.ascontiguousarray(band[:, used[0] : used[-1] + 1])))
    return forward, backward


class _Blocks:
    """The transform of a tile's images into blocks (6, P, 6, channels), and its adjoint.

    A block covers 6 x 6 pixels of the padded input ("input") or 4 x 4 pixels of the output ("output"). The input is
    transformed forward and the output backward, and their gradients in the opposite directions.
    """

    def __init__(self, kind: str, m: int, image: Pair, padding: Pair, blocks: Pair) -> None:
        (self.H, W), (self.PH, PW), (self.th, self.tw), self.m = image, padding, blocks, m
        self.T = _TRANSFORMS[kind].astype(np.float32)  # (6, pixels across a block)
        self.row_bands, self.transposed_row_bands = _row_transform(kind, self.tw, W, PW)
        self.P = self.th * m * self.tw

    def forward(self, images: Array, name: str) -> Array:
        """Return the blocks of images (m, C, H, W): transform across, then down."""
        C, reach = images.shape[1], self.T.shape[1]
        rows, inside = self._rows(C)
        rows[: self.PH], rows[self.PH + self.H :] = 0, 0
        for points, pixels, band in self.row_bands:  # One product for each row and image.
            np.matmul(band, images[..., pixels].transpose(2, 0, 3, 1), out=inside[:, :, points])
        blocks = scratch(name, (6, self.th, rows[0].size), rows.dtype)
        flat = rows.reshape(len(rows), -1)
        windows = as_strided(flat, (self.th, reach, blocks.shape[2]), (4 * flat.strides[0], *flat.strides))
        np.matmul(self.T, windows, out=blocks.transpose(1, 0, 2))
        return blocks.reshape(6, self.P, 6, C)

    def backward(self, blocks: Array, images: Array) -> None:
        """Apply the adjoint of `forward` to blocks, and write the result to images (m, C, H, W)."""
        rows, inside = self._rows(blocks.shape[3])
        blocks = blocks.reshape(6, self.th, -1).transpose(1, 0, 2)
        flat = rows.reshape(len(rows), -1)
        own_rows, next_rows = flat[: 4 * self.th].reshape(self.th, 4, -1), flat[4:].reshape(self.th, 4, -1)
        np.matmul(self.T[:, :4].T, blocks, out=own_rows)
        if self.T.shape[1] > 4:  # The last two rows of a block's six are the first two rows of the block below.
            flat[4 * self.th :] = 0
            overlap = scratch("overlap", (self.th, 2, flat.shape[1]), flat.dtype)
            next_rows[:, :2] += np.matmul(self.T[:, 4:].T, blocks, out=overlap)
        for pixels, points, band in self.transposed_row_bands:
            np.matmul(inside[:, :, points].transpose(0, 1, 3, 2), band.T, out=images[..., pixels].transpose(2, 0, 1, 3))

    def _rows(self, channels: int) -> tuple[Array, Array]:
        """Return a scratch array for rows that are transformed across, and a view of it without the padding rows."""
        rows = scratch("rows", (4 * self.th + 4, self.m, 6 * self.tw, channels), np.float32)
        return rows, rows[self.PH : self.PH + self.H]


def _as_matrices(blocks: Array) -> Array:
    """Return a view of blocks as 36 matrices, one for each point: (6, 6, P, channels)."""
    return blocks.transpose(0, 2, 1, 3)


def _filters(w: Array) -> Array:
    """Return the points of the filters: (6, 6, F, C)."""
    points: Array = matmul(_G2.astype(w.dtype), w.reshape(-1, 9).T)
    return points.reshape(6, 6, *w.shape[:2])


@lru_cache
def _transforms(m: int, image: Pair, padding: Pair) -> tuple[_Blocks, _Blocks]:
    """Return the transforms for the input and the output of a tile of m images."""
    output = image[0] + 2 * padding[0] - 2, image[1] + 2 * padding[1] - 2
    blocks = -(-output[0] // 4), -(-output[1] // 4)
    return _Blocks("input", m, image, padding, blocks), _Blocks("output", m, output, (0, 0), blocks)


def _image_bytes(x: Array, w: Array) -> int:
    """Return half the size of an image's blocks, in bytes, since the products are faster in tiles twice as large."""
    return int(36 / 16 * x[0, 0].size * sum(w.shape[:2]) * x.itemsize) // 2


def convolve(x: Array, w: Array, b: Array | None, padding: Pair, out: Array) -> None:
    """Transform images and filters, multiply, and transform the products to the output."""
    (N, _, H, W), F = x.shape, w.shape[0]
    filters = _filters(w).transpose(0, 1, 3, 2)  # (6, 6, C, F)

    def task(tile: slice) -> None:
        inputs, outputs = _transforms(tile.stop - tile.start, (H, W), padding)
        product = scratch("points", (6, inputs.P, 6, F), x.dtype)
        np.matmul(_as_matrices(inputs.forward(x[tile], "blocks")), filters, out=_as_matrices(product))
        if b is not None:
            product[1, :, 1] += b  # Column 1 of A is all ones, so a constant here reaches all 16 outputs.
        outputs.backward(product, out[tile])

    for_each_tile(x, task, N, _image_bytes(x, w))


def convolve_backward(dout: Array, x: Array, w: Array, padding: Pair, dx: Array | None) -> Array:
    """Apply the adjoint of each step of `convolve` in reverse order; write dx unless it is None, and return dw."""
    (F, C), (H, W) = w.shape[:2], x.shape[2:]
    filters = _filters(w)

    def task(tile: slice) -> tuple[Array]:
        inputs, outputs = _transforms(tile.stop - tile.start, (H, W), padding)
        dy = _as_matrices(outputs.forward(dout[tile], "points"))  # (6, 6, P, F)
        blocks = inputs.forward(x[tile], "blocks")
        dU = scratch("dU", (36, F * C), x.dtype)
        np.matmul(dy.transpose(0, 1, 3, 2), _as_matrices(blocks), out=dU.reshape(6, 6, F, C))
        dw = _G2.astype(x.dtype).T @ dU  # (9, F * C)
        if dx is not None:
            np.matmul(dy, filters, out=_as_matrices(blocks))
            inputs.backward(blocks, dx[tile])
        return (dw,)

    (dw,) = sum_over_tiles(x, task, x.shape[0], _image_bytes(x, w))
    return np.ascontiguousarray(dw.reshape(3, 3, F, C).transpose(2, 3, 0, 1))

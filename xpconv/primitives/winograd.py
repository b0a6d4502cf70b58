"""Winograd's convolution F(4x4, 3x3) on NumPy: a quarter of the multiplications, as five matrix products.

Four neighbours of a 3-wide convolution need 6 products instead of 12: ``y = A @ ((G @ g) * (B @ d))`` for 6 pixels d,
3 weights g and 4 results y (Winograd 1980; Lavin and Gray 2016). In two dimensions every 4x4 block of results needs
36 products instead of 144, and over all blocks and channels these are 36 matrix products.

The transforms B and A of a whole row of blocks are matrix products as well, with the blocks' overlap and the image's
padding written into the matrices: ``V = rows(B) @ image @ columns(B).T`` and ``out = rows(A) @ M @ columns(A).T``.
The order of axes lets every step read and write BLAS matrices where they lie.

Letters: N images, C channels, F filters, (H, W) image, (OH, OW) output; m images in a tile, (th, tw) blocks of an
image, a and b the 6 places in a block down and across.
"""

from functools import lru_cache

import numpy as np

from xpconv.primitives.tiling import for_each_tile, matmul, scratch, sum_over_tiles
from xpconv.primitives.windows import Pair

__all__ = ["convolve", "convolve_gradients", "suits"]

Array = np.ndarray
_B = np.asarray([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                 [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], float)
_G = np.asarray([[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
                 [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]])
_G2 = np.kron(_G, _G)  # (36, 9): both directions at once
_A = np.asarray([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float)


def suits(x: Array, w: Array, stride: Pair, padding: Pair) -> bool:
    """Whether this is right and fast: float32, 3x3, stride 1, many channels, small images.

    In float64 its rounding would show; with few channels the 36 products are too small, and on wide images the
    transforms' matrices are mostly zeros.
    """
    return (x.dtype == np.float32 and w.shape[2:] == (3, 3) and stride == (1, 1) and max(padding) <= 2
            and min(w.shape[:2]) >= 32 and max(x.shape[2:]) <= 48)


@lru_cache
def _transforms(extent: int, padding: int) -> tuple[Array, Array]:
    """Return rows(B) (6, t, extent) and rows(A) (OH, 6, t) for t blocks along one axis."""
    output = extent + 2 * padding - 2
    t = -(-output // 4)
    into, out = np.zeros((6, t, extent + 2 * padding + 4)), np.zeros((t, 4, 6, t))
    for k in range(t):
        into[:, k, 4 * k:4 * k + 6] = _B
        out[k, :, :, k] = _A
    return (np.ascontiguousarray(into[:, :, padding:padding + extent], np.float32),
            np.ascontiguousarray(out.reshape(4 * t, 6, t)[:output], np.float32))


class _Blocks:
    """The transforms of one tile's images into blocks (6, th * m * tw, 6, channels) and back."""

    def __init__(self, m: int, height: Array, width: Array) -> None:
        self.m, self.th, self.tw = m, height.shape[1], width.shape[1]
        self.P = self.th * m * self.tw
        self.H, self.W = height.shape[2], width.shape[2]
        self.down = height.reshape(-1, self.H)                                      # ((a, th), H)
        self.across = np.ascontiguousarray(width.transpose(1, 0, 2)).reshape(-1, self.W)    # ((tw, b), W)

    def forward(self, images: Array, name: str) -> Array:
        """Transform images (m, C, H, W)."""
        C = images.shape[1]
        rows = scratch("rows", (self.H, self.m, 6 * self.tw, C), images.dtype)
        np.matmul(self.across, images.transpose(2, 0, 3, 1), out=rows)              # over W, for each row and image
        blocks = scratch(name, (6 * self.th, self.m * 6 * self.tw * C), images.dtype)
        np.matmul(self.down, rows.reshape(self.H, -1), out=blocks)                  # over H
        return blocks.reshape(6, self.P, 6, C)

    def backward(self, blocks: Array, images: Array) -> None:
        """Write the adjoint's images."""
        C = blocks.shape[3]
        rows = scratch("rows", (self.H, self.m * 6 * self.tw * C), blocks.dtype)
        np.matmul(self.down.T, blocks.reshape(6 * self.th, -1), out=rows)
        rows = rows.reshape(self.H, self.m, 6 * self.tw, C).transpose(0, 1, 3, 2)   # (H, m, C, (tw, b))
        np.matmul(rows, self.across, out=images.transpose(2, 0, 1, 3))


def _points(blocks: Array) -> Array:
    """Return blocks as 36 matrices: views (6, 6, P, channels)."""
    return blocks.transpose(0, 2, 1, 3)


def _filters(w: Array) -> Array:
    """Transform filters to (6, 6, F, C)."""
    points: Array = matmul(_G2.astype(w.dtype), w.reshape(-1, 9).T)
    return points.reshape(6, 6, *w.shape[:2])


def _in_and_out(m: int, H: int, W: int, padding: Pair) -> tuple[_Blocks, _Blocks]:
    """Return the transforms of a tile's inputs, and those of its outputs as their adjoint."""
    (into_h, out_h), (into_w, out_w) = _transforms(H, padding[0]), _transforms(W, padding[1])
    return _Blocks(m, into_h, into_w), _Blocks(m, out_h.transpose(1, 2, 0).copy(), out_w.transpose(1, 2, 0).copy())


def _bytes(x: Array, w: Array) -> int:
    """Return what counts as an image's scratch: half of its blocks, since the 36 products want many rows."""
    return int(36 / 16 * x[0, 0].size * sum(w.shape[:2]) * x.itemsize) // 2


def convolve(x: Array, w: Array, b: Array | None, padding: Pair) -> Array:
    """Transform, multiply, transform back."""
    (N, _, H, W), F = x.shape, w.shape[0]
    out = np.empty((N, F, H + 2 * padding[0] - 2, W + 2 * padding[1] - 2), x.dtype)
    filters = _filters(w).transpose(0, 1, 3, 2)                                     # (6, 6, C, F)

    def task(tile: slice) -> None:
        inputs, outputs = _in_and_out(tile.stop - tile.start, H, W, padding)
        product = scratch("points", (6, inputs.P, 6, F), x.dtype)
        np.matmul(_points(inputs.forward(x[tile], "blocks")), filters, out=_points(product))
        outputs.backward(product, out[tile])
        if b is not None:
            out[tile] += b[:, None, None]

    for_each_tile(task, N, _bytes(x, w), x)
    return out


def convolve_gradients(dout: Array, x: Array, w: Array, padding: Pair, need_dx: bool
                       ) -> tuple[Array | None, Array, Array]:
    """Do the adjoint of each step, in the opposite order."""
    (F, C), (H, W) = w.shape[:2], x.shape[2:]
    filters = _filters(w)
    dx = np.empty(x.shape, x.dtype) if need_dx else None

    def task(tile: slice) -> tuple[Array, Array]:
        inputs, outputs = _in_and_out(tile.stop - tile.start, H, W, padding)
        dy = _points(outputs.forward(dout[tile], "points"))                             # (6, 6, P, F)
        blocks = inputs.forward(x[tile], "blocks")
        dU = scratch("dU", (36, F * C), x.dtype)
        np.matmul(dy.transpose(0, 1, 3, 2), _points(blocks), out=dU.reshape(6, 6, F, C))
        dw = _G2.astype(x.dtype).T @ dU                                 # (9, F * C)
        if dx is not None:
            np.matmul(dy, filters, out=_points(blocks))
            inputs.backward(blocks, dx[tile])
        return dw, dout[tile].sum(axis=(0, 2, 3))

    dw, db = sum_over_tiles(task, x.shape[0], _bytes(x, w), x)
    return dx, np.ascontiguousarray(dw.reshape(3, 3, F, C).transpose(2, 3, 0, 1)), db

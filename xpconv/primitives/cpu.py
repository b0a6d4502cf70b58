"""Fast NumPy versions of the primitives on windows; those of the convolution are in mec.py."""

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.primitives import accelerate, mec  # noqa: F401  (it registers itself)
from xpconv.primitives.normalise import spread
from xpconv.primitives.tiling import for_each_tile, over_tiles, scratch
from xpconv.primitives.windows import Pair, output_size, pad, windows

Image = np.ndarray
_NEAR_ZERO = 4  # mean**2 / var up to which E[x**2] - mean**2 loses less than one digit


@accelerate("unfold", "numpy")
def unfold(x: Image, size: Pair, stride: Pair, padding: Pair) -> Image:
    """Copy one strided view of all windows at once."""
    N, C, H, W = x.shape
    OH, OW = output_size((H, W), size, stride, padding)
    x = pad(x, padding)
    n, c, h, w = x.strides
    view = as_strided(x, (C, *size, N, OH, OW), (c, h, w, n, h * stride[0], w * stride[1]), writeable=False)
    return np.ascontiguousarray(view).reshape(C * size[0] * size[1], N * OH * OW)


@accelerate("max_pool", "numpy")
def max_pool(x: Image, size: Pair, stride: Pair, padding: Pair) -> tuple[Image, Image]:
    """Compare contiguous copies of the views, image by image on all threads."""
    output = output_size(x.shape[2:], size, stride, padding)
    best = np.empty((*x.shape[:2], *output), x.dtype)
    place = np.empty(best.shape, np.uint8 if size[0] * size[1] <= 256 else np.int64)

    def task(tile: slice) -> None:
        mine, where = best[tile], place[tile]
        view, better = scratch("view", mine.shape, x.dtype), scratch("better", mine.shape, bool)
        index = scratch("index", mine.shape, place.dtype)
        for k, strided in enumerate(windows(pad(x[tile], padding, -np.inf), size, stride, output)):
            if k == 0:
                mine[...], where[...] = strided, 0
                continue
            view[...] = strided
            np.greater(view, mine, out=better)
            np.maximum(mine, view, out=mine)
            np.multiply(better, k, out=index, casting="unsafe")  # 0 or k, which exceeds every place so far
            np.maximum(where, index, out=where)

    for_each_tile(task, x.shape[0], x[0].nbytes, x)
    return best, place


@accelerate("max_unpool", "numpy")
def max_unpool(dout: Image, place: Image, shape: tuple[int, int, int, int], size: Pair, stride: Pair,
               padding: Pair) -> Image:
    """Write where windows tile the image, add elsewhere, image by image on all threads."""
    (N, C, H, W), (PH, PW), output = shape, padding, dout.shape[2:]
    tiled = stride == size and padding == (0, 0) and (output[0] * size[0], output[1] * size[1]) == (H, W)
    dx = np.empty(shape, dout.dtype)

    def task(tile: slice) -> None:
        gradient, mine = scratch("gradient", dout[tile].shape, dout.dtype), dx[tile]
        into = mine if padding == (0, 0) else np.empty((len(mine), C, H + 2 * PH, W + 2 * PW), dout.dtype)
        if not tiled:
            into[...] = 0
        for k, view in enumerate(windows(into, size, stride, output)):
            np.multiply(dout[tile], place[tile] == k, out=gradient)
            if tiled:
                view[...] = gradient
            else:
                view += gradient
        if into is not mine:
            mine[...] = into[:, :, PH:PH + H, PW:PW + W]

    for_each_tile(task, N, dx[0].nbytes, dout)
    return dx


@accelerate("normalise", "numpy")
def normalise(x: Image, gamma: Image, beta: Image, *, axes: Sequence[int], along: int, eps: float
              ) -> tuple[Image, ...]:
    """Take both moments before writing anything; then ``out = scale * x + shift``."""
    def tile(out: Image, x: Image, gamma: Image, beta: Image) -> tuple[Image, Image, Image]:
        mean = _sums(axes, x) / count
        with np.errstate(over="ignore", invalid="ignore"):
            var = _sums(axes, x, x) / count - mean * mean
            centered = not np.all((mean * mean <= _NEAR_ZERO * var) & (var < np.inf))
        if centered:
            np.subtract(x, mean, out=out)
            var = _sums(axes, out, out) / count
        inv_std = 1 / np.sqrt(var + eps)
        if not np.all(var < np.inf):
            var, inv_std = spread(np, out, axes, eps)
        scale = inv_std * gamma
        np.multiply(out if centered else x, scale, out=out)
        out += beta if centered else beta - mean * scale
        return mean, var, inv_std

    out, count = np.empty(x.shape, x.dtype), prod(x.shape[axis] for axis in axes)
    return out, *over_tiles(tile, along, out, x, gamma, beta)


@accelerate("normalise_backward", "numpy")
def normalise_backward(dout: Image, x: Image, mean: Image, inv_std: Image, gamma: Image, *, axes: Sequence[int],
                       sums: Sequence[int], along: int) -> tuple[Image, ...]:
    """Take the sums of dout and dout * (x - mean) once; what is over `axes` is a sum of those, unless gamma varies."""
    count = prod(x.shape[axis] for axis in axes)

    def tile(dx: Image, dout: Image, x: Image, mean: Image, inv_std: Image, gamma: Image) -> tuple[Image, Image]:
        d = scratch("d", x.shape, x.dtype)
        if not np.all((mean * inv_std)**2 <= _NEAR_ZERO):
            x, mean = np.subtract(x, mean, out=d), np.zeros_like(mean)
        if all(gamma.shape[axis] == 1 for axis in sums):
            dbeta = _sums(sums, dout)
            product = _sums(sums, dout, x) - mean * dbeta
            rest = tuple(axis for axis in axes if axis not in sums)
            center, slope = ((a * gamma).sum(axis=rest, keepdims=True) if rest else a * gamma for a in (dbeta, product))
            np.multiply(dout, inv_std * gamma, out=dx)
        else:
            np.multiply(dout, gamma, out=dx)
            dbeta = _sums(sums, dout)
            product = _sums(sums, dout, x) - mean * dbeta
            center = _sums(axes, dx)
            slope = _sums(axes, dx, x) - mean * center
            dx *= inv_std
        slope = inv_std * (inv_std * (inv_std * slope)) / -count  # inv_std**3 may be too large or small a number
        np.multiply(x, slope, out=d)
        d -= slope * mean + inv_std * center / count
        dx += d
        return product * inv_std, dbeta

    dx = np.empty(x.shape, x.dtype)
    return dx, *over_tiles(tile, along, dx, dout, x, mean, inv_std, gamma)


def _sums(axes: Sequence[int], *factors: Image) -> Image:
    """Return the sum of the product of arrays over `axes`, which it keeps; einsum is faster than sum at it."""
    shape, every = factors[0].shape, range(factors[0].ndim)
    total: Image = np.einsum(*(part for a in factors for part in (a, every)), [i for i in every if i not in axes])
    return total.reshape([1 if i in axes else size for i, size in enumerate(shape)])


@accelerate("adam_step", "numpy")
def adam_step(w: Image, dw: Image, m: Image, v: Image, beta1: float, beta2: float, step: float, epsilon: float) -> None:
    """Keep what is between in one scratch array, which stays in the cache."""
    a = scratch("adam", w.shape, w.dtype)
    np.multiply(dw, 1 - beta1, out=a)
    m *= beta1
    m += a
    np.multiply(dw, dw, out=a)
    a *= 1 - beta2
    v *= beta2
    v += a
    np.sqrt(v, out=a)
    a += epsilon
    np.divide(m, a, out=a)
    a *= step
    w -= a


@accelerate("softmax", "numpy")
def softmax(x: Image, y: Image) -> tuple[Image, Image]:
    """Work in the gradient's own memory."""
    N = len(x)

    def tile(dx: Image, x: Image, y: Image) -> tuple[Image]:
        np.subtract(x, x.max(axis=1, keepdims=True), out=dx)
        rows = np.arange(len(y))
        own = dx[rows, y]
        np.exp(dx, out=dx)
        total = dx.sum(axis=1, keepdims=True)
        dx *= 1 / (total * N)
        dx[rows, y] -= x.dtype.type(1 / N)
        return (np.log(total[:, 0]) - own,)

    dx = np.empty(x.shape, x.dtype)
    return over_tiles(tile, 0, dx, x, y)[0], dx


@accelerate("rectify", "numpy")
def rectify(x: Image) -> tuple[Image, Image]:
    """Write both results at once, while the input is in the cache; clip is several times as fast as maximum at it."""
    out, mask = np.empty(x.shape, x.dtype), np.empty(x.shape, bool)

    def tile(out: Image, mask: Image, x: Image) -> tuple[()]:
        np.clip(x, 0, np.inf, out=out)
        np.greater(x, 0, out=mask)
        return ()

    over_tiles(tile, 0, out, mask, x)
    return out, mask


@accelerate("rectify_gradient", "numpy")
def rectify_gradient(dout: Image, mask: Image) -> Image:
    """Multiply: a choice by random conditions costs twenty times as much."""
    dx = np.empty(dout.shape, dout.dtype)

    def tile(dx: Image, dout: Image, mask: Image) -> tuple[()]:
        np.multiply(dout, mask, out=dx)
        return ()

    over_tiles(tile, 0, dx, dout, mask)
    return dx

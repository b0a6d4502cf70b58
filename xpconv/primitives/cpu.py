"""Fast NumPy versions of the primitives on windows; those of the convolution are in mec.py."""

from collections.abc import Sequence
from math import prod, sqrt
from string import ascii_letters

import numpy as np
from numpy.lib.stride_tricks import as_strided

from xpconv.primitives import accelerate, mec, portable  # noqa: F401  (it registers itself)
from xpconv.primitives.normalise import spread
from xpconv.primitives.tiling import for_each_tile, over_tiles, scratch
from xpconv.primitives.windows import Pair, first_places, output_size, pad, windows

Image = np.ndarray
_PART_BYTES = 1 << 19  # of an array: the closest cache that is not tiny holds one being made and one being read
_PIECE = 1 << 10  # elements that are added one after the other
_TINY = 1e-9  # of 1 / std: its square times a small gradient has no place in float32
_LOCKED = 500  # up to so many results, NumPy's products keep Python's lock
_NEAR_ZERO = 4  # mean**2 / var up to which E[x**2] - mean**2 loses less than one digit


@accelerate("unfold", "numpy")
def unfold(x: Image, size: Pair, stride: Pair, padding: Pair) -> Image:
    """Copy one strided view of all windows at once."""
    N, C, H, W = x.shape
    OH, OW = output_size((H, W), size, stride, padding)
    x = pad(x, padding)
    n, c, h, w = x.strides
    view = as_strided(x, (C, *size, N, OH, OW), (c, h, w, n, h * stride[0], w * stride[1]), writeable=False)
    return np.array(view, order="C").reshape(C * size[0] * size[1], N * OH * OW)


@accelerate("max_pool", "numpy")
def max_pool(x: Image, size: Pair, stride: Pair, padding: Pair) -> tuple[Image, Image]:
    """Compare contiguous copies of the views, image by image on all threads."""
    output = output_size(x.shape[2:], size, stride, padding)
    best, start = np.empty((*x.shape[:2], *output), x.dtype), first_places(np, size, stride, padding, output)
    place = np.empty(best.shape, start.dtype)

    def task(tile: slice) -> None:
        mine, where = best[tile], place[tile]
        view, better = scratch("view", mine.shape, x.dtype), scratch("better", mine.shape, bool)
        index = scratch("index", mine.shape, place.dtype)
        for k, strided in enumerate(windows(pad(x[tile], padding, -np.inf), size, stride, output)):
            if k == 0:
                mine[...], where[...] = strided, start
                continue
            view[...] = strided
            np.greater(view, mine, out=better)
            np.maximum(mine, view, out=mine)
            np.multiply(better.view(np.uint8), place.dtype.type(k), out=index)  # 0 or k, which exceeds all so far
            np.maximum(where, index, out=where)
        if np.isnan(mine).any():  # which exceeds nothing
            where[...] = portable("max_pool")(x[tile], size, stride, padding)[1]

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
            _keep(dout[tile], place[tile] == k, gradient)
            if tiled:
                view[...] = gradient
            else:
                view += gradient
        if into is not mine:
            mine[...] = into[:, :, PH:PH + H, PW:PW + W]

    for_each_tile(task, N, dx[0].nbytes, dout)
    return dx


def _keep(values: Image, mask: Image, out: Image) -> None:
    """Write values where the mask is, else 0: the product of their bits, since inf * 0 would be NaN."""
    bits = f"i{values.itemsize}"
    np.multiply(values.view(bits), mask, out=out.view(bits))


@accelerate("normalise", "numpy")
def normalise(x: Image, gamma: Image, beta: Image, *, axes: Sequence[int], along: int, eps: float
              ) -> tuple[Image, ...]:
    """Take both moments before writing anything; then ``out = scale * x + shift``."""
    def tile(out: Image, x: Image, gamma: Image, beta: Image) -> tuple[Image, Image, Image]:
        mean = _sums(axes, x) / count
        with np.errstate(over="ignore", invalid="ignore"):
            square = mean * mean
            var = _sums(axes, x, x) / count - square
            as_it_is = ((square <= _NEAR_ZERO * var) & (var < np.inf)).all()
            if not as_it_is:
                x = np.subtract(x, mean, out=out)
                rest = _sums(axes, x) / count  # by so much the mean was rounded
                x -= rest
                mean, var = mean + rest, _sums(axes, x, x) / count
        inv_std = 1 / np.sqrt(var + eps)
        if not as_it_is and not (var < np.inf).all():
            var, inv_std = spread(np, x, axes, eps)
        scale = inv_std * gamma
        _combine(out, beta - mean * scale if as_it_is else beta, (scale, x))
        return mean, var, inv_std

    out, count = np.empty(x.shape, x.dtype), prod(x.shape[axis] for axis in axes)
    return out, *over_tiles(tile, along, out, x, gamma, beta)


@accelerate("normalise_backward", "numpy")
def normalise_backward(dout: Image, x: Image, mean: Image, inv_std: Image, gamma: Image, *, axes: Sequence[int],
                       sums: Sequence[int], along: int) -> tuple[Image, ...]:
    """Take the sums of dout and dout * x once; what is over `axes` is a sum of those, unless gamma varies."""
    alike = all(gamma.shape[axis] == 1 for axis in sums)
    rest = tuple(axis + 1 for axis in axes if axis not in sums)  # of both totals in one array

    def tile(dx: Image, dout: Image, x: Image, mean: Image, inv_std: Image, gamma: Image) -> tuple[Image, Image]:
        as_it_is = ((np.abs(mean) <= sqrt(_NEAR_ZERO) / inv_std) & (inv_std > _TINY)).all()
        middle, width = (mean, inv_std) if as_it_is else (np.zeros_like(mean), np.ones_like(mean))
        if not as_it_is:
            x = (x - mean) * inv_std
        totals = np.array([_sums(sums, dout), _sums(sums, dout, x)])
        if alike:
            center, slope = (totals * gamma).sum(axis=rest, keepdims=True)
            scale = inv_std * gamma
        else:
            dout, scale = np.multiply(dout, gamma, out=dx), inv_std
            center, slope = _sums(axes, dout), _sums(axes, dout, x)
        share = inv_std / -count
        slope = share * (width * (width * (slope - middle * center)))  # width**2 may be too large a number
        _combine(dx, share * center - slope * middle, (slope, x), (scale, dout))
        return (totals[1] - middle * totals[0]) * width, totals[0]

    dx, count = np.empty(x.shape, x.dtype), prod(x.shape[axis] for axis in axes)
    return dx, *over_tiles(tile, along, dx, dout, x, mean, inv_std, gamma)


def _sums(axes: Sequence[int], *factors: Image) -> Image:
    """Return the sum of the product of arrays over `axes`, which it keeps.

    einsum is faster than sum, and BLAS than einsum, but both add up one after the other: they get short pieces.
    """
    x, axis = factors[0], max(axes)
    size, pieces = x.shape[axis], x.shape[axis] // _PIECE
    before, after = (slice(None),) * axis, x.shape[axis + 1:]
    total: Image
    if pieces > 1:
        cut = pieces * _PIECE
        shape = (*x.shape[:axis], pieces, _PIECE, *after)
        total = _row_sums(axis + 1, *(a[*before, :cut].reshape(shape) for a in factors)).sum(axis=axis)
        if cut < size:
            total += _row_sums(axis, *(a[*before, cut:] for a in factors))
    else:
        total = _row_sums(axis, *factors)
    total = total[*before, None]
    others = tuple(a for a in axes if a != axis)
    if prod(x.shape[a] for a in others) > _PIECE:
        return _sums(others, total)
    return total.sum(axis=others, keepdims=True) if others else total


def _row_sums(axis: int, *factors: Image) -> Image:
    """Return the sum of the product of arrays over an axis, which it does not keep."""
    x = factors[0]
    if len(factors) == 2 and axis == x.ndim - 1 and x.size // x.shape[axis] > _LOCKED:
        rows: Image = np.vecdot(*factors)
        return rows
    letters = ascii_letters[:x.ndim]
    total: Image = np.einsum(f"{','.join([letters] * len(factors))}->{letters.replace(letters[axis], '')}", *factors)
    return total


def _combine(out: Image, shift: Image, *terms: tuple[Image, Image]) -> None:
    """Write ``shift + a * x + b * y + ...`` part by part: each is made in the closest cache, then copied."""
    step = max(1, _PART_BYTES * len(out) // out.nbytes)
    shape = out[:step].shape
    total, term = scratch("total", shape, out.dtype), scratch("term", shape, out.dtype)
    (a, x), *others = terms
    for start in range(0, len(out), step):
        here = slice(start, start + step)
        part = out[here]
        if len(part) < len(total):
            total, term = total[:len(part)], term[:len(part)]
        np.multiply(x[here], a[here] if len(a) > 1 else a, total)
        np.add(total, shift[here] if len(shift) > 1 else shift, total)
        for b, y in others:
            np.multiply(y[here], b[here] if len(b) > 1 else b, term)
            np.add(total, term, total)
        part[...] = total


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
        _keep(dout, mask, dx)
        return ()

    over_tiles(tile, 0, dx, dout, mask)
    return dx

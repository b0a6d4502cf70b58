"""Normalisation on NumPy."""

from collections.abc import Sequence
from math import prod, sqrt
from string import ascii_letters

import numpy as np

from xpconv.ops.dispatch import accelerate
from xpconv.ops.norm import variance_and_inverse_std
from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._tiles import map_tiles

Array = np.ndarray


_PART_BYTES = 1 << 19  # of an array: the closest cache that is not tiny holds one being made and one being read


_PIECE = 1 << 10  # elements that are added one after the other


_TINY = 1e-9  # of 1 / std: its square times a small gradient has no place in float32


_LOCKED = 500  # up to so many results, NumPy's products keep Python's lock


_NEAR_ZERO = 4  # mean**2 / var up to which E[x**2] - mean**2 loses less than one digit


@accelerate("numpy")
def normalise(
    x: Array, gamma: Array, beta: Array, *, axes: Sequence[int], tile_axis: int, eps: float
) -> tuple[Array, ...]:
    """Take both moments before writing anything; then ``out = scale * x + shift``."""

    def tile(out: Array, x: Array, gamma: Array, beta: Array) -> tuple[Array, Array, Array]:
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
            var, inv_std = variance_and_inverse_std(np, x, axes, eps)
        scale = inv_std * gamma
        _combine(out, beta - mean * scale if as_it_is else beta, (scale, x))
        return mean, var, inv_std

    out, count = np.empty(x.shape, x.dtype), prod(x.shape[axis] for axis in axes)
    return out, *map_tiles(out, x, gamma, beta, function=tile, axis=tile_axis)


@accelerate("numpy")
def normalise_backward(
    dout: Array,
    x: Array,
    mean: Array,
    inv_std: Array,
    gamma: Array,
    *,
    axes: Sequence[int],
    param_axes: Sequence[int],
    tile_axis: int,
) -> tuple[Array, ...]:
    """Take the sums of dout and dout * x once; what is over `axes` is a sum of those, unless gamma varies."""
    alike = all(gamma.shape[axis] == 1 for axis in param_axes)
    rest = tuple(axis + 1 for axis in axes if axis not in param_axes)  # of both totals in one array

    def tile(dx: Array, dout: Array, x: Array, mean: Array, inv_std: Array, gamma: Array) -> tuple[Array, Array]:
        as_it_is = ((np.abs(mean) <= sqrt(_NEAR_ZERO) / inv_std) & (inv_std > _TINY)).all()
        middle, width = (mean, inv_std) if as_it_is else (np.zeros_like(mean), np.ones_like(mean))
        if not as_it_is:
            x = (x - mean) * inv_std
        totals = np.array([_sums(param_axes, dout), _sums(param_axes, dout, x)])
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
    return dx, *map_tiles(dx, dout, x, mean, inv_std, gamma, function=tile, axis=tile_axis)


def _sums(axes: Sequence[int], *factors: Array) -> Array:
    """Return the sum of the product of arrays over `axes`, which it keeps.

    einsum is faster than sum, and BLAS than einsum, but both add up one after the other: they get short pieces.
    """
    x, axis = factors[0], max(axes)
    size, pieces = x.shape[axis], x.shape[axis] // _PIECE
    before, after = (slice(None),) * axis, x.shape[axis + 1 :]
    total: Array
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


def _row_sums(axis: int, *factors: Array) -> Array:
    """Return the sum of the product of arrays over an axis, which it does not keep."""
    x = factors[0]
    if len(factors) == 2 and axis == x.ndim - 1 and x.size // x.shape[axis] > _LOCKED:
        rows: Array = np.vecdot(*factors)
        return rows
    letters = ascii_letters[: x.ndim]
    total: Array = np.einsum(f"{','.join([letters] * len(factors))}->{letters.replace(letters[axis], '')}", *factors)
    return total


def _combine(out: Array, shift: Array, *terms: tuple[Array, Array]) -> None:
    """Write ``shift + a * x + b * y + ...`` part by part: each is made in the closest cache, then copied."""
    step = max(1, _PART_BYTES * len(out) // out.nbytes)
    shape = out[:step].shape
    total, term = scratch("total", shape, out.dtype), scratch("term", shape, out.dtype)
    (a, x), *others = terms
    for start in range(0, len(out), step):
        here = slice(start, start + step)
        part = out[here]
        if len(part) < len(total):
            total, term = total[: len(part)], term[: len(part)]
        np.multiply(x[here], a[here] if len(a) > 1 else a, total)
        np.add(total, shift[here] if len(shift) > 1 else shift, total)
        for b, y in others:
            np.multiply(y[here], b[here] if len(b) > 1 else b, term)
            np.add(total, term, total)
        part[...] = total

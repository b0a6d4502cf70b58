"""Normalisation on NumPy: compute sums, then write the output as one linear combination of the inputs.

Forward, with ``xhat = (x - mean) * inv_std``::

    out = gamma * xhat + beta = scale * x + shift      scale = gamma * inv_std      shift = beta - mean * scale

Backward, with ``dxhat = gamma * dout`` and means over the ``n`` values that share their statistics::

    dx = inv_std * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat)) = a * dout - b * x + c

    S1 = sum(dxhat)            a = inv_std * gamma
    S2 = sum(dxhat * x)        b = inv_std / n * inv_std**2 * (S2 - mean * S1)
                               c = b * mean - inv_std / n * S1

    dbeta = sum(dout)          dgamma = inv_std * (sum(dout * x) - mean * sum(dout))

S1 and S2 are sums over `axes`; the sums in dgamma and dbeta are over `param_axes`. If gamma is constant over
`param_axes`, S1 and S2 are derived from the sums in dgamma and dbeta; if not, dxhat is computed first, in the memory of
dx.

``S2 - mean * S1`` loses digits if the mean is large compared with the standard deviation. The same formulas are then
applied to xhat in place of x, since its mean is 0 and its standard deviation is 1.
"""

from collections.abc import Sequence
from math import prod, sqrt
from typing import Any

import numpy as np

from xpconv.backend._blocks import empty
from xpconv.ops.dispatch import accelerate, portable
from xpconv.ops.norm import subtract_mean, variance_and_inverse_std
from xpconv.ops.numpy._elementwise import write_where
from xpconv.ops.numpy._scratch import scratch
from xpconv.ops.numpy._sums import sum_of_products
from xpconv.ops.numpy._tiles import map_tiles

Array = np.ndarray

_CHUNK_BYTES = 1 << 20  # Bytes per chunk. Threads wait for the GIL between chunks, so larger ones are faster.
# Up to this ratio mean**2 / var, E[x**2] - mean**2 loses at most one digit. The limit is smaller in float64, since
# gradient checks divide rounding errors by a small step.
_MAX_SQUARED_MEAN = {np.dtype(np.float32): 9, np.dtype(np.float64): 4}
_NUMPY_BUFFER = 1 << 8  # Elements; NumPy copies rows shorter than its buffer, which takes as long as the arithmetic.
_MIN_INV_STD = 1e-9  # Below this, inv_std**2 times a small gradient underflows in float32.


@accelerate("numpy")
def normalise(
    x: Array, gamma: Array, beta: Array, *mask: Array, axes: Sequence[int], tile_axis: int, eps: float
) -> tuple[Array, ...]:
    """Compute both moments, then ``out = scale * x + shift``; given a mask (of the shape of x), the ReLU of this."""

    def tile(out: Array, x: Array, gamma: Array, beta: Array, *mask: Array) -> tuple[Array, Array, Array]:
        mean = sum_of_products(axes, x) / n
        with np.errstate(over="ignore", invalid="ignore"):
            squared_mean = mean * mean
            var = sum_of_products(axes, x, x) / n - squared_mean
            well_conditioned = ((squared_mean <= _MAX_SQUARED_MEAN[x.dtype] * var) & (var < np.inf)).all()
            if not well_conditioned:
                x = np.subtract(x, mean, out=out)
                error = sum_of_products(axes, x) / n  # Rounding error of the mean.
                x -= error
                mean, var = mean + error, sum_of_products(axes, x, x) / n
        inv_std = 1 / np.sqrt(var + eps)
        if not well_conditioned and not (var < np.inf).all():
            var, inv_std = variance_and_inverse_std(np, x, axes, eps)
        scale = inv_std * gamma
        _write_linear_combination(out, beta - mean * scale if well_conditioned else beta, (scale, x), mask=mask)
        return mean, var, inv_std

    out, n = empty(x.shape, x.dtype), prod(x.shape[axis] for axis in axes)
    return out, *map_tiles(out, x, gamma, beta, *mask, function=tile, axis=tile_axis)


@accelerate("numpy")
def normalise_relu(x: Array, gamma: Array, beta: Array, **options: Any) -> tuple[Array, ...]:
    """Apply ReLU to each chunk of the output while it is in the cache; the signs are a mask."""
    mask = empty(x.shape, bool)
    return *normalise(x, gamma, beta, mask, **options), mask


@accelerate("numpy")
def normalise_backward(
    dout: Array,
    x: Array,
    mean: Array,
    inv_std: Array,
    gamma: Array,
    *mask: Array,
    axes: Sequence[int],
    param_axes: Sequence[int],
    tile_axis: int,
) -> tuple[Array, ...]:
    """Compute ``dx = a * dout - b * x + c`` from the sums of dout and dout * x, as the module's docstring explains.

    Given a mask (of the shape of dout), dout counts as 0 where it is False.
    """
    scalar_gamma = all(gamma.shape[axis] == 1 for axis in param_axes)
    other_axes = tuple(axis for axis in axes if axis not in param_axes)

    def tile(
        dx: Array, dout: Array, x: Array, mean: Array, inv_std: Array, gamma: Array, *mask: Array
    ) -> tuple[Array, Array]:
        if mask:
            write_where(mask[0], dout, dx)
            dout = dx
        near_zero = np.abs(mean) <= sqrt(_MAX_SQUARED_MEAN[x.dtype]) / inv_std
        offset, scale = mean, inv_std  # xhat = (x - offset) * scale
        if not (near_zero & (inv_std > _MIN_INV_STD)).all():
            x = subtract_mean(x, mean, inv_std, axes)  # type: ignore[assignment]
            x *= inv_std
            offset, scale = np.zeros_like(mean), np.ones_like(mean)
        sum_dout, sum_dout_x = sum_of_products(param_axes, dout), sum_of_products(param_axes, dout, x)
        if scalar_gamma:
            s1, s2 = ((total * gamma).sum(axis=other_axes, keepdims=True) for total in (sum_dout, sum_dout_x))
            a = inv_std * gamma
        else:
            dout, a = np.multiply(dout, gamma, out=dx), inv_std
            s1, s2 = sum_of_products(axes, dout), sum_of_products(axes, dout, x)
        mean_factor = inv_std / n
        b = mean_factor * (scale * (scale * (s2 - offset * s1)))  # scale**2 alone may overflow
        c = b * offset - mean_factor * s1
        _write_linear_combination(dx, c, (-b, x), (a, dout))
        return (sum_dout_x - offset * sum_dout) * scale, sum_dout

    dx, n = empty(x.shape, x.dtype), prod(x.shape[axis] for axis in axes)
    return dx, *map_tiles(dx, dout, x, mean, inv_std, gamma, *mask, function=tile, axis=tile_axis)


@accelerate("numpy")
def normalise_relu_backward(dout: Array, signs: Array, *arrays: Array, **options: Any) -> tuple[Array, ...]:
    """Apply the mask to each tile of dout, in the memory of dx."""
    return normalise_backward(dout, *arrays, signs, **options)


@accelerate("numpy")
def moments(x: Array) -> Array:
    """Compute both moments in one pass if every mean is near zero; the sums are in the dtype of `x`."""

    def tile(x: Array) -> tuple[Array]:
        mean = sum_of_products((0, 2), x) / n
        with np.errstate(over="ignore", invalid="ignore"):
            var = sum_of_products((0, 2), x, x) / n - mean * mean
        if not _is_near_zero(mean, var, x.dtype):
            mean = x.sum(axis=(0, 2), dtype=np.float64, keepdims=True) / n
            var = np.square(x - mean).sum(axis=(0, 2)) / n
        return (np.stack([mean.reshape(-1), var.reshape(-1)]).astype(np.float64),)

    n = x.shape[0] * x.shape[2]
    (result,) = map_tiles(x, function=tile, axis=1)
    return result


@accelerate("numpy")
def apply_moments(x: Array, moments: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array]:
    """Compute ``out = scale * x + shift`` if every mean is near zero."""
    mean, var = moments.reshape(2, 1, -1, 1)
    if not _is_near_zero(mean, var, x.dtype):
        slow: tuple[Array, Array, Array] = portable("apply_moments")(x, moments, gamma, beta, eps)
        return slow
    inv_std = 1 / np.sqrt(var + eps)
    scale, out = inv_std * gamma, empty(x.shape, x.dtype)
    _map_linear_combination(out, beta - mean * scale, (scale, x))
    return out, mean, inv_std.astype(x.dtype)


@accelerate("numpy")
def gradient_sums(dout: Array, x: Array, mean: Array, inv_std: Array) -> Array:
    """Derive the sum of ``dout * xhat`` from those of dout and ``dout * x`` if every mean is near zero."""
    if not _is_near_zero_of(mean, inv_std, x.dtype):
        slow: Array = portable("gradient_sums")(dout, x, mean, inv_std)
        return slow

    def tile(dout: Array, x: Array, mean: Array, inv_std: Array) -> tuple[Array]:
        total, product = sum_of_products((0, 2), dout), sum_of_products((0, 2), dout, x)
        sums = total, (product - mean * total) * inv_std
        return (np.stack([each.reshape(-1) for each in sums]).astype(np.float64),)

    (result,) = map_tiles(dout, x, mean, inv_std, function=tile, axis=1)
    return result


@accelerate("numpy")
def input_gradient(dout: Array, x: Array, mean: Array, inv_std: Array, gamma: Array, means: Array) -> Array:
    """Compute ``dx = a * dout - b * x + c``, as the module's docstring explains, if every mean is near zero."""
    if not _is_near_zero_of(mean, inv_std, x.dtype):
        slow: Array = portable("input_gradient")(dout, x, mean, inv_std, gamma, means)
        return slow
    mean_dout, mean_product = means.reshape(2, 1, -1, 1)
    a, dx = inv_std * gamma, empty(x.shape, x.dtype)
    b = a * inv_std * mean_product
    _map_linear_combination(dx, b * mean - a * mean_dout, (-b, x), (a, dout))
    return dx


def _is_near_zero(mean: Array, var: Array, dtype: np.dtype) -> bool:
    """Return whether sums of x lose at most one digit compared with sums of ``x - mean``, in every channel."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(((mean * mean <= _MAX_SQUARED_MEAN[dtype] * var) & (var < np.inf)).all())


def _is_near_zero_of(mean: Array, inv_std: Array, dtype: np.dtype) -> bool:
    """Return the same, given inverse standard deviations, which must not be tiny."""
    return bool(((np.abs(mean) * inv_std <= sqrt(_MAX_SQUARED_MEAN[dtype])) & (inv_std > _MIN_INV_STD)).all())


def _map_linear_combination(out: Array, shift: Array, *terms: tuple[Array, Array]) -> None:
    """Write ``shift + a * x + b * y + ...`` to `out` on all threads, with factors (1, C, 1) in any dtype."""

    def tile(out: Array, shift: Array, *terms: Array) -> tuple[Array, ...]:
        _write_linear_combination(out, shift, *zip(terms[::2], terms[1::2], strict=True))
        return ()

    arrays = [a.astype(out.dtype, copy=False) for a in (shift, *(a for term in terms for a in term))]
    map_tiles(out, *arrays, function=tile, axis=1)


def _write_linear_combination(
    out: Array, shift: Array, *terms: tuple[Array, Array], mask: Sequence[Array] = ()
) -> None:
    """Write ``shift + a * x + b * y + ...`` to `out` in chunks along the first axis, each computed in the cache.

    With a mask, write the positive part, and set the mask where it is positive. One of the arrays may be `out`.
    """
    rows = max(1, _CHUNK_BYTES * len(out) // out.nbytes)
    shape = out[:rows].shape
    total, term = scratch("total", shape, out.dtype), scratch("term", shape, out.dtype)
    (_, x), *others = terms
    shift, a, *factors = (_spread(k, factor, out) for k, factor in enumerate((shift, *(a for a, _ in terms))))
    with np.errstate():  # which also restores the buffer size
        np.setbufsize(_NUMPY_BUFFER)
        for start in range(0, len(out), rows):
            chunk = slice(start, start + rows)
            target = out[chunk]
            total, term = total[: len(target)], term[: len(target)]
            np.multiply(x[chunk], a[chunk] if len(a) > 1 else a, out=total)
            for b, (_, y) in zip(factors, others, strict=True):
                np.multiply(y[chunk], b[chunk] if len(b) > 1 else b, out=term)
                np.add(total, term, out=total)
            np.add(total, shift[chunk] if len(shift) > 1 else shift, out=total if mask else target)
            for positive in mask:
                np.clip(total, 0, np.inf, out=target)
                np.greater(target, 0, out=positive[chunk])


def _spread(k: int, factor: Array, out: Array) -> Array:
    """Return a factor that all rows of `out` share as a whole row, in scratch memory k; return others as they are.

    NumPy then computes a row in one loop: a loop for each channel takes twice as long for rows of 256 values.
    """
    if len(factor) > 1:
        return factor
    row = scratch(f"row {k}", (1, *out.shape[1:]), out.dtype)
    row[...] = factor
    return row

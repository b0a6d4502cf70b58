"""The affine (fully connected) layer."""

from math import prod
from typing import Any, NamedTuple

from xpconv.backend import Array
from xpconv.layers._checks import check_arrays, check_cache, check_gradient_shape, check_shape
from xpconv.ops.tiling import matmul, sum_rows

__all__ = ["AffineCache", "affine_backward", "affine_forward"]


class AffineCache(NamedTuple):
    """What the backward pass of an affine layer needs.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = affine_forward(np.ones((2, 3)), np.ones((3, 4)), None)
    >>> cache.w.shape, cache.has_bias
    ((3, 4), False)
    """

    x: Array
    w: Array
    has_bias: bool


def affine_forward(x: Array, w: Array, b: Array | None) -> tuple[Array, AffineCache]:
    """Compute ``out = x @ w + b``, with all axes of `x` but the first flattened.

    Parameters
    ----------
    x : array (N, ...)
        N samples of D features, where D is the product of all sizes but the first.
    w : array (D, M)
        Weights.
    b : array (M,) or None
        Bias.

    Returns
    -------
    out : array (N, M)
    cache : AffineCache
        For `affine_backward`.

    Raises
    ------
    ArgumentError
        If the shapes do not match.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((2, 3, 4)), np.ones((12, 5)), np.zeros(5)
    >>> affine_forward(x, w, b)[0].shape
    (2, 5)
    """
    xp = check_arrays(x=x, w=w, b=b)
    check_shape("x", x, ("N", "D", ...))
    check_shape("w", w, (prod(x.shape[1:]), "M"))
    if b is not None:
        check_shape("b", b, (w.shape[1],))
    out = matmul(xp.reshape(x, (x.shape[0], -1)), w)
    if b is not None:
        out += b
    return out, AffineCache(x, w, b is not None)


def affine_backward(
    dout: Array, cache: AffineCache, *, need_dx: bool = True, need_dw: bool = True, need_db: bool = True
) -> tuple[Any, Any, Any]:
    """Compute the gradients of an affine layer: ``dx = dout @ w.T``, ``dw = x.T @ dout``, ``db = sum(dout)``.

    Parameters
    ----------
    dout : array (N, M)
        Gradient of the loss with respect to the layer's output.
    cache : AffineCache
        From `affine_forward`.
    need_dx : bool
        Whether to compute `dx`; a network's first layer does not need it.
    need_dw, need_db : bool
        Whether to compute `dw` and `db`; frozen parameters do not need them.

    Returns
    -------
    dx : array (N, ...) or None
        In the shape of `x`; None if it is not needed, as the others.
    dw : array (D, M) or None
    db : array (M,) or None
        None also if the layer has no bias.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = affine_forward(np.ones((2, 3, 4)), np.ones((12, 5)), np.zeros(5))
    >>> dx, dw, db = affine_backward(np.ones((2, 5)), cache)
    >>> dx.shape, dw.shape, db.shape
    ((2, 3, 4), (12, 5), (5,))
    """
    check_cache(cache, AffineCache)
    x, w, has_bias = cache
    xp = check_arrays(dout=dout, x=x)
    check_gradient_shape(dout, (x.shape[0], w.shape[1]))
    dx = xp.reshape(matmul(dout, w.T), x.shape) if need_dx else None
    dw = matmul(xp.reshape(x, (x.shape[0], -1)).T, dout) if need_dw else None
    return dx, dw, sum_rows(dout) if has_bias and need_db else None

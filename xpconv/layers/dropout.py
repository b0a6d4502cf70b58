"""The dropout layer."""

from typing import NamedTuple

import array_api_compat

from xpconv._validation import check_count, check_flag, check_probability
from xpconv.backend import Array, array_namespace
from xpconv.layers._checks import check_arrays, check_cache, check_gradient_shape
from xpconv.ops.random_bits import keep_mask

__all__ = ["DropoutCache", "dropout_backward", "dropout_forward"]


class DropoutCache(NamedTuple):
    """What the backward pass of dropout needs; the mask is None outside training.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = dropout_forward(np.ones((2, 3)), keep=0.5, mask_key=0, train=True)
    >>> cache.keep, cache.mask.shape
    (0.5, (2, 3))
    """

    mask: Array | None
    keep: float
    shape: tuple[int, ...]


def dropout_forward(x: Array, *, keep: float, mask_key: int, train: bool) -> tuple[Array, DropoutCache]:
    """Keep each element with probability `keep`: ``out = x * mask / keep`` in training, ``out = x`` else.

    Parameters
    ----------
    x : array of any shape
    keep : float
        Probability that an element stays, above 0 and at most 1.
    mask_key : int
        The mask is a function of this number alone, the same on every backend; 0 to 2**32 - 1.
    train : bool
        Whether to drop anything.

    Returns
    -------
    out : array in the shape of `x`
    cache : DropoutCache
        For `dropout_backward`.

    Raises
    ------
    ArgumentError
        If `keep` is no such probability, or `mask_key` out of range.

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout", 2014 (here inverted).

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = dropout_forward(np.ones(8), keep=0.5, mask_key=1, train=True)
    >>> sorted(set(out.tolist()))
    [0.0, 2.0]
    """
    xp = check_arrays(x=x)
    keep = check_probability("keep", keep)
    check_flag("train", train)
    mask_key = check_count("mask_key", mask_key, 0, 2**32 - 1)
    shape = tuple(x.shape)
    if not train:
        return xp.asarray(x, copy=True), DropoutCache(None, keep, shape)
    mask = keep_mask(mask_key, shape, keep, like=x)
    return _drop(xp, x, mask, keep), DropoutCache(mask, keep, shape)


def dropout_backward(dout: Array, cache: DropoutCache) -> Array:
    """Compute ``dx = dout * mask / keep`` in training, ``dx = dout`` else.

    Parameters
    ----------
    dout : array in the shape of the layer's output
    cache : DropoutCache
        From `dropout_forward`.

    Returns
    -------
    dx : array in the shape of `dout`

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = dropout_forward(np.ones(8), keep=0.5, mask_key=1, train=True)
    >>> bool(np.all(dropout_backward(np.ones(8), cache) == out))
    True
    """
    check_cache(cache, DropoutCache)
    xp = check_arrays(dout=dout)
    array_namespace(dout=dout, mask=cache.mask)
    check_gradient_shape(dout, cache.shape)
    return xp.asarray(dout, copy=True) if cache.mask is None else _drop(xp, dout, cache.mask, cache.keep)


def _drop(xp: object, x: Array, mask: Array, keep: float) -> Array:
    zero = xp.zeros((), dtype=x.dtype, device=array_api_compat.device(x))  # type: ignore[attr-defined]
    return xp.where(mask, x / float(keep), zero)  # type: ignore[attr-defined]

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
    >>> out, cache = dropout_forward(np.ones((2, 3)), keep_prob=0.5, seed=0, train=True)
    >>> cache.keep_prob, cache.mask.shape
    (0.5, (2, 3))
    """

    mask: Array | None
    keep_prob: float
    shape: tuple[int, ...]


def dropout_forward(
    x: Array, *, keep_prob: float, seed: int, train: bool, first: int = 0
) -> tuple[Array, DropoutCache]:
    """Keep each element with probability `keep_prob`: in training ``out = x * mask / keep_prob``, else ``out = x``.

    Parameters
    ----------
    x : array of any shape
    keep_prob : float
        Probability of keeping an element, 2**-32 to 1.
    seed : int
        0 to 2**32 - 1. The same seed gives the same mask on every backend.
    train : bool
        Whether to drop anything.
    first : int
        Position of the first element of `x` in the whole minibatch, if `x` is a part of it. The mask is then that part
        of the whole minibatch's mask.

    Returns
    -------
    out : array in the shape of `x`
    cache : DropoutCache
        For `dropout_backward`.

    Raises
    ------
    ArgumentError
        If `keep_prob`, `seed` or `first` is out of range.

    References
    ----------
    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, "Dropout", 2014. This is inverted dropout, which
    scales in training instead of in evaluation.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = dropout_forward(np.ones(8), keep_prob=0.5, seed=1, train=True)
    >>> sorted(set(out.tolist()))
    [0.0, 2.0]
    """
    xp = check_arrays(x=x)
    keep_prob = check_probability("keep_prob", keep_prob)
    check_flag("train", train)
    seed, first = check_count("seed", seed, 0, 2**32 - 1), check_count("first", first, 0)
    shape = tuple(x.shape)
    if not train:
        return xp.asarray(x, copy=True), DropoutCache(None, keep_prob, shape)
    mask = keep_mask(seed, shape, keep_prob, like=x, first=first)
    return _drop(xp, x, mask, keep_prob), DropoutCache(mask, keep_prob, shape)


def dropout_backward(dout: Array, cache: DropoutCache) -> Array:
    """Compute ``dx = dout * mask / keep_prob`` in training, else ``dx = dout``.

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
    >>> out, cache = dropout_forward(np.ones(8), keep_prob=0.5, seed=1, train=True)
    >>> bool(np.all(dropout_backward(np.ones(8), cache) == out))
    True
    """
    check_cache(cache, DropoutCache)
    xp = check_arrays(dout=dout)
    array_namespace(dout=dout, mask=cache.mask)
    check_gradient_shape(dout, cache.shape)
    return xp.asarray(dout, copy=True) if cache.mask is None else _drop(xp, dout, cache.mask, cache.keep_prob)


def _drop(xp: object, x: Array, mask: Array, keep_prob: float) -> Array:
    zero = xp.zeros((), dtype=x.dtype, device=array_api_compat.device(x))  # type: ignore[attr-defined]
    return xp.where(mask, x / float(keep_prob), zero)  # type: ignore[attr-defined]

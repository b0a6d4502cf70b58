"""Sandwiches: layers that often follow each other, as one."""

from collections.abc import Sequence
from typing import Any

from xpconv.backend import Array
from xpconv.layers._check import check_cache
from xpconv.layers.activation import ReluCache, relu_backward, relu_forward
from xpconv.layers.affine import AffineCache, affine_backward, affine_forward
from xpconv.layers.conv import ConvCache, conv_backward, conv_forward
from xpconv.layers.norm import BatchNormCache, Running, batchnorm_backward, batchnorm_forward
from xpconv.layers.pool import MaxPoolCache, max_pool_backward, max_pool_forward

__all__ = [
    "affine_bn_relu_backward",
    "affine_bn_relu_forward",
    "affine_relu_backward",
    "affine_relu_forward",
    "conv_bn_relu_backward",
    "conv_bn_relu_forward",
    "conv_relu_backward",
    "conv_relu_forward",
    "conv_relu_pool_backward",
    "conv_relu_pool_forward",
]

Size = int | Sequence[int]
Cache = tuple[Any, ...]


def affine_relu_forward(x: Array, w: Array, b: Array | None) -> tuple[Array, Cache]:
    """Compute ``relu(affine(x))``.

    Parameters
    ----------
    x, w, b : array
        As for `affine_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = affine_relu_forward(np.ones((2, 3)), -np.ones((3, 4)), np.zeros(4))
    >>> float(out.max())
    0.0
    """
    out, affine = affine_forward(x, w, b)
    out, relu = relu_forward(out)
    return out, (affine, relu)


def affine_relu_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Return dx, dw, db of `affine_relu_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = affine_relu_forward(np.ones((2, 3)), np.ones((3, 4)), np.zeros(4))
    >>> [gradient.shape for gradient in affine_relu_backward(np.ones_like(out), cache)]
    [(2, 3), (3, 4), (4,)]
    """
    check_cache(cache, AffineCache, ReluCache)
    affine, relu = cache
    return affine_backward(relu_backward(dout, relu), affine)


def affine_bn_relu_forward(x: Array, w: Array, b: Array | None, gamma: Array, beta: Array,
                           running: Running | None = None, *, train: bool, momentum: float = 0.9,
                           eps: float = 1e-5) -> tuple[Array, Cache]:
    """Compute ``relu(batchnorm(affine(x)))``; the new running averages are ``cache[1].running``.

    Parameters
    ----------
    x, w, b : array
        As for `affine_forward`.
    gamma, beta, running, train, momentum, eps
        As for `batchnorm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.eye(3), np.ones((3, 4)), np.zeros(4)
    >>> out, cache = affine_bn_relu_forward(x, w, b, np.ones(4), np.zeros(4), train=True)
    >>> cache[1].running.mean.shape
    (4,)
    """
    out, affine = affine_forward(x, w, b)
    out, norm = batchnorm_forward(out, gamma, beta, running, train=train, momentum=momentum, eps=eps)
    out, relu = relu_forward(out)
    return out, (affine, norm, relu)


def affine_bn_relu_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None, Array, Array]:
    """Return dx, dw, db, dgamma, dbeta of `affine_bn_relu_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.eye(3), np.ones((3, 4)), np.zeros(4)
    >>> out, cache = affine_bn_relu_forward(x, w, b, np.ones(4), np.zeros(4), train=True)
    >>> [gradient.shape for gradient in affine_bn_relu_backward(np.ones_like(out), cache)]
    [(3, 3), (3, 4), (4,), (4,), (4,)]
    """
    check_cache(cache, AffineCache, BatchNormCache, ReluCache)
    affine, norm, relu = cache
    dout, dgamma, dbeta = batchnorm_backward(relu_backward(dout, relu), norm)
    return *affine_backward(dout, affine), dgamma, dbeta


def conv_relu_forward(x: Array, w: Array, b: Array | None, *, stride: Size = 1, padding: Size = 0
                      ) -> tuple[Array, Cache]:
    """Compute ``relu(conv(x))``.

    Parameters
    ----------
    x, w, b, stride, padding
        As for `conv_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> conv_relu_forward(np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4), padding=1)[0].shape
    (1, 4, 8, 8)
    """
    out, conv = conv_forward(x, w, b, stride=stride, padding=padding)
    out, relu = relu_forward(out)
    return out, (conv, relu)


def conv_relu_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Return dx, dw, db of `conv_relu_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = conv_relu_forward(np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4), padding=1)
    >>> [gradient.shape for gradient in conv_relu_backward(np.ones_like(out), cache)]
    [(1, 3, 8, 8), (4, 3, 3, 3), (4,)]
    """
    check_cache(cache, ConvCache, ReluCache)
    conv, relu = cache
    return conv_backward(relu_backward(dout, relu), conv)


def conv_bn_relu_forward(x: Array, w: Array, b: Array | None, gamma: Array, beta: Array,
                         running: Running | None = None, *, train: bool, stride: Size = 1, padding: Size = 0,
                         momentum: float = 0.9, eps: float = 1e-5) -> tuple[Array, Cache]:
    """Compute ``relu(batchnorm(conv(x)))``; the new running averages are ``cache[1].running``.

    Parameters
    ----------
    x, w, b, stride, padding
        As for `conv_forward`.
    gamma, beta, running, train, momentum, eps
        As for `batchnorm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w = np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3))
    >>> out, cache = conv_bn_relu_forward(x, w, None, np.ones(4), np.zeros(4), train=True, padding=1)
    >>> out.shape
    (2, 4, 8, 8)
    """
    out, conv = conv_forward(x, w, b, stride=stride, padding=padding)
    out, norm = batchnorm_forward(out, gamma, beta, running, train=train, momentum=momentum, eps=eps)
    out, relu = relu_forward(out)
    return out, (conv, norm, relu)


def conv_bn_relu_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None, Array, Array]:
    """Return dx, dw, db, dgamma, dbeta of `conv_bn_relu_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4)
    >>> out, cache = conv_bn_relu_forward(x, w, b, np.ones(4), np.zeros(4), train=True)
    >>> [gradient.shape for gradient in conv_bn_relu_backward(np.ones_like(out), cache)]
    [(2, 3, 8, 8), (4, 3, 3, 3), (4,), (4,), (4,)]
    """
    check_cache(cache, ConvCache, BatchNormCache, ReluCache)
    conv, norm, relu = cache
    dout, dgamma, dbeta = batchnorm_backward(relu_backward(dout, relu), norm)
    return *conv_backward(dout, conv), dgamma, dbeta


def conv_relu_pool_forward(x: Array, w: Array, b: Array | None, *, stride: Size = 1, padding: Size = 0,
                           pool_size: Size = 2, pool_stride: Size | None = None) -> tuple[Array, Cache]:
    """Compute ``max_pool(relu(conv(x)))``.

    Parameters
    ----------
    x, w, b, stride, padding
        As for `conv_forward`.
    pool_size, pool_stride
        ``size`` and ``stride`` of `max_pool_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> conv_relu_pool_forward(np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4), padding=1)[0].shape
    (1, 4, 4, 4)
    """
    out, conv = conv_forward(x, w, b, stride=stride, padding=padding)
    out, relu = relu_forward(out)
    out, pool = max_pool_forward(out, size=pool_size, stride=pool_stride)
    return out, (conv, relu, pool)


def conv_relu_pool_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array | None]:
    """Return dx, dw, db of `conv_relu_pool_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = conv_relu_pool_forward(np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4))
    >>> [gradient.shape for gradient in conv_relu_pool_backward(np.ones_like(out), cache)]
    [(1, 3, 8, 8), (4, 3, 3, 3), (4,)]
    """
    check_cache(cache, ConvCache, ReluCache, MaxPoolCache)
    conv, relu, pool = cache
    return conv_backward(relu_backward(max_pool_backward(dout, pool), relu), conv)

"""The assignment's combinations of layers; it re-exports `layers` and `fast_layers`."""

from collections.abc import MutableMapping
from typing import Any

from xpconv.backend import Array
from xpconv.cs231n import fast_layers, layers
from xpconv.cs231n._norms import Options
from xpconv.cs231n.fast_layers import *  # noqa: F403
from xpconv.cs231n.layers import *  # noqa: F403

__all__ = [
    "affine_bn_relu_backward",
    "affine_bn_relu_forward",
    "affine_ln_relu_backward",
    "affine_ln_relu_forward",
    "affine_relu_backward",
    "affine_relu_forward",
    "conv_bn_relu_backward",
    "conv_bn_relu_forward",
    "conv_relu_backward",
    "conv_relu_forward",
    "conv_relu_pool_backward",
    "conv_relu_pool_forward",
]
__all__ += layers.__all__
__all__ += fast_layers.__all__

Cache = tuple[Any, ...]
Gradients3 = tuple[Array, Array, Array | None]
Gradients5 = tuple[Array, Array, Array | None, Array, Array]


def affine_relu_forward(x: Array, w: Array, b: Array) -> tuple[Array, Cache]:
    """Compute ``relu(affine(x))``.

    Examples
    --------
    >>> import numpy as np
    >>> affine_relu_forward(np.ones((2, 3)), -np.ones((3, 1)), np.zeros(1))[0].tolist()
    [[0.0], [0.0]]
    """
    out, affine_cache = layers.affine_forward(x, w, b)
    out, relu_cache = layers.relu_forward(out)
    return out, (affine_cache, relu_cache)


def affine_relu_backward(dout: Array, cache: Cache) -> Gradients3:
    """Return dx, dw, db of `affine_relu_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> out, cache = affine_relu_forward(np.ones((2, 3)), np.ones((3, 1)), np.zeros(1))
    >>> [gradient.shape for gradient in affine_relu_backward(out, cache)]
    [(2, 3), (3, 1), (1,)]
    """
    affine_cache, relu_cache = cache
    return layers.affine_backward(layers.relu_backward(dout, relu_cache), affine_cache)


def affine_bn_relu_forward(
    x: Array, w: Array, b: Array, gamma: Array, beta: Array, bn_param: MutableMapping[str, Any]
) -> tuple[Array, Cache]:
    """Compute ``relu(batchnorm(affine(x)))``; `bn_param` as for `layers.batchnorm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b, gamma, beta = (
    ...     np.eye(3),
    ...     np.ones((3, 4)),
    ...     np.zeros(4),
    ...     np.ones(4),
    ...     np.zeros(4),
    ... )
    >>> out, cache = affine_bn_relu_forward(x, w, b, gamma, beta, {"mode": "train"})
    >>> out.shape
    (3, 4)
    """
    out, affine_cache = layers.affine_forward(x, w, b)
    out, bn_cache = layers.batchnorm_forward(out, gamma, beta, bn_param)
    out, relu_cache = layers.relu_forward(out)
    return out, (affine_cache, bn_cache, relu_cache)


def affine_bn_relu_backward(dout: Array, cache: Cache) -> Gradients5:
    """Return dx, dw, db, dgamma, dbeta of `affine_bn_relu_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b, gamma, beta = (
    ...     np.eye(3),
    ...     np.ones((3, 4)),
    ...     np.zeros(4),
    ...     np.ones(4),
    ...     np.zeros(4),
    ... )
    >>> out, cache = affine_bn_relu_forward(x, w, b, gamma, beta, {"mode": "train"})
    >>> [gradient.shape for gradient in affine_bn_relu_backward(out, cache)]
    [(3, 3), (3, 4), (4,), (4,), (4,)]
    """
    affine_cache, bn_cache, relu_cache = cache
    dout, dgamma, dbeta = layers.batchnorm_backward_alt(layers.relu_backward(dout, relu_cache), bn_cache)
    return *layers.affine_backward(dout, affine_cache), dgamma, dbeta


def affine_ln_relu_forward(
    x: Array, w: Array, b: Array, gamma: Array, beta: Array, ln_param: Options
) -> tuple[Array, Cache]:
    """Compute ``relu(layernorm(affine(x)))``; `ln_param` as for `layers.layernorm_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b, gamma, beta = (
    ...     np.eye(3),
    ...     np.ones((3, 4)),
    ...     np.zeros(4),
    ...     np.ones(4),
    ...     np.zeros(4),
    ... )
    >>> out, cache = affine_ln_relu_forward(x, w, b, gamma, beta, {})
    >>> out.shape
    (3, 4)
    """
    out, affine_cache = layers.affine_forward(x, w, b)
    out, ln_cache = layers.layernorm_forward(out, gamma, beta, ln_param)
    out, relu_cache = layers.relu_forward(out)
    return out, (affine_cache, ln_cache, relu_cache)


def affine_ln_relu_backward(dout: Array, cache: Cache) -> Gradients5:
    """Return dx, dw, db, dgamma, dbeta of `affine_ln_relu_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b, gamma, beta = (
    ...     np.eye(3),
    ...     np.ones((3, 4)),
    ...     np.zeros(4),
    ...     np.ones(4),
    ...     np.zeros(4),
    ... )
    >>> out, cache = affine_ln_relu_forward(x, w, b, gamma, beta, {})
    >>> [gradient.shape for gradient in affine_ln_relu_backward(out, cache)]
    [(3, 3), (3, 4), (4,), (4,), (4,)]
    """
    affine_cache, ln_cache, relu_cache = cache
    dout, dgamma, dbeta = layers.layernorm_backward(layers.relu_backward(dout, relu_cache), ln_cache)
    return *layers.affine_backward(dout, affine_cache), dgamma, dbeta


def conv_relu_forward(x: Array, w: Array, b: Array, conv_param: Options) -> tuple[Array, Cache]:
    """Compute ``relu(conv(x))``; `conv_param` as for `layers.conv_forward_naive`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4)
    >>> out, cache = conv_relu_forward(x, w, b, {"stride": 1, "pad": 1})
    >>> out.shape
    (1, 4, 8, 8)
    """
    out, conv_cache = fast_layers.conv_forward_fast(x, w, b, conv_param)
    out, relu_cache = layers.relu_forward(out)
    return out, (conv_cache, relu_cache)


def conv_relu_backward(dout: Array, cache: Cache) -> Gradients3:
    """Return dx, dw, db of `conv_relu_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4)
    >>> out, cache = conv_relu_forward(x, w, b, {"stride": 1, "pad": 1})
    >>> [gradient.shape for gradient in conv_relu_backward(out, cache)]
    [(1, 3, 8, 8), (4, 3, 3, 3), (4,)]
    """
    conv_cache, relu_cache = cache
    return fast_layers.conv_backward_fast(layers.relu_backward(dout, relu_cache), conv_cache)


def conv_bn_relu_forward(
    x: Array, w: Array, b: Array, gamma: Array, beta: Array, conv_param: Options, bn_param: MutableMapping[str, Any]
) -> tuple[Array, Cache]:
    """Compute ``relu(spatial_batchnorm(conv(x)))``.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b, gamma, beta = (
    ...     np.ones((2, 3, 8, 8)),
    ...     np.ones((4, 3, 3, 3)),
    ...     np.zeros(4),
    ...     np.ones(4),
    ...     np.zeros(4),
    ... )
    >>> out, cache = conv_bn_relu_forward(
    ...     x, w, b, gamma, beta, {"stride": 1, "pad": 1}, {"mode": "train"}
    ... )
    >>> out.shape
    (2, 4, 8, 8)
    """
    out, conv_cache = fast_layers.conv_forward_fast(x, w, b, conv_param)
    out, bn_cache = layers.spatial_batchnorm_forward(out, gamma, beta, bn_param)
    out, relu_cache = layers.relu_forward(out)
    return out, (conv_cache, bn_cache, relu_cache)


def conv_bn_relu_backward(dout: Array, cache: Cache) -> Gradients5:
    """Return dx, dw, db, dgamma, dbeta of `conv_bn_relu_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b, gamma, beta = (
    ...     np.ones((2, 3, 8, 8)),
    ...     np.ones((4, 3, 3, 3)),
    ...     np.zeros(4),
    ...     np.ones(4),
    ...     np.zeros(4),
    ... )
    >>> out, cache = conv_bn_relu_forward(
    ...     x, w, b, gamma, beta, {"stride": 1, "pad": 1}, {"mode": "train"}
    ... )
    >>> [gradient.shape for gradient in conv_bn_relu_backward(out, cache)]
    [(2, 3, 8, 8), (4, 3, 3, 3), (4,), (4,), (4,)]
    """
    conv_cache, bn_cache, relu_cache = cache
    dout, dgamma, dbeta = layers.spatial_batchnorm_backward(layers.relu_backward(dout, relu_cache), bn_cache)
    return *fast_layers.conv_backward_fast(dout, conv_cache), dgamma, dbeta


def conv_relu_pool_forward(
    x: Array, w: Array, b: Array, conv_param: Options, pool_param: Options
) -> tuple[Array, Cache]:
    """Compute ``max_pool(relu(conv(x)))``; `pool_param` as for `layers.max_pool_forward_naive`.

    Examples
    --------
    >>> import numpy as np
    >>> conv_param = {"stride": 1, "pad": 1}
    >>> pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
    >>> x, w, b = np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4)
    >>> conv_relu_pool_forward(x, w, b, conv_param, pool_param)[0].shape
    (1, 4, 4, 4)
    """
    out, conv_cache = fast_layers.conv_forward_fast(x, w, b, conv_param)
    out, relu_cache = layers.relu_forward(out)
    out, pool_cache = fast_layers.max_pool_forward_fast(out, pool_param)
    return out, (conv_cache, relu_cache, pool_cache)


def conv_relu_pool_backward(dout: Array, cache: Cache) -> Gradients3:
    """Return dx, dw, db of `conv_relu_pool_forward`.

    Examples
    --------
    >>> import numpy as np
    >>> x, w, b = np.ones((1, 3, 8, 8)), np.ones((4, 3, 3, 3)), np.zeros(4)
    >>> pool_param = {"pool_height": 2, "pool_width": 2, "stride": 2}
    >>> out, cache = conv_relu_pool_forward(x, w, b, {"stride": 1, "pad": 1}, pool_param)
    >>> [gradient.shape for gradient in conv_relu_pool_backward(out, cache)]
    [(1, 3, 8, 8), (4, 3, 3, 3), (4,)]
    """
    conv_cache, relu_cache, pool_cache = cache
    dout = layers.relu_backward(fast_layers.max_pool_backward_fast(dout, pool_cache), relu_cache)
    return fast_layers.conv_backward_fast(dout, conv_cache)

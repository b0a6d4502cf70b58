"""Filters that whiten small patches of images."""

from typing import Any

import array_api_compat

from xpconv._validation import check_nonnegative, check_pair
from xpconv.backend import Array, array_namespace, backend_of, to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.ops.tiling import matmul

__all__ = ["whitening_filters"]

_IMAGES_AT_ONCE = 1000


def whitening_filters(x: Array, kernel_size: int | tuple[int, int] = 2, *, eps: float = 5e-4) -> Array:
    """Return filters that whiten patches of images: their outputs are uncorrelated and have nearly equal size.

    With ``C = mean(patch @ patch.T)`` over all patches of `kernel_size`, and the eigenvalues ``l`` and eigenvectors
    ``v`` of C, the filters are ``v / sqrt(l + eps)``, from the largest eigenvalue to the smallest, and then their
    negatives, since a ReLU or GELU keeps only one side of each. The weighted sum ``1 v[0] + 2 v[1] + ...`` is positive.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images of a floating-point dtype, preprocessed.
    kernel_size : int or (int, int)
        Height and width of the patches.
    eps : float
        Added to the eigenvalues, so that directions with small ones, which are mostly noise, are amplified less.

    Returns
    -------
    array (2 * C * KH * KW, C, KH, KW)
        With the dtype and the device of `x`.

    Raises
    ------
    ArgumentError
        If `x` is not a batch of images, they are smaller than a patch, or have NaN or infinite values; or if `eps` is 0
        and the patches do not span their space.
    ArgumentTypeError
        If `x` is not an array of a floating-point dtype.

    References
    ----------
    Coates and Ng, "Learning Feature Representations with K-means", 2012; Page, "How to Train Your ResNet 8: Bag of
    Tricks", 2019.

    Examples
    --------
    >>> import numpy as np
    >>> whitening_filters(np.array([[[[4.0, 0.0, 2.0]]]]), (1, 2), eps=0)[:, 0, 0]
    array([[ 0.35355339,  0.        ],
           [ 0.        ,  0.70710678],
           [-0.35355339, -0.        ],
           [-0.        , -0.70710678]])
    """
    height, width = check_pair("kernel_size", kernel_size, 1)
    eps = check_nonnegative("eps", eps)
    xp = _check_floating(x)
    if x.ndim != 4 or 0 in x.shape or x.shape[2] < height or x.shape[3] < width:
        raise ArgumentError(
            f"x has shape {tuple(x.shape)}; expected images (N, C, H, W) of at least {height} by {width} pixels"
        )
    N, C, H, W = x.shape
    starts = range(0, N, _IMAGES_AT_ONCE)
    sums = [_moments(x[start : min(start + _IMAGES_AT_ONCE, N), ...], height, width) for start in starts]
    moments = sum(sums) / (N * (H - height + 1) * (W - width + 1))
    host = array_api_compat.array_namespace(moments)  # Small matrices are faster there.
    if not host.all(host.isfinite(moments)):
        raise ArgumentError(
            "x has values that are NaN, infinite, or too large to be squared; expected finite images: remove or repair "
            "such images first"
        )
    eigenvalues, eigenvectors = host.linalg.eigh(moments)
    if eigenvalues[0] + eps <= 0:  # rounding can make an eigenvalue of 0 negative
        raise ArgumentError(
            f"eps is {eps}, but the patches of x do not span their space (the least eigenvalue is "
            f"{eigenvalues[0]:.3g}): take a larger eps, such as 5e-4, or more images"
        )
    # The sign of an eigenvector is arbitrary; this choice of it does not depend on rounding.
    eigenvectors *= host.where(host.arange(1.0, eigenvectors.shape[0] + 1) @ eigenvectors < 0, -1.0, 1.0)
    filters = (eigenvectors / (eigenvalues + eps) ** 0.5).T[::-1].reshape(-1, C, height, width)
    half = xp.astype(backend_of(x).asarray(filters), x.dtype)
    return xp.concat([half, -half])


def _check_floating(x: Array) -> Any:
    """Raise ArgumentTypeError unless `x` is an array of a floating-point dtype; return its namespace."""
    if x is None:
        raise ArgumentTypeError("x is None; expected images (N, C, H, W)")
    xp = array_namespace(x=x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise ArgumentTypeError(f"x has dtype {x.dtype}; expected a floating-point dtype: preprocess the images first")
    return xp


def _moments(x: Array, height: int, width: int) -> Array:
    """Return the sum of ``patch @ patch.T`` over all patches of images, in host memory in float64."""
    xp, (_, C, H, W) = array_api_compat.array_namespace(x), x.shape
    if x.dtype not in (xp.float32, xp.float64):  # sums would overflow
        x = xp.astype(x, xp.float32)
    rows, columns = H - height + 1, W - width + 1
    values = [
        xp.reshape(xp.asarray(x[:, c, i : i + rows, j : j + columns], copy=True), (-1,))
        for c in range(C)
        for i in range(height)
        for j in range(width)
    ]
    patches = xp.stack(values)
    return to_host(matmul(patches, patches.T)).astype(float)

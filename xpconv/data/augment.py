"""Augmentation: transform each minibatch at random, on its device.

A seed from the host and the number of the image in its minibatch determine each random choice, so the results have the
same bits on every backend.
"""

import re
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from xpconv._deferred import derive
from xpconv._validation import check_count, check_fraction, check_nonnegative
from xpconv.backend import Array, array_namespace, backend_of, on_host, to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.ops.random_bits import hash_numbers, keep_mask, random_integers
from xpconv.ops.windows import pad
from xpconv.random import split_seed

__all__ = [
    "AUGMENTATIONS",
    "Minibatch",
    "MinibatchAugmentation",
    "alternating_flip",
    "cutout",
    "mirroring_words",
    "mixup",
    "parse_augmentation",
    "random_affine",
    "random_brightness",
    "random_contrast",
    "random_crop",
    "random_flip",
]


class Minibatch(NamedTuple):
    """The argument and the result of an augmentation of whole minibatches.

    Attributes
    ----------
    X : array (N, C, H, W)
        Images, on the model's device.
    y : array (N,) of integers, or (N, C)
        Labels, or the probabilities of each class.
    rows : numpy.ndarray (N,) of int64
        The numbers of the images in the data.
    epoch : int
        Number of completed epochs.
    num_classes : int, optional
        Number of the model's classes; None if the model has no `num_classes`.

    Examples
    --------
    >>> minibatch = Minibatch(
    ...     np.zeros((2, 3, 8, 8)),
    ...     np.array([0, 1]),
    ...     np.array([7, 3]),
    ...     epoch=0,
    ...     num_classes=2,
    ... )
    >>> minibatch._replace(X=minibatch.X + 1).X.mean()
    np.float64(1.0)
    """

    X: Array
    y: Array
    rows: np.ndarray
    epoch: int
    num_classes: int | None = None


def random_crop(x: Array, padding: int, seed: int, *, border: str = "zeros") -> Array:
    """Pad each image and crop it to its size at a random position.

    ``out[n, :, i, j] = padded[n, :, i + top[n], j + left[n]]``, with top and left from 0 to ``2 * padding``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images of any dtype that the library can index; torch cannot index uint16, uint32 and uint64.
    padding : int
        The largest shift in each direction, in pixels, 0 or more; with ``border="reflect"`` less than H and W.
    seed : int
        From `xpconv.random.draw_seed`; it determines the positions; they are the same on every backend.
    border : {"zeros", "reflect"}
        What surrounds the image: zeros, or its mirror image without repeating the outermost pixels.

    Returns
    -------
    array (N, C, H, W)
        With the dtype and the device of `x`.

    Raises
    ------
    ArgumentError
        If `x` is not a batch of images, `padding` is negative or too large for reflection, or `border` is unknown.
    ArgumentTypeError
        If `x` is not an array, or `padding` or `seed` is not an integer.

    References
    ----------
    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016, section 4.2 (padding 4).

    Examples
    --------
    >>> x = np.arange(1, 7).reshape(2, 1, 1, 3)
    >>> random_crop(x, 1, seed=10)[:, 0, 0]
    array([[2, 3, 0],
           [0, 4, 5]])
    >>> random_crop(np.tile(x, (1, 1, 2, 1)), 1, seed=10, border="reflect")[:, 0, 0]
    array([[2, 3, 2],
           [5, 4, 5]])
    """
    _check_images(x)
    padding = check_count("padding", padding, 0)
    if border not in ("zeros", "reflect"):
        raise ArgumentError(f"border is {border!r}; expected zeros or reflect")
    if border == "reflect" and padding >= min(x.shape[2:]):
        raise ArgumentError(
            f"padding is {padding}, but images of shape {tuple(x.shape[2:])} can be reflected by at most "
            f"{min(x.shape[2:]) - 1} pixels: take a smaller padding or larger images"
        )
    xp = array_api_compat.array_namespace(x)
    corners = random_integers(_check_seed(seed), (2, x.shape[0], 1, 1, 1), 2 * padding + 1, like=x)
    top, left = corners[0, ...], corners[1, ...]
    n, c, i, j = _axes(x)
    if border == "zeros":
        x, shape = pad(x, ((padding, padding), (padding, padding))), x.shape
        i, j = i + top, j + left
    else:
        shape = x.shape
        i, j = _reflected(i + top - padding, shape[2], xp), _reflected(j + left - padding, shape[3], xp)
    # The positions of x[n, c, i, j] in the flattened array; `take` has one-dimensional indices.
    _, C, height, width = x.shape
    pixels = ((n * C + c) * height + i) * width + j
    return xp.reshape(xp.take(xp.reshape(x, (-1,)), xp.reshape(pixels, (-1,)), axis=0), shape)


def _axes(x: Array) -> tuple[Array, ...]:
    """Return the indices along each axis of images, in shapes that broadcast to (N, C, H, W)."""
    xp, device = array_api_compat.array_namespace(x), array_api_compat.device(x)
    return tuple(
        xp.reshape(xp.arange(size, dtype=xp.int64, device=device), (1,) * axis + (size,) + (1,) * (3 - axis))
        for axis, size in enumerate(x.shape)
    )


def _reflected(index: Array, size: int, xp: Any) -> Array:
    """Return the pixels that indices from ``1 - size`` to ``2 * size - 2`` show if the border is a mirror."""
    index = xp.abs(index)
    return xp.where(index < size, index, 2 * (size - 1) - index)


def random_affine(x: Array, strength: float, seed: int, *, shift: float = 0.125) -> Array:
    """Turn, slant, stretch and shift each image at random.

    The pixel at position p, counted from the centre, gets the image's value at ``(I + R) p + t``, interpolated between
    the four pixels around that position; R is a matrix (2, 2) of random numbers from ``-strength`` to ``strength``, and
    t a random shift. Outside, the image is 0.

    Parameters
    ----------
    x : array (N, C, H, W)
        uint8 or floating-point images.
    strength : float
        From 0 to 1; 0.25 turns by up to 14 degrees, slants by as much, and stretches height and width by a quarter.
    seed : int
        From `xpconv.random.draw_seed`; it determines R and t; they are the same on every backend.
    shift : float
        The largest shift in each direction, as a fraction of height and width, 0 to 1.

    Returns
    -------
    array (N, C, H, W)
        With the dtype and the device of `x`; uint8 images are rounded.

    Raises
    ------
    ArgumentError
        If `x` is not a batch of images, or `strength` or `shift` is not from 0 to 1.
    ArgumentTypeError
        If `x` has another dtype, `strength` or `shift` is not a number, or `seed` is not an integer.

    Examples
    --------
    >>> x = np.zeros((1, 1, 4, 4), np.uint8)
    >>> x[..., 1:3] = 100
    >>> random_affine(x, 0.25, seed=0)[0, 0]
    array([[  0,  53,  78,   1],
           [  0,  69, 100,   0],
           [  0,  85,  92,   0],
           [  0, 100,  76,   0]], dtype=uint8)
    """
    _check_images(x)
    strength, shift = check_fraction("strength", strength), check_fraction("shift", shift)
    return _computed(x, lambda a: _interpolated(a, strength, shift, seed))


def _interpolated(x: Array, strength: float, shift: float, seed: int) -> Array:
    """Return floating-point images as `random_affine` changes them."""
    xp, (N, C, height, width) = array_api_compat.array_namespace(x), x.shape
    steps = random_integers(_check_seed(seed), (6, N, 1, 1, 1), 2**16, like=x)
    factors = xp.astype(steps, x.dtype) * 2.0**-15 - 1  # -1 to 1
    n, c, i, j = _axes(x)
    y_out, x_out = (xp.astype(a, x.dtype) - (size - 1) / 2 for a, size in ((i, height), (j, width)))
    across, down = (factors[k, ...] * strength for k in (1, 2))
    top = y_out * (1 + factors[0, ...] * strength) + x_out * across + factors[4, ...] * (shift * height)
    left = x_out * (1 + factors[3, ...] * strength) + y_out * down + factors[5, ...] * (shift * width)
    top, left = top + (height + 1) / 2, left + (width + 1) / 2  # in an image with a border of one pixel
    top, left = _clipped(top, 0, height + 1), _clipped(left, 0, width + 1)
    padded = xp.reshape(pad(x, ((1, 2), (1, 2))), (-1,))
    first_row, first_column = xp.floor(top), xp.floor(left)
    below, right = top - first_row, left - first_column
    row, column = (xp.astype(a, xp.int64) for a in (first_row, first_column))
    pixels = ((n * C + c) * (height + 3) + row) * (width + 3) + column

    def at(offset: int) -> Array:
        taken = xp.take(padded, xp.reshape(pixels + offset, (-1,)), axis=0)
        return xp.reshape(taken, (N, C, height, width))

    upper = at(0) * (1 - right) + at(1) * right
    lower = at(width + 3) * (1 - right) + at(width + 4) * right
    return upper * (1 - below) + lower * below


def random_flip(x: Array, seed: int) -> Array:
    """Exchange left and right in each image with probability 1/2.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images of any dtype that the library can index; torch cannot index uint16, uint32 and uint64.
    seed : int
        From `xpconv.random.draw_seed`; it determines which images are flipped; they are the same on every backend.

    Returns
    -------
    array (N, C, H, W)
        With the dtype and the device of `x`.

    Raises
    ------
    ArgumentError
        If `x` is not a batch of images.

    Examples
    --------
    >>> random_flip(np.arange(6).reshape(2, 1, 1, 3), seed=6)[:, 0, 0]
    array([[0, 1, 2],
           [5, 4, 3]])
    """
    _check_images(x)
    xp = array_api_compat.array_namespace(x)
    return xp.where(keep_mask(_check_seed(seed), (x.shape[0], 1, 1, 1), 0.5, like=x), x, xp.flip(x, axis=-1))


def alternating_flip(x: Array, rows: np.ndarray, epoch: int, seed: int = 0) -> Array:
    """Exchange left and right in half of the images in the first epoch, and in the other half in the next, in turn.

    In two epochs, the net sees each image and its mirror image once. This needs epochs that draw each image once
    (``sampling="epoch"`` of a Solver).

    Parameters
    ----------
    x : array (N, C, H, W)
        As for `random_flip`.
    rows : numpy.ndarray (N,) of int64
        The numbers of the images in the data.
    epoch : int
        Number of completed epochs.
    seed : int
        0 to 2**32 - 1, the same in all epochs; it determines which images are flipped in the first one.

    Returns
    -------
    array (N, C, H, W)
        With the dtype and the device of `x`.

    Raises
    ------
    ArgumentError
        If `x` is not a batch of images, or `rows` does not have one number for each.

    References
    ----------
    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, section 3.6.

    Examples
    --------
    >>> x, rows = np.arange(6).reshape(2, 1, 1, 3), np.array([1, 2])
    >>> alternating_flip(x, rows, epoch=0)[:, 0, 0]
    array([[0, 1, 2],
           [5, 4, 3]])
    >>> alternating_flip(x, rows, epoch=1)[:, 0, 0]
    array([[2, 1, 0],
           [3, 4, 5]])
    """
    _check_images(x)
    rows = rows if hasattr(rows, "shape") else np.asarray(rows)
    if not array_api_compat.array_namespace(rows).isdtype(rows.dtype, "integral"):
        raise ArgumentTypeError(
            f"rows has dtype {rows.dtype}; expected integers, the numbers of the images in the data"
        )
    if tuple(rows.shape) != (x.shape[0],):
        raise ArgumentError(
            f"rows has shape {tuple(rows.shape)}; expected ({x.shape[0]},), one number for each image of x"
        )
    epoch = check_count("epoch", epoch, 0)
    xp = array_api_compat.array_namespace(x)
    numbers = backend_of(x).asarray(rows, "int64")
    kept = (hash_numbers(_check_seed(seed), numbers) >> 31) == epoch % 2
    return xp.where(xp.reshape(kept, (-1, 1, 1, 1)), x, xp.flip(x, axis=-1))


def cutout(x: Array, size: int, seed: int) -> Array:
    """Cover a square of each image, centred on a random pixel, with the mean of each channel of the image.

    Parts of the square may lie outside the image.

    Parameters
    ----------
    x : array (N, C, H, W)
        uint8 or floating-point images.
    size : int
        The side of the square in pixels, 1 or more.
    seed : int
        From `xpconv.random.draw_seed`; it determines the centres; they are the same on every backend.

    Returns
    -------
    array (N, C, H, W)
        With the dtype and the device of `x`; means of uint8 images are rounded.

    Raises
    ------
    ArgumentError
        If `x` is not a batch of images, or `size` is below 1.
    ArgumentTypeError
        If `size` is not an integer, or `x` has another dtype.

    References
    ----------
    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017. They cover with
    0 after normalisation, the mean of the data set.

    Examples
    --------
    >>> cutout(np.arange(8, dtype=np.uint8).reshape(1, 1, 2, 4), 2, seed=3)
    array([[[[0, 1, 4, 4],
             [4, 5, 4, 4]]]], dtype=uint8)
    """
    _check_images(x)
    size, seed = check_count("size", size), _check_seed(seed)
    xp, (_, _, height, width) = array_api_compat.array_namespace(x), x.shape
    _, _, i, j = _axes(x)
    top = random_integers(seed, (x.shape[0], 1, 1, 1), height, like=x) - size // 2
    left = random_integers(split_seed(seed, 1)[0], (x.shape[0], 1, 1, 1), width, like=x) - size // 2
    rows, columns = xp.logical_and(i >= top, i < top + size), xp.logical_and(j >= left, j < left + size)
    covered = xp.logical_and(rows, columns)
    return _computed(x, lambda pixels: xp.where(covered, _means(pixels, 2), pixels))


def random_brightness(x: Array, strength: float, seed: int) -> Array:
    """Multiply each image by a random factor from ``1 - strength`` to ``1 + strength``.

    Parameters
    ----------
    x : array (N, C, H, W)
        uint8 or floating-point images.
    strength : float
        0 to 1.
    seed : int
        From `xpconv.random.draw_seed`; it determines the factors; they are the same on every backend.

    Returns
    -------
    array (N, C, H, W)
        With the dtype and the device of `x`; uint8 images are rounded and limited to 255.

    Raises
    ------
    ArgumentError
        If `x` is not a batch of images, or `strength` is out of range.
    ArgumentTypeError
        If `strength` is not a number, or `x` has another dtype.

    Examples
    --------
    >>> random_brightness(np.full((3, 1, 1, 2), 100, np.uint8), 0.5, seed=1)[:, 0, 0]
    array([[106, 106],
           [ 74,  74],
           [120, 120]], dtype=uint8)
    """
    _check_images(x)
    strength = check_fraction("strength", strength)
    return _computed(x, lambda pixels: pixels * _random_factors(pixels, strength, seed))


def random_contrast(x: Array, strength: float, seed: int) -> Array:
    """Multiply the distances of each image's pixels from their mean by a random factor.

    ``out = mean + (x - mean) * factor``, with a factor from ``1 - strength`` to ``1 + strength`` for each image.

    Parameters
    ----------
    x : array (N, C, H, W)
        uint8 or floating-point images.
    strength : float
        0 to 1.
    seed : int
        From `xpconv.random.draw_seed`; it determines the factors; they are the same on every backend.

    Returns
    -------
    array (N, C, H, W)
        With the dtype and the device of `x`; uint8 images are rounded and limited to 0 and 255.

    Raises
    ------
    ArgumentError
        If `x` is not a batch of images, or `strength` is out of range.
    ArgumentTypeError
        If `strength` is not a number, or `x` has another dtype.

    Examples
    --------
    >>> random_contrast(np.array([[[[90, 110]]], [[[0, 255]]]], np.uint8), 0.5, seed=1)[
    ...     :, 0, 0
    ... ]
    array([[ 89, 111],
           [ 33, 222]], dtype=uint8)
    """
    _check_images(x)
    strength = check_fraction("strength", strength)

    def change(pixels: Array) -> Array:
        means = _means(pixels, 1)
        return means + (pixels - means) * _random_factors(pixels, strength, seed)

    return _computed(x, change)


def mixup(x: Array, y: Array, num_classes: int, seed: int, *, alpha: float = 0.2) -> tuple[Array, Array]:
    """Average each image and its label with the next ones of the minibatch, the last with the first.

    ``x' = weight * x[n] + (1 - weight) * x[n + 1]``, and likewise for labels as probabilities, with one weight for the
    minibatch, drawn from the Beta distribution ``Beta(alpha, alpha)``. Minibatches are in random order, so the next
    image is a random one.

    Parameters
    ----------
    x : array (N, C, H, W)
        uint8 or floating-point images.
    y : array (N,) of integers, or (N, num_classes)
        Labels, or the probabilities of each class.
    num_classes : int
    seed : int
        From `xpconv.random.draw_seed`; it determines the weight.
    alpha : float
        Above 0; the paper uses 0.1 to 0.4 for ImageNet and 1 for CIFAR-10.

    Returns
    -------
    x : array (N, C, H, W)
        With the dtype and the device of `x`; uint8 images are rounded.
    y : array (N, num_classes)
        The probability of each class: float64 for float64 images, otherwise float32.

    Raises
    ------
    ArgumentError
        If `x` is not a batch of images, `alpha` is not above 0, the shape of `y` fits neither form of labels, or
        labels in host memory are out of range.
    ArgumentTypeError
        If `x` has another dtype, labels are not integers, or `alpha`, `num_classes` or `seed` is not a number.

    References
    ----------
    Zhang, Cisse, Dauphin and Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", 2018.

    Examples
    --------
    >>> x, y = mixup(
    ...     np.array([[[[0]]], [[[100]]]], np.uint8),
    ...     np.array([0, 2]),
    ...     3,
    ...     seed=4,
    ...     alpha=1,
    ... )
    >>> x[:, 0, 0, 0]
    array([24, 76], dtype=uint8)
    >>> y.round(2)
    array([[0.76, 0.  , 0.24],
           [0.24, 0.  , 0.76]], dtype=float32)
    """
    _check_images(x)
    num_classes, seed = check_count("num_classes", num_classes), _check_seed(seed)
    if check_nonnegative("alpha", alpha) == 0:
        raise ArgumentError(f"alpha is {alpha}; expected a number above 0: leave mixup out instead")
    _check_labels(y, num_classes)
    if tuple(y.shape) not in ((x.shape[0],), (x.shape[0], num_classes)):
        raise ArgumentError(
            f"y has shape {tuple(y.shape)}; expected labels ({x.shape[0]},) or probabilities "
            f"({x.shape[0]}, {num_classes})"
        )
    xp, device = array_namespace(x=x, y=y), array_api_compat.device(x)
    weight = derive(lambda seed: _beta(seed, float(alpha)), seed)
    if y.ndim == 1:
        y = xp.reshape(y, (-1, 1)) == xp.arange(num_classes, dtype=y.dtype, device=device)
    y = xp.astype(y, xp.float64 if x.dtype == xp.float64 else xp.float32)

    def mix(a: Array) -> Array:
        return a * weight + xp.roll(a, -1, axis=0) * (1 - weight)

    return _computed(x, mix), mix(y)


def _check_labels(y: Array, num_classes: int) -> None:
    """Check the type of labels, and their range if they are in host memory; never wait for a device."""
    if not array_api_compat.is_array_api_obj(y):
        raise ArgumentTypeError(f"y is a {type(y).__name__}; expected an array of labels (N,) or probabilities (N, C)")
    if len(y.shape) != 1:
        return
    if not array_api_compat.array_namespace(y).isdtype(y.dtype, "integral"):
        raise ArgumentTypeError(f"y has dtype {y.dtype}; expected integer labels")
    if on_host(y) and y.shape[0]:
        labels = to_host(y)
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ArgumentError(
                f"y has labels from {labels.min()} to {labels.max()}; expected 0 to {num_classes - 1}, since "
                f"num_classes is {num_classes}"
            )


def _beta(seed: int, alpha: float) -> float:
    """Draw from ``Beta(alpha, alpha)`` by a stream whose numbers are the same in all versions of NumPy."""
    return float(np.random.RandomState(seed).beta(alpha, alpha))


def _check_images(x: Array) -> None:
    if not array_api_compat.is_array_api_obj(x):
        raise ArgumentTypeError(f"x is a {type(x).__name__}; expected an array of images (N, C, H, W)")
    if len(x.shape) != 4 or 0 in x.shape[1:]:
        raise ArgumentError(f"x has shape {tuple(x.shape)}; expected images (N, C, H, W) of one pixel or more")


def _check_seed(seed: int) -> int:
    return check_count("seed", seed, 0, 2**32 - 1)


def _computed(x: Array, change: Callable[[Array], Array]) -> Array:
    """Return ``change(x)``, which is computed in float32 or float64, and rounded if `x` is uint8."""
    xp = array_api_compat.array_namespace(x)
    if x.dtype in (xp.float32, xp.float64):
        return change(x)
    if xp.isdtype(x.dtype, "real floating"):  # sums and random integers overflow in float16
        return xp.astype(change(xp.astype(x, xp.float32)), x.dtype)
    if x.dtype != xp.uint8:
        raise ArgumentTypeError(f"x has dtype {x.dtype}; expected uint8 or floating-point images")
    return xp.astype(_clipped(xp.round(change(xp.astype(x, xp.float32))), 0, 255), xp.uint8)


def _clipped(x: Array, low: int, high: int) -> Array:
    """Return `x` limited to a range; array_api_compat's clip would wait for the device."""
    xp, device = array_api_compat.array_namespace(x), array_api_compat.device(x)
    lowest, highest = (xp.asarray(limit, dtype=x.dtype, device=device) for limit in (low, high))
    return xp.minimum(xp.maximum(x, lowest), highest)


def _random_factors(x: Array, strength: float, seed: int) -> Array:
    """Return a factor (N, 1, 1, 1) for each image, from ``1 - strength`` to ``1 + strength``."""
    xp = array_api_compat.array_namespace(x)
    steps = xp.astype(random_integers(_check_seed(seed), (x.shape[0], 1, 1, 1), 2**16, like=x), x.dtype)
    return 1 + (steps * 2.0**-15 - 1) * strength


def _means(x: Array, first_axis: int) -> Array:
    """Return the means over an axis and all later ones, added in pairs: the same bits on every backend."""
    xp, kept = array_api_compat.array_namespace(x), tuple(x.shape[:first_axis])
    count = prod(x.shape[first_axis:])
    sums = xp.reshape(x, (*kept, count))
    while (size := sums.shape[-1]) > 1:
        half = size // 2
        pairs = sums[..., :half] + sums[..., half : 2 * half]
        sums = xp.concat([pairs, sums[..., 2 * half :]], axis=-1) if size % 2 else pairs
    return xp.reshape(sums * (1 / count), kept + (1,) * (4 - first_axis))


PIXELS = "a whole number of pixels, 1 or more"
STRENGTH = "a number above 0, at most 1"
ALPHA = "a number above 0"


class _Word(NamedTuple):
    """A transform of minibatches that a specification names."""

    transform: Callable[[Minibatch, int, float | None, int], Minibatch]  # (minibatch, seed, number, seed of the run)
    number: str = ""  # the number that may follow the word; none if it is empty


def _of_images(function: Callable[[Array, int, float | None], Array]) -> Callable[..., Minibatch]:
    """Return the transform of minibatches that changes images alone."""

    def transform(minibatch: Minibatch, seed: int, number: float | None, run_seed: int) -> Minibatch:
        _check_images(minibatch.X)
        return minibatch._replace(X=function(minibatch.X, seed, number))

    return transform


def _alternate(minibatch: Minibatch, seed: int, number: float | None, run_seed: int) -> Minibatch:
    return minibatch._replace(X=alternating_flip(minibatch.X, minibatch.rows, minibatch.epoch, run_seed))


def _mixup(minibatch: Minibatch, seed: int, alpha: float | None, run_seed: int) -> Minibatch:
    X, y, _, _, num_classes = minibatch
    if num_classes is None:
        raise ArgumentError("mixup needs the number of classes, but the model has no num_classes: give it one")
    X, y = mixup(X, y, num_classes, seed, alpha=0.2 if alpha is None else alpha)
    return minibatch._replace(X=X, y=y)


def _pixels(x: Array, number: float | None, fraction: float) -> int:
    """Return a number of pixels, by default a fraction of the smaller side."""
    side = min(x.shape[2:])
    if number is None:
        return max(int(side * fraction), 1)
    if number >= side:
        raise ArgumentError(
            f"augment shifts or covers {number:g} pixels, but the images have {x.shape[2]}x{x.shape[3]}: take a "
            "smaller number, or larger images"
        )
    return int(number)


TRANSFORMS: dict[str, _Word] = {
    "crop": _Word(_of_images(lambda x, seed, number: random_crop(x, _pixels(x, number, 1 / 8), seed)), PIXELS),
    "reflect": _Word(
        _of_images(lambda x, seed, number: random_crop(x, _pixels(x, number, 1 / 8), seed, border="reflect")), PIXELS
    ),
    "affine": _Word(_of_images(lambda x, seed, number: random_affine(x, number or 0.25, seed)), STRENGTH),
    "flip": _Word(_of_images(lambda x, seed, number: random_flip(x, seed))),
    "alternate": _Word(_alternate),
    "cutout": _Word(_of_images(lambda x, seed, number: cutout(x, _pixels(x, number, 1 / 2), seed)), PIXELS),
    "brightness": _Word(_of_images(lambda x, seed, number: random_brightness(x, number or 0.2, seed)), STRENGTH),
    "contrast": _Word(_of_images(lambda x, seed, number: random_contrast(x, number or 0.2, seed)), STRENGTH),
    "mixup": _Word(_mixup, ALPHA),
}

AUGMENTATIONS: tuple[str, ...] = ("none", *TRANSFORMS)
"""The words that `parse_augmentation` accepts."""

EXCLUSIVE = (("crop", "reflect"), ("flip", "alternate"))  # words that do the same thing in two ways


def parse_augmentation(spec: str, seed: int = 0) -> "MinibatchAugmentation | None":
    """Return the function that changes minibatches as `spec` says, or None for ``none``.

    - ``crop`` shifts images at random by up to an eighth of their size (`random_crop`), and ``reflect`` does so with
      mirrored borders; ``crop4`` by up to 4 pixels.
    - ``affine`` turns, slants, stretches and shifts images at random (`random_affine`) with a strength of 0.25;
      ``affine0.1`` with 0.1.
    - ``flip`` mirrors images at random (`random_flip`), ``alternate`` in every second epoch (`alternating_flip`).
    - ``cutout`` covers a square of half the images' size (`cutout`); ``cutout8`` one of 8 pixels.
    - ``brightness`` and ``contrast`` change images by up to 20 % (`random_brightness`, `random_contrast`);
      ``contrast0.5`` by up to 50 %.
    - ``mixup`` averages images and labels (`mixup`) with an alpha of 0.2; ``mixup0.4`` with 0.4.

    The images are changed anew each time they are used, and none is added, so an epoch has as many images as without
    augmentation.

    Parameters
    ----------
    spec : str
        One of these words, or several joined by ``-``, such as ``crop-flip-cutout8``, in the order of the changes.
    seed : int
        0 to 2**32 - 1; determines which images ``alternate`` mirrors in the first epoch.

    Returns
    -------
    MinibatchAugmentation or None
        Changes a `Minibatch`, on any device; it is the `augment` of a Solver.

    Raises
    ------
    ArgumentError
        If a word or its number is unknown, two words exclude each other, or `seed` is out of range.
    ArgumentTypeError
        If `spec` is not text, or `seed` is not an integer.

    Examples
    --------
    >>> augment = parse_augmentation("crop-flip")
    >>> minibatch = Minibatch(
    ...     np.arange(6).reshape(2, 1, 1, 3),
    ...     np.array([0, 1]),
    ...     rows=np.arange(2),
    ...     epoch=0,
    ... )
    >>> augment(minibatch, seed=7).X[:, 0, 0]
    array([[0, 0, 0],
           [0, 3, 4]])
    """
    if not isinstance(spec, str):
        raise ArgumentTypeError(f"augment is {spec!r}; expected text, such as crop-flip")
    seed = _check_seed(seed)
    words = [_split_word(spec, text) for text in spec.split("-")]
    names = [name for name, _ in words]
    for pair in EXCLUSIVE:
        if {*pair} <= {*names}:
            raise ArgumentError(
                f"augment is {spec!r}, but {' and '.join(pair)} exclude each other: leave one of them out"
            )
    transforms = [(TRANSFORMS[name], number) for name, number in words if name in TRANSFORMS]
    return MinibatchAugmentation(spec, transforms, seed) if transforms else None


def mirroring_words(spec: str) -> list[str]:
    """Return the words of a specification that mirror images, which changes the class of digits and letters.

    Examples
    --------
    >>> mirroring_words("crop-flip-cutout8")
    ['flip']
    """
    return [word for word in spec.split("-") if word in ("flip", "alternate")]


def _split_word(spec: str, text: str) -> tuple[str, float | None]:
    """Return the name and the number of one word of a specification."""
    match = re.fullmatch(r"([a-z]+)([0-9]{1,5}(?:\.[0-9]{1,5})?)?", text)
    name, digits = match.groups() if match else (text, None)
    if name not in AUGMENTATIONS:
        raise ArgumentError(
            f"augment is {spec!r}; expected {', '.join(AUGMENTATIONS)}, or several joined by -, such as crop-flip"
        )
    if digits is None:
        return name, None
    number, wanted = float(digits), TRANSFORMS[name].number if name in TRANSFORMS else ""
    fits = {PIXELS: number >= 1 and number.is_integer(), STRENGTH: 0 < number <= 1, ALPHA: number > 0}
    if not fits.get(wanted, False):
        raise ArgumentError(f"augment is {spec!r}; expected {wanted or 'no number'} after {name}")
    return name, number


class MinibatchAugmentation:
    """Random changes of minibatches, one after another; the `augment` of a Solver.

    Parameters
    ----------
    spec : str
        The changes, as for `parse_augmentation`; checkpoints record this text.
    transforms : list of (word, number)
        The entries of TRANSFORMS and the numbers that follow them in `spec`.
    seed : int
        As for `parse_augmentation`.

    Examples
    --------
    >>> augment = parse_augmentation("alternate")
    >>> minibatch = Minibatch(
    ...     np.array([[[[1, 2, 3]]]]), np.array([5]), rows=np.array([2]), epoch=0
    ... )
    >>> augment(minibatch, seed=0).X, augment.takes_minibatch
    (array([[[[3, 2, 1]]]]), True)
    """

    takes_minibatch = capturable = True

    def __init__(self, spec: str, transforms: list[tuple[_Word, float | None]], seed: int) -> None:
        self.__qualname__ = spec  # the name that a checkpoint records
        self._transforms, self._seed = transforms, seed

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the specification: transforms are functions of this module, some without a name."""
        return parse_augmentation, (self.__qualname__, self._seed)

    def __call__(self, minibatch: Minibatch, seed: int) -> Minibatch:
        """Return the changed minibatch; each transform gets a seed of its own, which `seed` determines."""
        if not isinstance(minibatch, Minibatch):
            raise ArgumentTypeError(f"minibatch is a {type(minibatch).__name__}; expected a Minibatch")
        seeds = split_seed(_check_seed(seed), len(self._transforms))
        for (word, number), transform_seed in zip(self._transforms, seeds, strict=True):
            minibatch = word.transform(minibatch, transform_seed, number, self._seed)
        return minibatch

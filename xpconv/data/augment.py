"""More training images, made from those there are: copies beforehand, or random changes of each minibatch."""

from collections.abc import Callable

import array_api_compat
import numpy as np

from xpconv.backend import Array
from xpconv.errors import ArgumentError
from xpconv.ops.random_bits import keep_mask, random_integers
from xpconv.ops.windows import pad
from xpconv.random import split_seed

__all__ = ["AUGMENTATIONS", "augmentation", "random_crop", "random_flip", "with_mirrored", "with_shifted"]

Extend = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Change = Callable[[Array, int], Array]


def with_shifted(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add each image moved by one pixel up, down, left and right; what comes in from outside is 0.

    Parameters
    ----------
    X : numpy.ndarray
        Images (N, C, H, W).
    y : numpy.ndarray
        Labels (N,).

    Returns
    -------
    X, y : numpy.ndarray
        (5*N, C, H, W) and (5*N,), the given ones first.

    Examples
    --------
    >>> X, y = with_shifted(np.array([[[[1, 2, 3]]]]), np.array([7]))
    >>> X[3, 0, 0], X[4, 0, 0], y
    (array([2, 3, 0]), array([0, 1, 2]), array([7, 7, 7, 7, 7]))
    """
    height, width = X.shape[2:]
    padded = np.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)))
    corners = (1, 1), (2, 1), (0, 1), (1, 2), (1, 0)
    moved = [padded[:, :, top : top + height, left : left + width] for top, left in corners]
    return np.concatenate(moved), np.tile(y, len(corners))


def with_mirrored(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add each image with left and right exchanged.

    Parameters
    ----------
    X : numpy.ndarray
        Images (N, C, H, W).
    y : numpy.ndarray
        Labels (N,).

    Returns
    -------
    X, y : numpy.ndarray
        (2*N, C, H, W) and (2*N,), the given ones first.

    Examples
    --------
    >>> with_mirrored(np.array([[[[1, 2, 3]]]]), np.array([7]))[0][1]
    array([[[3, 2, 1]]])
    """
    return np.concatenate([X, X[:, :, :, ::-1]]), np.tile(y, 2)


def random_crop(x: Array, padding: int, key: int) -> Array:
    """Surround each image with zeros and cut its own size out again, at a random place.

    ``out[n, :, i, j] = padded[n, :, i + top[n], j + left[n]]``, with top and left from 0 to ``2 * padding``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images of any dtype that the library can index; torch cannot do so with uint16, uint32 and uint64.
    padding : int
        By how many pixels an image may move each way, 0 or more.
    key : int
        From `xpconv.random.draw_seed`: it alone determines the places, the same on every backend.

    Returns
    -------
    array (N, C, H, W)
        Of the dtype and on the device of `x`.

    Raises
    ------
    ArgumentError
        If `x` is no batch of images or `padding` is negative.

    References
    ----------
    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016, section 4.2 (padding 4).

    Examples
    --------
    >>> random_crop(np.arange(1, 7).reshape(2, 1, 1, 3), 1, key=10)[:, 0, 0]
    array([[2, 3, 0],
           [0, 4, 5]])
    """
    _check_images(x)
    if padding < 0:
        raise ArgumentError(f"padding is {padding}; expected 0 or more pixels")
    xp, device = array_api_compat.array_namespace(x), array_api_compat.device(x)
    N, C, H, W = x.shape
    padded = pad(x, (padding, padding))
    height, width = padded.shape[2:]
    corners = random_integers(key, (2, N, 1, 1, 1), 2 * padding + 1, like=x)

    def axis(size: int, *shape: int) -> Array:
        return xp.reshape(xp.arange(size, dtype=xp.int64, device=device), shape)

    rows = axis(N * C, N, C, 1, 1) * height + axis(H, 1, 1, H, 1) + corners[0, ...]  # (N, C, H, 1)
    pixels = rows * width + axis(W, 1, 1, 1, W) + corners[1, ...]  # (N, C, H, W)
    return xp.reshape(xp.take(xp.reshape(padded, (-1,)), xp.reshape(pixels, (-1,)), axis=0), x.shape)


def random_flip(x: Array, key: int) -> Array:
    """Exchange left and right in about every second image.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images of any dtype that the library can index; torch cannot do so with uint16, uint32 and uint64.
    key : int
        From `xpconv.random.draw_seed`: it alone determines which, the same on every backend.

    Returns
    -------
    array (N, C, H, W)
        Of the dtype and on the device of `x`.

    Raises
    ------
    ArgumentError
        If `x` is no batch of images.

    Examples
    --------
    >>> random_flip(np.arange(6).reshape(2, 1, 1, 3), key=6)[:, 0, 0]
    array([[0, 1, 2],
           [5, 4, 3]])
    """
    _check_images(x)
    xp = array_api_compat.array_namespace(x)
    return xp.where(keep_mask(key, (x.shape[0], 1, 1, 1), 0.5, like=x), x, xp.flip(x, axis=-1))


def _check_images(x: Array) -> None:
    if len(x.shape) != 4:
        raise ArgumentError(f"x has shape {tuple(x.shape)}; expected images (N, C, H, W)")


def _crop_an_eighth(x: Array, key: int) -> Array:
    return random_crop(x, max(min(x.shape[2:]) // 8, 1), key)


COPIES: dict[str, Extend] = {"shift": with_shifted, "mirror": with_mirrored}
CHANGES: dict[str, Change] = {"crop": _crop_an_eighth, "flip": random_flip}

AUGMENTATIONS: tuple[str, ...] = ("none", *COPIES, *CHANGES)
"""The words that `augmentation` knows."""


def augmentation(spec: str) -> tuple[Extend, Change | None]:
    """Return what the words of `spec`, joined by ``-``, mean: copies to add beforehand, and changes of minibatches.

    ``shift`` adds each image moved by a pixel each way, ``mirror`` each mirrored; ``crop`` moves the images of each
    minibatch by up to an eighth of their size (`random_crop`), ``flip`` mirrors some (`random_flip`); ``none`` does
    nothing.

    Parameters
    ----------
    spec : str
        Such as ``crop-flip``.

    Returns
    -------
    extend : callable
        ``extend(X, y) -> (X, y)``, on the host.
    change : callable or None
        ``change(X, key) -> X``, on any device: the `augment` of a Solver.

    Raises
    ------
    ArgumentError
        If a word means nothing.

    Examples
    --------
    >>> extend, change = augmentation("mirror-crop-flip")
    >>> X, y = extend(np.ones((2, 1, 8, 8), np.uint8), np.array([0, 1]))
    >>> X.shape, change(X, 7).shape
    ((4, 1, 8, 8), (4, 1, 8, 8))
    """
    words = spec.split("-")
    if not set(words) <= set(AUGMENTATIONS):
        raise ArgumentError(
            f"augment is {spec!r}; expected {', '.join(AUGMENTATIONS)}, or several joined by -, such as crop-flip"
        )
    copies = [COPIES[word] for word in words if word in COPIES]
    changes = [CHANGES[word] for word in words if word in CHANGES]

    def extend(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for copy in copies:
            X, y = copy(X, y)
        return X, y

    def change(X: Array, key: int) -> Array:
        for one, own_key in zip(changes, split_seed(key, len(changes)), strict=True):
            X = one(X, own_key)
        return X

    change.__qualname__ = spec  # by which checkpoints know it again
    return extend, change if changes else None

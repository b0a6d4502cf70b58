"""More training images, made from those there are: expansions beforehand, or random transforms of each minibatch."""

from collections.abc import Callable

import array_api_compat
import numpy as np

from xpconv.backend import Array
from xpconv.errors import ArgumentError
from xpconv.ops.random_bits import keep_mask, random_integers
from xpconv.ops.windows import pad
from xpconv.random import split_seed

__all__ = [
    "AUGMENTATIONS",
    "add_mirrored_copies",
    "add_shifted_copies",
    "parse_augmentation",
    "random_crop",
    "random_flip",
]

Expansion = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
Transform = Callable[[Array, int], Array]


def add_shifted_copies(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    >>> X, y = add_shifted_copies(np.array([[[[1, 2, 3]]]]), np.array([7]))
    >>> X[3, 0, 0], X[4, 0, 0], y
    (array([2, 3, 0]), array([0, 1, 2]), array([7, 7, 7, 7, 7]))
    """
    height, width = X.shape[2:]
    padded = np.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)))
    corners = (1, 1), (2, 1), (0, 1), (1, 2), (1, 0)
    moved = [padded[:, :, top : top + height, left : left + width] for top, left in corners]
    return np.concatenate(moved), np.tile(y, len(corners))


def add_mirrored_copies(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    >>> add_mirrored_copies(np.array([[[[1, 2, 3]]]]), np.array([7]))[0][1]
    array([[[3, 2, 1]]])
    """
    return np.concatenate([X, X[:, :, :, ::-1]]), np.tile(y, 2)


def random_crop(x: Array, padding: int, seed: int) -> Array:
    """Surround each image with zeros and cut its own size out again, at a random place.

    ``out[n, :, i, j] = padded[n, :, i + top[n], j + left[n]]``, with top and left from 0 to ``2 * padding``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images of any dtype that the library can index; torch cannot do so with uint16, uint32 and uint64.
    padding : int
        By how many pixels an image may move each way, 0 or more.
    seed : int
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
    >>> random_crop(np.arange(1, 7).reshape(2, 1, 1, 3), 1, seed=10)[:, 0, 0]
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
    corners = random_integers(seed, (2, N, 1, 1, 1), 2 * padding + 1, like=x)

    def axis(size: int, *shape: int) -> Array:
        return xp.reshape(xp.arange(size, dtype=xp.int64, device=device), shape)

    rows = axis(N * C, N, C, 1, 1) * height + axis(H, 1, 1, H, 1) + corners[0, ...]  # (N, C, H, 1)
    pixels = rows * width + axis(W, 1, 1, 1, W) + corners[1, ...]  # (N, C, H, W)
    return xp.reshape(xp.take(xp.reshape(padded, (-1,)), xp.reshape(pixels, (-1,)), axis=0), x.shape)


def random_flip(x: Array, seed: int) -> Array:
    """Exchange left and right in about every second image.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images of any dtype that the library can index; torch cannot do so with uint16, uint32 and uint64.
    seed : int
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
    >>> random_flip(np.arange(6).reshape(2, 1, 1, 3), seed=6)[:, 0, 0]
    array([[0, 1, 2],
           [5, 4, 3]])
    """
    _check_images(x)
    xp = array_api_compat.array_namespace(x)
    return xp.where(keep_mask(seed, (x.shape[0], 1, 1, 1), 0.5, like=x), x, xp.flip(x, axis=-1))


def _check_images(x: Array) -> None:
    if len(x.shape) != 4:
        raise ArgumentError(f"x has shape {tuple(x.shape)}; expected images (N, C, H, W)")


def _crop_an_eighth(x: Array, seed: int) -> Array:
    return random_crop(x, max(min(x.shape[2:]) // 8, 1), seed)


EXPANSIONS: dict[str, Expansion] = {"shift": add_shifted_copies, "mirror": add_mirrored_copies}
TRANSFORMS: dict[str, Transform] = {"crop": _crop_an_eighth, "flip": random_flip}

AUGMENTATIONS: tuple[str, ...] = ("none", *EXPANSIONS, *TRANSFORMS)
"""The words that `parse_augmentation` knows."""


def parse_augmentation(spec: str) -> tuple[Expansion, Transform | None]:
    """Return the two functions that `spec`, words joined by ``-``, stands for.

    ``shift`` adds each image moved by a pixel each way, ``mirror`` each mirrored; ``crop`` moves the images of each
    minibatch by up to an eighth of their size (`random_crop`), ``flip`` mirrors some (`random_flip`); ``none`` does
    nothing.

    Parameters
    ----------
    spec : str
        Such as ``crop-flip``.

    Returns
    -------
    expand : callable
        ``expand(X, y) -> (X, y)``, on the host.
    transform : callable or None
        ``transform(X, seed) -> X``, on any device: the `augment` of a Solver.

    Raises
    ------
    ArgumentError
        If a word means nothing.

    Examples
    --------
    >>> expand, transform = parse_augmentation("mirror-crop-flip")
    >>> X, y = expand(np.ones((2, 1, 8, 8), np.uint8), np.array([0, 1]))
    >>> X.shape, transform(X, 7).shape
    ((4, 1, 8, 8), (4, 1, 8, 8))
    """
    words = spec.split("-")
    if not set(words) <= set(AUGMENTATIONS):
        raise ArgumentError(
            f"augment is {spec!r}; expected {', '.join(AUGMENTATIONS)}, or several joined by -, such as crop-flip"
        )
    expansions = [EXPANSIONS[word] for word in words if word in EXPANSIONS]
    transforms = [TRANSFORMS[word] for word in words if word in TRANSFORMS]

    def expand(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for copy in expansions:
            X, y = copy(X, y)
        return X, y

    def transform(X: Array, seed: int) -> Array:
        for one, own_seed in zip(transforms, split_seed(seed, len(transforms)), strict=True):
            X = one(X, own_seed)
        return X

    transform.__qualname__ = spec  # by which checkpoints know it again
    return expand, transform if transforms else None

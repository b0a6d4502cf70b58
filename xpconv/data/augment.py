"""Augmentation: add copies of images before training, or transform each minibatch at random."""

from collections.abc import Callable, Sequence
from functools import partial

import array_api_compat
import numpy as np

from xpconv._validation import check_count
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
    """Add four copies of each image, shifted by one pixel up, down, left and right; the uncovered pixels are 0.

    Parameters
    ----------
    X : numpy.ndarray
        Images (N, C, H, W).
    y : numpy.ndarray
        Labels (N,).

    Returns
    -------
    X, y : numpy.ndarray
        (5*N, C, H, W) and (5*N,), the originals first.

    Examples
    --------
    >>> X, y = add_shifted_copies(np.array([[[[1, 2, 3]]]]), np.array([7]))
    >>> X[3, 0, 0], X[4, 0, 0], y
    (array([2, 3, 0]), array([0, 1, 2]), array([7, 7, 7, 7, 7]))
    """
    height, width = X.shape[2:]
    padded = np.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)))
    corners = (1, 1), (2, 1), (0, 1), (1, 2), (1, 0)
    copies = [padded[:, :, top : top + height, left : left + width] for top, left in corners]
    return np.concatenate(copies), np.tile(y, len(corners))


def add_mirrored_copies(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add a copy of each image with left and right exchanged.

    Parameters
    ----------
    X : numpy.ndarray
        Images (N, C, H, W).
    y : numpy.ndarray
        Labels (N,).

    Returns
    -------
    X, y : numpy.ndarray
        (2*N, C, H, W) and (2*N,), the originals first.

    Examples
    --------
    >>> add_mirrored_copies(np.array([[[[1, 2, 3]]]]), np.array([7]))[0][1]
    array([[[3, 2, 1]]])
    """
    return np.concatenate([X, X[:, :, :, ::-1]]), np.tile(y, 2)


def random_crop(x: Array, padding: int, seed: int) -> Array:
    """Pad each image with zeros and crop it to its size at a random position.

    ``out[n, :, i, j] = padded[n, :, i + top[n], j + left[n]]``, with top and left from 0 to ``2 * padding``.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images of any dtype that the library can index; torch cannot index uint16, uint32 and uint64.
    padding : int
        The largest shift in each direction, in pixels, 0 or more.
    seed : int
        From `xpconv.random.draw_seed`; it determines the positions; they are the same on every backend.

    Returns
    -------
    array (N, C, H, W)
        With the dtype and the device of `x`.

    Raises
    ------
    ArgumentError
        If `x` is not a batch of images or `padding` is negative.
    ArgumentTypeError
        If `padding` is not an integer.

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
    padding = check_count("padding", padding, 0)
    xp, device = array_api_compat.array_namespace(x), array_api_compat.device(x)
    corners = random_integers(seed, (2, x.shape[0], 1, 1, 1), 2 * padding + 1, like=x)
    top, left = corners[0, ...], corners[1, ...]
    n, c, i, j = (  # the indices along each axis, in shapes that broadcast to (N, C, H, W)
        xp.reshape(xp.arange(size, dtype=xp.int64, device=device), (1,) * axis + (size,) + (1,) * (3 - axis))
        for axis, size in enumerate(x.shape)
    )
    # The positions of padded[n, c, i + top, j + left] in the flattened array; `take` has one-dimensional indices.
    padded = pad(x, ((padding, padding), (padding, padding)))
    _, C, height, width = padded.shape
    pixels = ((n * C + c) * height + (i + top)) * width + (j + left)
    return xp.reshape(xp.take(xp.reshape(padded, (-1,)), xp.reshape(pixels, (-1,)), axis=0), x.shape)


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
    return xp.where(keep_mask(seed, (x.shape[0], 1, 1, 1), 0.5, like=x), x, xp.flip(x, axis=-1))


def _check_images(x: Array) -> None:
    if len(x.shape) != 4:
        raise ArgumentError(f"x has shape {tuple(x.shape)}; expected images (N, C, H, W)")


def _crop_by_an_eighth(x: Array, seed: int) -> Array:
    return random_crop(x, max(min(x.shape[2:]) // 8, 1), seed)


EXPANSIONS: dict[str, Expansion] = {"shift": add_shifted_copies, "mirror": add_mirrored_copies}
TRANSFORMS: dict[str, Transform] = {"crop": _crop_by_an_eighth, "flip": random_flip}

AUGMENTATIONS: tuple[str, ...] = ("none", *EXPANSIONS, *TRANSFORMS)
"""The words that `parse_augmentation` accepts."""


def parse_augmentation(spec: str) -> tuple[Expansion, Transform | None]:
    """Return the functions that augment training images as `spec` says.

    Before training, ``shift`` adds copies of each image shifted by one pixel in each direction, and ``mirror`` adds
    mirrored copies. In each minibatch, ``crop`` shifts images at random by up to an eighth of their size
    (`random_crop`), and ``flip`` mirrors images at random (`random_flip`). ``none`` changes nothing.

    Parameters
    ----------
    spec : str
        One of these words, or several joined by ``-``, such as ``crop-flip``.

    Returns
    -------
    expand : callable
        ``expand(X, y) -> (X, y)`` adds the copies, on the host.
    transform : callable or None
        ``transform(X, seed) -> X`` changes a minibatch, on any device; it is the `augment` of a Solver.

    Raises
    ------
    ArgumentError
        If a word is unknown.

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
        for expansion in expansions:
            X, y = expansion(X, y)
        return X, y

    transform_all = partial(_transform_all, transforms)
    transform_all.__qualname__ = spec  # type: ignore[attr-defined]  # checkpoints recognise the transform by this name
    return expand, transform_all if transforms else None


def _transform_all(transforms: Sequence[Transform], X: Array, seed: int) -> Array:
    for transform, transform_seed in zip(transforms, split_seed(seed, len(transforms)), strict=True):
        X = transform(X, transform_seed)
    return X

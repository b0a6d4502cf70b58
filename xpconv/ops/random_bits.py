"""Random masks and integers that a seed determines: the same bits on every backend.

Element number i, in row-major order, is computed on the device from a hash of i and the seed. No random numbers are
copied from the host.
"""

from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import Array

__all__ = ["hash_numbers", "keep_mask", "random_integers"]


def keep_mask(seed: int, shape: tuple[int, ...], keep_prob: float, like: Array, first: int = 0) -> Array:
    """Return a mask whose elements are True with probability `keep_prob`: the same bits on every backend.

    Element number i is ``hash(first + i, seed) < keep_prob * 2**32``.

    Parameters
    ----------
    seed : int
        0 to 2**32 - 1, such as one from `xpconv.random.draw_seed`.
    shape : tuple of int
    keep_prob : float
        Probability of True, 0 to 1.
    like : array
        An array whose library and device the mask gets.
    first : int
        Position of the first element, added to each i.

    Returns
    -------
    array of bool, of shape `shape`

    Examples
    --------
    >>> mask = keep_mask(7, (1000,), 0.8, like=np.zeros(1))
    >>> mask.dtype, bool(abs(mask.mean() - 0.8) < 0.05)
    (dtype('bool'), True)
    """
    return _reshape(_hash(seed, shape, like, first) < int(keep_prob * 2**32), shape)


def random_integers(seed: int, shape: tuple[int, ...], high: int, like: Array) -> Array:
    """Return integers drawn uniformly from 0 to `high` - 1: the same on every backend.

    Element number i is ``hash(i, seed) * high // 2**32``.

    Parameters
    ----------
    seed : int
        0 to 2**32 - 1, such as one from `xpconv.random.draw_seed`.
    shape : tuple of int
    high : int
        From 1 to 2**16.
    like : array
        An array whose library and device the integers get.

    Returns
    -------
    array of int64, of shape `shape`

    Examples
    --------
    >>> random_integers(7, (2, 5), 3, like=np.zeros(1))
    array([[0, 2, 0, 0, 1],
           [1, 1, 2, 0, 0]])
    """
    return _reshape(_hash(seed, shape, like) * high >> 32, shape)


def hash_numbers(seed: int, numbers: Array) -> Array:
    """Return 32 random bits for each number, which the number and the seed determine: the same on every backend.

    Parameters
    ----------
    seed : int
        0 to 2**32 - 1, such as one from `xpconv.random.draw_seed`.
    numbers : array of int64
        0 to 2**32 - 1.

    Returns
    -------
    array of int64
        0 to 2**32 - 1, of the shape of `numbers`.

    Examples
    --------
    >>> hash_numbers(7, np.array([0, 1, 0]))
    array([1025039378, 4042366995, 1025039378])
    """
    return _mix(_mix(numbers ^ seed) ^ (seed * 0x9E3779B1 & 0xFFFFFFFF))


def _hash(seed: int, shape: tuple[int, ...], like: Array, first: int = 0) -> Array:
    """Return ``hash(first + i, seed)`` for each element number i of an array of `shape`, flat: 32 bits in int64."""
    xp: Any = array_api_compat.array_namespace(like)
    count = int(np.prod(shape, dtype=np.int64))
    return hash_numbers(seed, xp.arange(first, first + count, dtype=xp.int64, device=array_api_compat.device(like)))


def _reshape(flat: Array, shape: tuple[int, ...]) -> Array:
    return array_api_compat.array_namespace(flat).reshape(flat, shape)


def _mix(h: Array) -> Array:
    """Scramble 32-bit numbers held in int64 (a hash finaliser by T. Mueller); products stay below 2**63."""
    for _ in range(2):
        h = ((h >> 16) ^ h) * 0x45D9F3B & 0xFFFFFFFF
    return (h >> 16) ^ h

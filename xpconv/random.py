"""Randomness starts on the host: streams of random numbers, and the masks that devices derive from a key."""

from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from xpconv.backend import Array
from xpconv.errors import ArgumentTypeError

__all__ = ["Rng", "Stream", "as_stream", "draw_key", "keep_mask", "spawn"]

Rng: TypeAlias = "int | np.random.Generator | np.random.RandomState | None"
Stream: TypeAlias = "np.random.Generator | np.random.RandomState"


def as_stream(rng: Rng) -> Stream:
    """Return the stream of random numbers that `rng` stands for.

    Parameters
    ----------
    rng : None, int, Generator or RandomState
        None is NumPy's global state, which ``np.random.seed`` sets; an int seeds a new Generator.

    Raises
    ------
    ArgumentTypeError
        If it is anything else.

    Examples
    --------
    >>> as_stream(0).standard_normal(2).round(3)
    array([ 0.126, -0.132])
    """
    if rng is None:
        state: Stream = np.random.mtrand._rand
        return state
    if isinstance(rng, np.random.Generator | np.random.RandomState):
        return rng
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        return np.random.default_rng(int(rng))
    raise ArgumentTypeError(f"rng is {rng!r}; expected None, an int, a numpy Generator or a RandomState")


def spawn(rng: Rng, count: int) -> list[np.random.Generator]:
    """Return `count` independent streams that `rng` determines.

    Examples
    --------
    >>> a, b = spawn(0, 2)
    >>> bool(a.random() == b.random())
    False
    """
    entropy = [draw_key(as_stream(rng)) for _ in range(4)]
    return [np.random.default_rng(seed) for seed in np.random.SeedSequence(entropy).spawn(count)]


def draw_key(stream: Stream) -> int:
    """Draw a key for `keep_mask`, 0 to 2**31 - 1."""
    if isinstance(stream, np.random.Generator):
        return int(stream.integers(2**31))
    return int(stream.randint(2**31, dtype=np.int64))


def keep_mask(key: int, shape: tuple[int, ...], keep: float, like: Array) -> Array:
    """Return a boolean mask, each element True with probability `keep`: the same bits on every backend.

    Element number i is True where ``hash(i, key) < keep * 2**32``: nothing is drawn, so nothing is moved.

    Parameters
    ----------
    key : int
        From `draw_key`.
    shape : tuple of int
    keep : float
        Probability of True, 0 to 1.
    like : array
        The mask is made by its library on its device.

    Examples
    --------
    >>> mask = keep_mask(7, (1000,), 0.8, like=np.zeros(1))
    >>> mask.dtype, bool(abs(mask.mean() - 0.8) < 0.05)
    (dtype('bool'), True)
    """
    xp: Any = array_api_compat.array_namespace(like)
    count = int(np.prod(shape, dtype=np.int64))
    h = xp.arange(count, dtype=xp.int64, device=array_api_compat.device(like))
    h = _mix(_mix(h ^ key) ^ (key * 0x9E3779B1 & 0xFFFFFFFF))
    return xp.reshape(h < int(keep * 2**32), shape)


def _mix(h: Array) -> Array:
    """Scramble 32-bit numbers held in int64 (a finaliser by T. Mueller); products stay below 2**63."""
    for _ in range(2):
        h = ((h >> 16) ^ h) * 0x45D9F3B & 0xFFFFFFFF
    return (h >> 16) ^ h

"""Randomness starts on the host: streams of random numbers, and the masks that devices derive from a key."""

from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from xpconv.backend import Array
from xpconv.errors import ArgumentError, ArgumentTypeError

__all__ = ["Rng", "Stream", "as_stream", "draw_key", "integers", "keep_mask", "restore", "spawn", "split_key",
           "state_of"]

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


def state_of(stream: Stream) -> dict[str, Any]:
    """Return where a stream is, as plain data for JSON; `restore` is its inverse.

    Examples
    --------
    >>> stream = as_stream(0)
    >>> state, first = state_of(stream), stream.random()
    >>> restore(stream, state)
    >>> stream.random() == first
    True
    """
    state = stream.get_state(legacy=False) if isinstance(stream, np.random.RandomState) else stream.bit_generator.state
    plain: dict[str, Any] = _plain(state)
    return plain


def restore(stream: Stream, state: dict[str, Any]) -> None:
    """Put a stream where another of its kind was.

    Raises
    ------
    ArgumentError
        If it is of another kind, or the state is none.

    Examples
    --------
    >>> stream = as_stream(0)
    >>> state, first = state_of(stream), stream.random()
    >>> restore(stream, state)
    >>> stream.random() == first
    True
    """
    own = state_of(stream)
    if own.keys() != state.keys() or own["bit_generator"] != state["bit_generator"]:
        raise ArgumentError(f"state is that of a {state.get('bit_generator')} with {', '.join(state)}; expected "
                            f"that of a {own['bit_generator']} with {', '.join(own)}")
    try:
        if isinstance(stream, np.random.RandomState):
            stream.set_state(state)
        else:
            stream.bit_generator.state = state
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise ArgumentError(f"state is no state of a {own['bit_generator']}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def draw_key(stream: Stream) -> int:
    """Draw a key for `keep_mask` and `integers`, 0 to 2**31 - 1.

    Examples
    --------
    >>> 0 <= draw_key(as_stream(0)) < 2**31
    True
    """
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
    return _shaped(_hash(key, shape, like) < int(keep * 2**32), shape)


def integers(key: int, shape: tuple[int, ...], high: int, like: Array) -> Array:
    """Return whole numbers from 0 to `high` - 1, equally likely: the same on every backend.

    Element number i is ``hash(i, key) * high // 2**32``.

    Parameters
    ----------
    key : int
        From `draw_key`.
    shape : tuple of int
    high : int
        From 1 to 2**16.
    like : array
        The numbers are made by its library on its device.

    Returns
    -------
    array of int64

    Examples
    --------
    >>> integers(7, (2, 5), 3, like=np.zeros(1))
    array([[0, 2, 0, 0, 1],
           [1, 1, 2, 0, 0]])
    """
    return _shaped(_hash(key, shape, like) * high >> 32, shape)


def split_key(key: int, count: int) -> list[int]:
    """Return `count` keys that `key` determines, for uses that must know nothing of each other.

    Examples
    --------
    >>> len({7, *split_key(7, 3)})
    4
    """
    return [int(word) >> 1 for word in np.random.SeedSequence(key).generate_state(count)]


def _hash(key: int, shape: tuple[int, ...], like: Array) -> Array:
    """Return ``hash(i, key)``, 32 bits held in int64, for each element number i of an array of `shape`, in a row."""
    xp: Any = array_api_compat.array_namespace(like)
    count = int(np.prod(shape, dtype=np.int64))
    h = xp.arange(count, dtype=xp.int64, device=array_api_compat.device(like))
    return _mix(_mix(h ^ key) ^ (key * 0x9E3779B1 & 0xFFFFFFFF))


def _shaped(row: Array, shape: tuple[int, ...]) -> Array:
    return array_api_compat.array_namespace(row).reshape(row, shape)


def _mix(h: Array) -> Array:
    """Scramble 32-bit numbers held in int64 (a finaliser by T. Mueller); products stay below 2**63."""
    for _ in range(2):
        h = ((h >> 16) ^ h) * 0x45D9F3B & 0xFFFFFFFF
    return (h >> 16) ^ h

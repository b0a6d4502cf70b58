"""Random-number streams on the host, and the seeds from which devices compute random masks and integers."""

from operator import getitem
from typing import Any, TypeAlias

import numpy as np

from xpconv._deferred import Deferred, DeferredStream, derive
from xpconv.errors import ArgumentError, ArgumentTypeError

__all__ = ["RandomStream", "Rng", "as_random_stream", "draw_seed", "restore", "spawn", "split_seed", "state_of"]

Rng: TypeAlias = "int | np.random.Generator | np.random.RandomState | None"
RandomStream: TypeAlias = "np.random.Generator | np.random.RandomState"


def as_random_stream(rng: Rng) -> RandomStream:
    """Return the stream of random numbers that `rng` stands for.

    Parameters
    ----------
    rng : None, int, Generator or RandomState
        None is NumPy's global state, which ``np.random.seed`` sets; an int seeds a new Generator.

    Raises
    ------
    ArgumentTypeError
        If `rng` is anything else.

    Examples
    --------
    >>> as_random_stream(0).standard_normal(2).round(3)
    array([ 0.126, -0.132])
    """
    if rng is None:
        state: RandomStream = np.random.mtrand._rand
        return state
    if isinstance(rng, np.random.Generator | np.random.RandomState):
        return rng
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool):
        return np.random.default_rng(int(rng))
    raise ArgumentTypeError(f"rng is {rng!r}; expected None, an int, a numpy Generator or a RandomState")


def spawn(rng: Rng, count: int) -> list[np.random.Generator]:
    """Return `count` independent streams, which `rng` determines.

    Examples
    --------
    >>> a, b = spawn(0, 2)
    >>> bool(a.random() == b.random())
    False
    """
    entropy = [draw_seed(as_random_stream(rng)) for _ in range(4)]
    return [np.random.default_rng(seed) for seed in np.random.SeedSequence(entropy).spawn(count)]


def state_of(stream: RandomStream) -> dict[str, Any]:
    """Return the state of a stream as plain data that JSON can hold; `restore` sets it again.

    Examples
    --------
    >>> stream = as_random_stream(0)
    >>> state, first = state_of(stream), stream.random()
    >>> restore(stream, state)
    >>> stream.random() == first
    True
    """
    state = stream.get_state(legacy=False) if isinstance(stream, np.random.RandomState) else stream.bit_generator.state
    plain: dict[str, Any] = _plain(state)
    return plain


def restore(stream: RandomStream, state: dict[str, Any]) -> None:
    """Set a stream to a state that `state_of` returned for a stream of the same kind.

    Raises
    ------
    ArgumentError
        If the state is that of another kind of stream, or is not valid.

    Examples
    --------
    >>> stream = as_random_stream(0)
    >>> state, first = state_of(stream), stream.random()
    >>> restore(stream, state)
    >>> stream.random() == first
    True
    """
    own = state_of(stream)
    if own.keys() != state.keys() or own["bit_generator"] != state["bit_generator"]:
        raise ArgumentError(
            f"state is that of a {state.get('bit_generator')} with {', '.join(state)}; expected "
            f"that of a {own['bit_generator']} with {', '.join(own)}"
        )
    try:
        if isinstance(stream, np.random.RandomState):
            stream.set_state(state)
        else:
            stream.bit_generator.state = state
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise ArgumentError(f"state is not a valid state of a {own['bit_generator']}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def draw_seed(stream: RandomStream) -> int:
    """Draw a seed from 0 to 2**31 - 1, for `keep_mask` and `random_integers`.

    Examples
    --------
    >>> 0 <= draw_seed(as_random_stream(0)) < 2**31
    True
    """
    if isinstance(stream, DeferredStream):
        seed: int = stream.draw_seed()
        return seed
    if isinstance(stream, np.random.Generator):
        return int(stream.integers(2**31))
    return int(stream.randint(2**31, dtype=np.int64))


def split_seed(seed: int, count: int) -> list[int]:
    """Return `count` seeds for independent uses, which `seed` determines.

    Examples
    --------
    >>> len({7, *split_seed(7, 3)})
    4
    """
    given: Any = seed
    if isinstance(given, Deferred):
        seeds = derive(split_seed, given, count)
        return [derive(getitem, seeds, position) for position in range(count)]
    return [int(word) >> 1 for word in np.random.SeedSequence(seed).generate_state(count)]

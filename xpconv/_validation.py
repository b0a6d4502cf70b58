"""Checks of plain options: counts, fractions, flags, choices; each error names the option, its value and what to do."""

from collections.abc import Callable, Collection, Sequence
from math import isfinite
from numbers import Real
from typing import Any, TypeGuard

import numpy as np

from xpconv._deferred import Deferred
from xpconv.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "check_choice",
    "check_count",
    "check_counts",
    "check_eps",
    "check_flag",
    "check_fraction",
    "check_nonnegative",
    "check_pair",
    "check_positive",
    "check_probability",
    "is_integer",
]


MOST_PIXELS = 2**31 - 1  # in a padded image, so that 32-bit indices reach them all


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is a Python or NumPy integer; booleans are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_flag(name: str, value: object) -> None:
    """Check that an option is True or False."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} is {value!r}; expected True or False")


def check_count(name: str, value: object, minimum: int = 1, maximum: int | None = None) -> int:
    """Return a Python or NumPy integer option as an int.

    Raises
    ------
    ArgumentTypeError
        If the value is not an integer.
    ArgumentError
        If the value is below `minimum` or above `maximum`.

    Examples
    --------
    >>> check_count("batch_size", np.int64(100))
    100
    >>> check_count("batch_size", 0)
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: batch_size is 0; expected an int, 1 or more
    """
    if isinstance(value, Deferred):  # In a captured step, seeds are drawn later, from the allowed range.
        seed: Any = value
        return seed
    wanted = f"an int, {minimum} or more" if maximum is None else f"an int from {minimum} to {maximum}"
    if not is_integer(value):
        raise ArgumentTypeError(f"{name} is {value!r}; expected {wanted}")
    if value < minimum or (maximum is not None and value > maximum):
        raise ArgumentError(f"{name} is {value}; expected {wanted}")
    return int(value)


def check_counts(name: str, values: object) -> list[int]:
    """Return a sequence of Python or NumPy integers, each 1 or more, as a list of ints.

    Examples
    --------
    >>> check_counts("widths", (64, 0))
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: widths[1] is 0; expected an int, 1 or more
    """
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str | bytes):
        raise ArgumentTypeError(f"{name} is {values!r}; expected a sequence of ints, each 1 or more")
    return [check_count(f"{name}[{position}]", value) for position, value in enumerate(values)]


def _number(name: str, value: object, wanted: str, fits: Callable[[Any], bool]) -> float:
    """Return a numeric option as a Python float, which changes no array's dtype."""
    if isinstance(value, bool) or not isinstance(value, (float, int, Real)):
        raise ArgumentTypeError(f"{name} is {value!r}; expected {wanted}")
    if not fits(value):
        raise ArgumentError(f"{name} is {value!r}; expected {wanted}")
    return float(value)


def check_fraction(name: str, value: object) -> float:
    """Return a number from 0 to 1 as a float."""
    return _number(name, value, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def _is_finite_and_nonnegative(value: Any) -> bool:
    try:
        return bool(value >= 0) and isfinite(value)
    except OverflowError:  # an int of hundreds of digits
        return False


def check_nonnegative(name: str, value: object) -> float:
    """Return a finite number, 0 or more, as a float.

    Examples
    --------
    >>> check_nonnegative("reg", float("nan"))
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: reg is nan; expected a finite number, 0 or more
    """
    return _number(name, value, "a finite number, 0 or more", _is_finite_and_nonnegative)


def check_positive(name: str, value: object) -> float:
    """Return a finite number above 0 as a float."""
    wanted = "a finite number above 0"
    return _number(name, value, wanted, lambda value: _is_finite_and_nonnegative(value) and value > 0)


def check_probability(name: str, value: object) -> float:
    """Return a probability of keeping an element as a float; masks come from 32-bit hashes, so none is smaller."""
    return _number(name, value, "a probability from 2**-32 to 1", lambda value: 2**-32 <= value <= 1)


def check_eps(eps: object) -> float:
    """Return the number added to a variance as a float; float32 can hold it and its inverse."""
    return _number("eps", eps, "a number from 1e-30 to 1e30", lambda value: 1e-30 <= value <= 1e30)


def check_pair(name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    """Return an integer or a (height, width) pair of integers as a pair of ints, each `minimum` or more."""
    pair: object = (value, value) if is_integer(value) else value
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(is_integer, pair)):
        raise ArgumentTypeError(f"{name} is {value!r}; expected an int or a pair of ints (height, width)")
    height, width = map(int, pair)
    if min(height, width) < minimum:
        raise ArgumentError(f"{name} is {value!r}; expected {minimum} or more")
    if max(height, width) > MOST_PIXELS:
        raise ArgumentError(f"{name} is {value!r}; expected {MOST_PIXELS} or less")
    return height, width


def check_choice(name: str, word: str, words: Collection[str]) -> None:
    """Raise ArgumentError unless an option is one of the words.

    Examples
    --------
    >>> check_choice("sampling", "all", ("replacement", "epoch"))
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: sampling is 'all'; expected replacement or epoch
    """
    if not isinstance(word, str) or word not in words:
        raise ArgumentError(f"{name} is {word!r}; expected {' or '.join(words)}")

"""Conversion of the arrays and options that notebooks pass to those that `xpconv.layers` takes."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import array_api_compat
import numpy as np

from xpconv import cs231n
from xpconv._validation import is_integer
from xpconv.backend import Array, backend_of
from xpconv.backend._array import check_no_pair
from xpconv.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "cast_floats",
    "cast_gradient",
    "draw_mask",
    "keep_probability",
    "l2_penalty",
    "p_means_drop",
    "plain_number",
    "read_options",
]


def cast_floats(like: Array | None = None, /, **arrays: Array | None) -> tuple[Any, ...]:
    """Return the arrays as NumPy arrays with the dtype of `like`, or else of the first one; integers become float64."""
    for name, a in arrays.items():
        check_no_pair(name, a)
        if a is not None and array_api_compat.is_array_api_obj(a) and not isinstance(a, np.ndarray | np.generic):
            raise ArgumentTypeError(
                f"{name} is on {backend_of(a)}; the course's functions take NumPy arrays: "
                f"pass to_host({name}), or use the function of xpconv.layers"
            )
    dtype = np.asarray(next(iter(arrays.values())) if like is None else like).dtype
    if dtype not in (np.float32, np.float64):
        dtype = np.dtype(np.float64)
    return tuple(None if a is None else np.asarray(a, dtype=dtype) for a in arrays.values())


def cast_gradient(dout: Array, like: Array | None = None) -> Any:
    """Return the upstream gradient as a NumPy array with the dtype of `like`, or else its own."""
    return cast_floats(like, dout=dout)[0]


def read_options(name: str, param: Mapping[str, Any], *keys: str) -> tuple[Any, ...]:
    """Return the values of the keys that a notebook's dict of options must have."""
    missing = [key for key in keys if key not in param]
    if missing:
        raise ArgumentError(
            f"{name} is {param!r}, without {', '.join(map(repr, missing))}; "
            f"expected the keys {', '.join(map(repr, keys))}"
        )
    return tuple(int(v) if isinstance(v, np.integer) else v for v in (param[key] for key in keys))


def plain_number(value: Any) -> Any:
    """Return an array of one element as a number, and anything else unchanged."""
    return value.item() if isinstance(value, np.ndarray) and value.size == 1 else value


def p_means_drop() -> bool:
    """Return whether dropout's p is the probability of dropping a value, as in editions until 2017."""
    return _edition_is_until(2017)


def l2_penalty(W: np.ndarray, reg: float) -> tuple[float, Any]:
    """Return ``reg * sum(W * W)`` and its gradient; editions until 2016 of assignment 1 halve both."""
    weight = reg / 2 if _edition_is_until(2016) else reg
    return weight * float(np.sum(W * W)), 2 * weight * W


def _edition_is_until(year: int) -> bool:
    edition = cs231n.edition
    if edition is not None and not is_integer(edition):
        raise ArgumentTypeError(f"xpconv.cs231n.edition is {edition!r}; expected a year such as 2017, or None")
    return edition is not None and edition <= year


def keep_probability(name: str, p: Any, *, means_drop: bool) -> float:
    """Return the probability of keeping a value, which dropout's option gives or its complement."""
    p = plain_number(p)
    if not isinstance(p, Real):
        raise ArgumentTypeError(f"{name} is {p!r}; expected a probability from 0 to 1")
    probability = float(p)
    if means_drop:
        if not 0 <= probability < 1:
            raise ArgumentError(
                f"{name} is {p!r}; expected the probability of dropping a value, at least 0 and below 1"
            )
        return 1 - probability
    if not 0 < probability <= 1:
        raise ArgumentError(
            f"{name} is {p!r}; expected the probability of keeping a value, above 0 and at most 1 (in the notebooks "
            "of 2016 and 2017 it is that of dropping one; for these set xpconv.cs231n.edition = 2017)"
        )
    return probability


def draw_mask(shape: tuple[int, ...], keep_prob: float, seed: int | None) -> np.ndarray:
    """Draw which elements dropout keeps, from NumPy's global state as the course does; `seed` resets that first."""
    if seed is not None:
        np.random.seed(seed)
    return np.asarray(np.random.rand(*shape) < keep_prob)

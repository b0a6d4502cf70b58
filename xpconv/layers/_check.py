"""Checks of arguments that all layers share; each error names the argument, its value and what to do."""

from collections.abc import Callable, Sequence
from numbers import Real
from types import EllipsisType
from typing import Any

from xpconv.backend import Array, array_namespace, on_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.primitives.windows import output_size

__all__ = ["check_arrays", "check_backward", "check_cache", "check_count", "check_eps", "check_flag",
           "check_gradient_shape", "check_labels", "check_probability", "check_shape", "check_share", "pair",
           "window_output"]

MOST_PIXELS = 2**31 - 1  # of a padded image: what 32-bit indices reach


def check_arrays(**arrays: Array) -> Any:
    """Check that the arrays are of one library, device and real floating dtype; return their namespace.

    A bias `b` may be None.
    """
    for name, a in arrays.items():
        if a is None and name != "b":
            raise ArgumentTypeError(f"{name} is None; expected an array")
    xp = array_namespace(**arrays)
    (first, a), *rest = ((name, a) for name, a in arrays.items() if a is not None)
    if a.dtype not in (xp.float32, xp.float64):
        raise ArgumentTypeError(f"{first} has dtype {a.dtype}; expected float32 or float64: "
                                f"pass xp.astype({first}, xp.float32)")
    for name, b in rest:
        if b.dtype != a.dtype:
            raise ArgumentTypeError(f"{first} has dtype {a.dtype} but {name} has dtype {b.dtype}: "
                                    f"cast one of them, as in xp.astype({name}, {first}.dtype)")
    return xp


def check_shape(name: str, array: Array, shape: Sequence[int | str | EllipsisType]) -> None:
    """Check an array's shape against numbers and, where any size will do, letters; no size may be 0.

    A last ``...`` stands for any number of further sizes.
    """
    if shape and shape[-1] is ...:
        shape = [*shape[:-1], *("..." for _ in array.shape[len(shape) - 1:])]
    fits = len(array.shape) == len(shape) and all(
        size == want if isinstance(want, int) else size > 0 for size, want in zip(array.shape, shape, strict=True))
    if not fits:
        wanted = f"({', '.join(str(s) for s in shape)}{',' if len(shape) == 1 else ''})"
        empty = " and none of its sizes 0" if 0 in array.shape else ""
        raise ArgumentError(f"{name} has shape {tuple(array.shape)}; expected {wanted}{empty}")


def check_gradient_shape(dout: Array, shape: Sequence[int]) -> None:
    """Check that the upstream gradient has the shape of the layer's output."""
    if tuple(dout.shape) != tuple(shape):
        raise ArgumentError(f"dout has shape {tuple(dout.shape)}; expected the shape of the layer's output, "
                            f"{tuple(shape)}")


def check_cache(cache: Any, *kinds: type) -> None:
    """Check that a cache is of the kind that the forward pass returns, or of those of a sandwich's layers."""
    parts = cache if len(kinds) > 1 else (cache,)
    if not isinstance(parts, tuple) or len(parts) != len(kinds) or not all(map(isinstance, parts, kinds)):
        wanted = " and ".join(kind.__name__ for kind in kinds)
        raise ArgumentTypeError(f"cache is a {type(cache).__name__}; expected the {wanted} that the forward pass "
                                "returned")


def check_backward(dout: Array, cache: Any, kind: type) -> Any:
    """Check the arguments of a backward pass whose output has the shape of its cache's x; return their namespace."""
    check_cache(cache, kind)
    xp = check_arrays(dout=dout, x=cache.x)
    check_gradient_shape(dout, cache.x.shape)
    return xp


def check_flag(name: str, value: object) -> None:
    """Check that an option is True or False."""
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} is {value!r}; expected True or False")


def check_count(name: str, value: object) -> None:
    """Check that an option is an int of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{name} is {value!r}; expected an int")
    if value < 1:
        raise ArgumentError(f"{name} is {value}; expected 1 or more")


def _number(name: str, value: object, wanted: str, fits: Callable[[Any], bool]) -> float:
    """Check an option that is a number; return it as Python's float, which changes no array's dtype."""
    if isinstance(value, bool) or not isinstance(value, (float, int, Real)):
        raise ArgumentTypeError(f"{name} is {value!r}; expected {wanted}")
    if not fits(value):
        raise ArgumentError(f"{name} is {value!r}; expected {wanted}")
    return float(value)


def check_share(name: str, value: object) -> float:
    """Check a part of a whole."""
    return _number(name, value, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def check_probability(name: str, value: object) -> float:
    """Check the probability of what must happen at times."""
    return _number(name, value, "a probability above 0 and at most 1", lambda value: 0 < value <= 1)


def check_eps(eps: object) -> float:
    """Check what is added to a variance: small or large, float32 has a place for it and for its inverse."""
    return _number("eps", eps, "a number from 1e-30 to 1e30", lambda value: 1e-30 <= value <= 1e30)


def pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """Return an int or a (height, width) pair of ints as a pair; each must be at least `least`."""
    both = (value, value) if isinstance(value, int) else value
    if (isinstance(value, bool) or not isinstance(both, Sequence) or len(both) != 2
            or not all(isinstance(v, int) for v in both)):
        raise ArgumentTypeError(f"{name} is {value!r}; expected an int or a pair of ints (height, width)")
    if min(both) < least:
        raise ArgumentError(f"{name} is {value!r}; expected {least} or more")
    if max(both) > MOST_PIXELS:
        raise ArgumentError(f"{name} is {value!r}; expected {MOST_PIXELS} or less")
    return both[0], both[1]


def window_output(shape: Sequence[int], size: int | Sequence[int], stride: int | Sequence[int],
                  padding: int | Sequence[int]) -> tuple[int, int]:
    """Check that a window fits on the padded images (..., H, W); return how many do, down and across."""
    size, stride, padding = pair("size", size, 1), pair("stride", stride, 1), pair("padding", padding, 0)
    for axis, extent, k, p in zip(("height", "width"), shape[-2:], size, padding, strict=True):
        if k > extent + 2 * p:
            raise ArgumentError(f"the window's {axis} is {k} but the padded image's is {extent} + 2*{p}: "
                                "take a smaller window or more padding")
    if (shape[-2] + 2 * padding[0]) * (shape[-1] + 2 * padding[1]) > MOST_PIXELS:
        raise ArgumentError(f"padding is {padding}; expected less, since with it an image has at most {MOST_PIXELS} "
                            "pixels")
    return output_size((shape[-2], shape[-1]), size, stride, padding)


def check_labels(y: Array, N: int, C: int, xp: Any) -> None:
    """Check that `y` holds N integer labels; their range only where that costs no wait for a device."""
    if y is None:
        raise ArgumentTypeError("y is None; expected an array of integer labels")
    if not xp.isdtype(y.dtype, "integral"):
        raise ArgumentTypeError(f"y has dtype {y.dtype}; expected integer labels: pass xp.astype(y, xp.int64)")
    check_shape("y", y, (N,))
    if not on_host(y):
        return
    least, largest = (int(limit(xp.astype(y, xp.int64))) for limit in (xp.min, xp.max))  # torch has few for uint16
    if least < 0 or largest >= C:
        raise ArgumentError(f"y has labels from {least} to {largest}; expected 0 to {C - 1}, "
                            f"one for each of the {C} columns of x")

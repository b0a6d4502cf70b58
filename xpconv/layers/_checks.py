"""Argument checks that all layers share. Each error names the argument, its value and what to do."""

from collections.abc import Sequence
from math import prod
from types import EllipsisType
from typing import Any, TypeAlias

from xpconv._validation import MOST_PIXELS, check_pair, is_integer
from xpconv.backend import Array, array_namespace, library_of, on_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.ops.windows import Pair, Sides, Window

__all__ = [
    "Padding",
    "check_arrays",
    "check_backward",
    "check_cache",
    "check_channels_first",
    "check_gradient_shape",
    "check_labels",
    "check_probabilities",
    "check_shape",
    "label_hint",
    "make_window",
    "window_output",
]

Padding: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]] | str
_PADDINGS = "an int, a pair of ints (height, width) or two pairs of ints ((top, bottom), (left, right))"


def check_arrays(**arrays: Array | None) -> Any:
    """Check that the arrays have the same library, device and dtype, float32 or float64; return their namespace.

    On CuPy, activations, which come first, may be float16; parameters then are float32. Only a bias `b` may be None.
    """
    for name, a in arrays.items():
        if a is None and name != "b":
            raise ArgumentTypeError(f"{name} is None; expected an array")
    xp = array_namespace(**arrays)
    (first, a), *rest = ((name, a) for name, a in arrays.items() if a is not None)
    half = a.dtype == xp.float16 if library_of(a) == "cupy" else False
    if a.dtype not in (xp.float32, xp.float64) and not half:
        raise ArgumentTypeError(
            f"{first} has dtype {a.dtype}; expected float32 or float64: pass xp.astype({first}, xp.float32)"
        )
    for name, b in rest:
        if b.dtype != a.dtype and not (half and b.dtype == xp.float32):
            raise ArgumentTypeError(
                f"{first} has dtype {a.dtype} but {name} has dtype {b.dtype}: "
                f"cast one of them, as in xp.astype({name}, {first}.dtype)"
            )
    return xp


def check_shape(name: str, array: Array, shape: Sequence[int | str | EllipsisType]) -> None:
    """Check an array's shape against `shape`: an int is an exact size, a letter any size but 0.

    A trailing ``...`` stands for any number of further sizes.
    """
    if shape and shape[-1] is ...:
        shape = [*shape[:-1], *("..." for _ in array.shape[len(shape) - 1 :])]
    fits = len(array.shape) == len(shape) and all(
        size == want if isinstance(want, int) else size > 0 for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = f"({', '.join(str(s) for s in shape)}{',' if len(shape) == 1 else ''})"
        empty = " and none of its sizes 0" if 0 in array.shape else ""
        raise ArgumentError(f"{name} has shape {tuple(array.shape)}; expected {wanted}{empty}")


def check_channels_first(x: Array, channels: Sequence[int]) -> None:
    """Raise ArgumentError if images have their channels last, as in (N, H, W, C).

    `channels` is the part of a parameter's shape that holds C; it is empty if the parameter has too few axes.
    """
    shape, channels = tuple(x.shape), tuple(channels)
    if len(shape) > 2 and shape[1:2] != channels and shape[-1:] == channels:
        raise ArgumentError(
            f"x has shape {shape}, with its {shape[-1]} channels last (NHWC); expected them first, (N, C, H, W): "
            "pass xp.moveaxis(x, -1, 1)"
        )


def check_gradient_shape(dout: Array, shape: Sequence[int]) -> None:
    """Check that the upstream gradient has the shape of the layer's output."""
    if tuple(dout.shape) != tuple(shape):
        raise ArgumentError(
            f"dout has shape {tuple(dout.shape)}; expected the shape of the layer's output, {tuple(shape)}"
        )


def check_cache(cache: Any, kind: type) -> None:
    """Check that a cache has the type that the forward pass returns."""
    if not isinstance(cache, kind):
        raise ArgumentTypeError(
            f"cache is a {type(cache).__name__}; expected the {kind.__name__} that the forward pass returned"
        )


def check_backward(dout: Array, cache: Any, kind: type) -> Any:
    """Check the arguments of a backward pass whose `dout` has the shape of ``cache.x``; return their namespace."""
    check_cache(cache, kind)
    xp = check_arrays(dout=dout, x=cache.x)
    check_gradient_shape(dout, cache.x.shape)
    return xp


def make_window(
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
) -> Window:
    """Check the options of a sliding window, and return it with the padding of each side."""
    window = Window(
        check_pair("kernel_size", kernel_size, 1),
        check_pair("stride", stride, 1),
        dilation=check_pair("dilation", dilation, 1),
    )
    return window._replace(padding=_sides(padding, window.extent))


def _sides(padding: Padding, extent: Pair) -> Sides:
    """Return the padding ((top, bottom), (left, right)); "same" makes up for what the window takes at stride 1."""
    if isinstance(padding, str):
        if padding != "same":
            raise ArgumentError(f"padding is {padding!r}; expected 'same' or {_PADDINGS}")
        height, width = (((size - 1) // 2, size // 2) for size in extent)
        return height, width
    sizes: Any = padding
    if is_integer(sizes) or (isinstance(sizes, Sequence) and len(sizes) == 2 and all(map(is_integer, sizes))):
        top, left = check_pair("padding", sizes, 0)
        return (top, top), (left, left)
    if isinstance(sizes, Sequence) and len(sizes) == 2 and all(isinstance(pair, Sequence) for pair in sizes):
        height, width = (check_pair("padding", pair, 0) for pair in sizes)
        return height, width
    raise ArgumentTypeError(f"padding is {padding!r}; expected 'same' or {_PADDINGS}")


def window_output(shape: Sequence[int], window: Window) -> Pair:
    """Check that the window fits in the padded images (..., C, H, W); return the output's height and width."""
    if len(shape) < 3:
        raise ArgumentError(f"samples have shape {tuple(shape)}; expected images (C, H, W), as before any Affine layer")
    image = shape[-2], shape[-1]
    for axis, size, extent, sides in zip(("height", "width"), image, window.extent, window.padding, strict=True):
        if extent > size + sum(sides):
            raise ArgumentError(
                f"the window's {axis} is {extent} but the padded image's is {size + sum(sides)}: "
                f"take a smaller window or more padding (images are (C, H, W), here {tuple(shape[-3:])})"
            )
    if prod(window.padded_size(image)) > MOST_PIXELS:
        raise ArgumentError(
            f"padding is {window.padding}; expected less, since with it an image has at most {MOST_PIXELS} pixels"
        )
    return window.output_size(image)


def label_hint(name: str, y: Array) -> str:
    """Return what to do with labels that have two axes, for the end of an error; "" for other shapes."""
    if len(y.shape) != 2:
        return ""
    return f": pass {name}[:, 0]" if y.shape[1] == 1 else f": if they are one-hot, pass xp.argmax({name}, axis=1)"


def check_labels(y: Array, N: int, C: int, xp: Any) -> None:
    """Check that `y` holds N integer labels, and their range if `y` is in host memory; never wait for a device."""
    if y is None:
        raise ArgumentTypeError("y is None; expected an array of integer labels")
    if tuple(y.shape) != (N,):
        raise ArgumentError(f"y has shape {tuple(y.shape)}; expected integer labels ({N},){label_hint('y', y)}")
    if not xp.isdtype(y.dtype, "integral"):
        raise ArgumentTypeError(f"y has dtype {y.dtype}; expected integer labels: pass xp.astype(y, xp.int64)")
    if not on_host(y):
        return
    least, largest = (
        int(limit(xp.astype(y, xp.int64))) for limit in (xp.min, xp.max)
    )  # torch has no min or max for uint16
    if least < 0 or largest >= C:
        raise ArgumentError(
            f"y has labels from {least} to {largest}; expected 0 to {C - 1}, one for each of the {C} columns of x"
        )


def check_probabilities(x: Array, y: Array) -> None:
    """Check that `y` has the shape and dtype of the scores `x`, and that rows in host memory add up to 1."""
    xp = check_arrays(x=x, y=y)
    if tuple(y.shape) != tuple(x.shape):
        raise ArgumentError(
            f"y has shape {tuple(y.shape)}; expected the probability of each class, {tuple(x.shape)}, as x has, "
            f"or integer labels ({x.shape[0]},)"
        )
    if not on_host(y):
        return
    least, error = float(xp.min(y)), float(xp.max(xp.abs(xp.sum(y, axis=1) - 1)))
    if not (least >= 0 and error <= 1e-3):
        raise ArgumentError(
            f"y has a least value of {least:g}, and its rows add up to 1 within {error:g}; "
            "expected the probability of each class"
        )

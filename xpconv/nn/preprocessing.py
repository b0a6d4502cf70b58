"""What a model does to its input first."""

from dataclasses import dataclass, replace
from math import inf
from numbers import Real
from typing import Any

import array_api_compat

from xpconv._validation import check_choice
from xpconv.backend import Array, Backend
from xpconv.errors import ArgumentError, ArgumentTypeError

__all__ = ["RESIZES", "Preprocessing", "fits_samples", "on_device"]

RESIZES = ("crop", "squash", "strokes")
"""How an image file is fitted to a shape; `xpconv.data.images.read_image` explains it."""


@dataclass(frozen=True)
class Preprocessing:
    """What a model does to its input first: ``(x - mean) / std``, on its own device.

    Parameters
    ----------
    mean, std : number or array
        Broadcast against one sample: a whole mean image (C, H, W), one value a channel (C, 1, 1) or one value (). Both
        must be finite, and `std` above 0; a model checks them when it gets them.
    resize : {"crop", "squash", "strokes"}, optional
        How `xpconv.data.images.read_image` is to fit image files to the input shape. The model does not use it, but
        its file keeps it.
    typical : TypicalImages, optional
        What `xpconv.data.typical.measure_images` found in the training images; likewise only kept in the file.

    Examples
    --------
    >>> from xpconv.nn import TwoLayerNet
    >>> net = TwoLayerNet(
    ...     input_dim=64, rng=0, preprocessing=Preprocessing(mean=128.0, std=64.0)
    ... )
    >>> float(net.preprocessing.mean)
    128.0
    """

    mean: Array
    std: Array
    resize: str | None = None
    typical: Any = None


def fits_samples(shape: tuple[int, ...], input_shape: tuple[int, ...]) -> bool:
    """Return whether an array of a shape broadcasts to one sample without enlarging it.

    Examples
    --------
    >>> [
    ...     fits_samples(shape, (3, 32, 32))
    ...     for shape in [(), (3, 1, 1), (5, 1, 1), (1, 3, 32, 32)]
    ... ]
    [True, True, False, False]
    """
    sizes = zip(shape[::-1], input_shape[::-1], strict=False)
    return len(shape) <= len(input_shape) and all(size in (1, wanted) for size, wanted in sizes)


def on_device(value: Preprocessing, backend: Backend, dtype: str, input_shape: tuple[int, ...]) -> Preprocessing:
    """Return a preprocessing with arrays of a dtype on a device, checked.

    Raises
    ------
    ArgumentTypeError
        If `value` is no Preprocessing, or the mean or the deviation is neither a number nor an array of numbers.
    ArgumentError
        If a value is not finite, a deviation is not above 0, or a shape does not broadcast to a sample.

    Examples
    --------
    >>> from xpconv import get_backend
    >>> on_device(
    ...     Preprocessing(mean=128, std=64), get_backend("numpy"), "float32", (3, 32, 32)
    ... ).std.dtype
    dtype('float32')
    """
    if not isinstance(value, Preprocessing):
        raise ArgumentTypeError(f"preprocessing is {value!r}; expected a Preprocessing(mean, std) or None")
    if value.resize is not None:
        check_choice("preprocessing.resize", value.resize, RESIZES)
    with backend.current():
        mean, std = (_checked(name, getattr(value, name), backend, dtype, input_shape) for name in ("mean", "std"))
    return replace(value, mean=mean, std=std)


def _checked(name: str, value: Any, backend: Backend, dtype: str, input_shape: tuple[int, ...]) -> Array:
    if array_api_compat.is_array_api_obj(value):
        kinds = ("bool", "integral", "real floating")
        if not array_api_compat.array_namespace(value).isdtype(value.dtype, kinds):
            raise ArgumentTypeError(f"preprocessing.{name} has dtype {value.dtype}; expected real numbers")
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentTypeError(f"preprocessing.{name} is {value!r}; expected a number or an array")
    else:
        value = _as_float(value)
    a, xp = backend.asarray(value, dtype), backend.xp
    if not fits_samples(tuple(a.shape), input_shape):
        raise ArgumentError(
            f"preprocessing.{name} has shape {tuple(a.shape)}; expected one that broadcasts to samples of shape "
            f"{input_shape}, such as ()"
        )
    if not bool(xp.all(xp.isfinite(a))):
        raise ArgumentError(f"preprocessing.{name} has NaN or infinite values; expected finite ones")
    if name == "std" and not bool(xp.all(a > 0)):
        raise ArgumentError(
            f"preprocessing.std has values that {dtype} rounds to 0, or below 0; expected values above 0: "
            "take 1 where pixels are constant"
        )
    return a


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # an int of hundreds of digits
        return inf

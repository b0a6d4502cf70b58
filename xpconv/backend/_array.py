"""The type of arrays, and functions that find an array's library and location."""

import os
from collections.abc import Mapping
from typing import Any, Protocol

import array_api_compat
import numpy as np

from xpconv.backend._probes import check_not_forked, note_cuda_process
from xpconv.errors import ArgumentTypeError, DeviceMismatchError

__all__ = ["Array", "array_namespace", "check_no_pair", "copy_arrays", "library_of", "on_host"]


class Array(Protocol):
    """An array of any supported library, as the Python array API describes it; docstrings state its shape.

    The type is for checkers such as mypy: ``isinstance`` does not work with it.

    Examples
    --------
    >>> def double(x: Array) -> Array:
    ...     return 2 * x
    >>> double(np.ones(2))
    array([2., 2.])
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def device(self) -> Any: ...
    @property
    def T(self) -> "Array": ...
    def __getitem__(self, key: Any, /) -> "Array": ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...
    def __float__(self) -> float: ...
    def __int__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def __neg__(self) -> "Array": ...
    def __pos__(self) -> "Array": ...
    def __abs__(self) -> "Array": ...
    def __invert__(self) -> "Array": ...
    def __add__(self, other: Any, /) -> "Array": ...
    def __radd__(self, other: Any, /) -> "Array": ...
    def __sub__(self, other: Any, /) -> "Array": ...
    def __rsub__(self, other: Any, /) -> "Array": ...
    def __mul__(self, other: Any, /) -> "Array": ...
    def __rmul__(self, other: Any, /) -> "Array": ...
    def __truediv__(self, other: Any, /) -> "Array": ...
    def __rtruediv__(self, other: Any, /) -> "Array": ...
    def __floordiv__(self, other: Any, /) -> "Array": ...
    def __rfloordiv__(self, other: Any, /) -> "Array": ...
    def __mod__(self, other: Any, /) -> "Array": ...
    def __rmod__(self, other: Any, /) -> "Array": ...
    def __pow__(self, other: Any, /) -> "Array": ...
    def __rpow__(self, other: Any, /) -> "Array": ...
    def __and__(self, other: Any, /) -> "Array": ...
    def __rand__(self, other: Any, /) -> "Array": ...
    def __or__(self, other: Any, /) -> "Array": ...
    def __ror__(self, other: Any, /) -> "Array": ...
    def __xor__(self, other: Any, /) -> "Array": ...
    def __rxor__(self, other: Any, /) -> "Array": ...
    def __lshift__(self, other: Any, /) -> "Array": ...
    def __rlshift__(self, other: Any, /) -> "Array": ...
    def __rshift__(self, other: Any, /) -> "Array": ...
    def __rrshift__(self, other: Any, /) -> "Array": ...
    def __matmul__(self, other: Any, /) -> "Array": ...
    def __rmatmul__(self, other: Any, /) -> "Array": ...
    def __eq__(self, other: Any, /) -> "Array": ...  # type: ignore[override]
    def __ne__(self, other: Any, /) -> "Array": ...  # type: ignore[override]
    def __lt__(self, other: Any, /) -> "Array": ...
    def __le__(self, other: Any, /) -> "Array": ...
    def __gt__(self, other: Any, /) -> "Array": ...
    def __ge__(self, other: Any, /) -> "Array": ...


STRICT_CPU = "array_api_strict.Device('CPU_DEVICE')"  # the text of array_api_strict's default device


_numpy_namespace = array_api_compat.array_namespace(np.zeros(()))


def array_namespace(**arrays: Array | None) -> Any:
    """Return the namespace that all the named arrays belong to; None is ignored.

    Raises
    ------
    DeviceMismatchError
        If two arrays are of different libraries or on different devices.
    ArgumentTypeError
        If an argument is not an array.

    Examples
    --------
    >>> xp = array_namespace(x=np.ones(3), b=None)
    >>> float(xp.sum(xp.ones(3)))
    3.0
    """
    if all(type(a) is np.ndarray or a is None for a in arrays.values()):
        return _numpy_namespace
    first = None
    for name, array in arrays.items():
        if array is None:
            continue
        library, xp = _namespaces.get(type(array)) or _look_up(name, array)
        location = library, "cpu" if library == "numpy" else array.device
        if first is None:
            first, owner, namespace = location, name, xp
        elif location != first:
            raise DeviceMismatchError(
                f"{owner} is on {_describe(first)} but {name} is on {_describe(location)}: "
                f"move one of them, as in {name} = "
                f"xpconv.backend.backend_of({owner}).asarray({name})"
            )
    return namespace


_NOT_ARRAYS = np.generic, np.ma.MaskedArray, np.matrix  # NumPy types whose operators differ from those of arrays
_namespaces: dict[type, tuple[str, Any]] = {}  # the library and the namespace of each type of array seen so far
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_namespaces.clear)  # A forked process must check each array type again.


def check_no_pair(name: str, value: Any) -> None:
    """Raise ArgumentTypeError if a value is the pair that a forward pass or a loss returns, not one of its parts."""
    if not isinstance(value, tuple) or len(value) != 2:
        return
    shapes = [getattr(part, "shape", None) for part in value]
    if any(shapes) and shapes[0] != shapes[1]:  # Two arrays of one shape may be a batch of two samples.
        kinds = " and ".join(type(part).__name__ for part in value)
        raise ArgumentTypeError(
            f"{name} is a pair of {kinds}; expected an array: a forward pass returns (out, cache) and a loss "
            "(loss, dx), so pass one part of that pair"
        )


def _look_up(name: str, array: Any) -> tuple[str, Any]:
    check_no_pair(name, array)
    if not array_api_compat.is_array_api_obj(array) or isinstance(array, _NOT_ARRAYS):
        raise ArgumentTypeError(
            f"{name} is a {type(array).__name__}; expected an array: pass get_backend().asarray({name})"
        )
    library = library_of(array)
    if library == "cupy":
        check_not_forked()
        note_cuda_process()
    _namespaces[type(array)] = library, array_api_compat.array_namespace(array)
    return _namespaces[type(array)]


def _describe(location: tuple[str, Any]) -> str:
    library, device = location
    return f"{library} ({device})"


def library_of(x: Array) -> str:
    """Return the name of the array library that `x` belongs to, such as ``numpy``.

    Examples
    --------
    >>> library_of(np.ones(3))
    'numpy'
    """
    return "numpy" if isinstance(x, np.ndarray) else type(x).__module__.partition(".")[0]


def copy_arrays(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return a copy of each array, in its library and on its device.

    Examples
    --------
    >>> arrays = {"b1": np.zeros(2)}
    >>> copy_arrays(arrays)["b1"] is arrays["b1"]
    False
    """
    return {name: array_namespace(**{name: a}).asarray(a, copy=True) for name, a in arrays.items()}


def on_host(x: Array) -> bool:
    """Return whether `x` is in host memory, where reading it needs no wait for a device.

    Examples
    --------
    >>> on_host(np.ones(3))
    True
    """
    return isinstance(x, np.ndarray) or str(array_api_compat.device(x)) in ("cpu", STRICT_CPU)

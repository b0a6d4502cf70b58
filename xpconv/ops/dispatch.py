"""The table of operations: a portable version of each, and accelerated versions for NumPy and CuPy.

The portable version uses only the array API standard, so every library can run it (`operation`). An accelerated version
is registered for one library under the same name (`accelerate`). ``XPCONV_ACCELERATE=0`` turns all of these off.
"""

import importlib
import os
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

from xpconv.backend import Array, library_of

__all__ = ["accelerate", "accelerated_versions", "operation", "portable"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_accelerated: dict[tuple[str, str], Callable[..., Any]] = {}  # by operation and library
_portable: dict[str, Callable[..., Any]] = {}
_MODULES = {  # Modules that register accelerated versions; imported when an operation gets the library's first array.
    "numpy": ("_tiles", "_conv", "_elementwise", "_norm", "_pool", "_windows"),
    "cupy": ("_conv", "_elementwise", "_finite", "_gemm", "_loss", "_norm", "_pool", "_windows"),
}


def operation(function: _Function) -> _Function:
    """Register `function` as the portable version of the operation that has its name.

    The returned function calls the accelerated version for the library of its first argument, or `function` if there
    is none.

    Examples
    --------
    >>> import numpy as np
    >>> @operation
    ... def double(x):
    ...     return 2 * x
    >>> double(np.ones(2))
    array([2., 2.])
    """
    name = function.__name__
    _portable[name] = function

    @wraps(function)
    def dispatch(x: Array, *args: Any, **kwargs: Any) -> Any:
        accelerated = _find(name, library_of(x)) if os.environ.get("XPCONV_ACCELERATE") != "0" else None
        return (accelerated or function)(x, *args, **kwargs)

    return dispatch  # type: ignore[return-value]


def accelerate(library: str) -> Callable[[_Function], _Function]:
    """Register the decorated function as a library's version of the operation that has its name.

    Parameters
    ----------
    library : str
        The library's name, as `xpconv.backend.library_of` returns it.

    Examples
    --------
    >>> @accelerate("some_library")
    ... def relu(x):
    ...     return x.clip(0), x > 0
    >>> portable, accelerated = accelerated_versions("some_library")["relu"]
    >>> accelerated is relu
    True
    """

    def register(function: _Function) -> _Function:
        _accelerated[function.__name__, library] = function
        return function

    return register


def portable(name: str) -> Callable[..., Any]:
    """Return the portable version of an operation.

    Examples
    --------
    >>> import numpy as np
    >>> portable("relu")(np.array([-1.0, 2.0]))[0]
    array([0., 2.])
    """
    return _portable[name]


def accelerated_versions(library: str) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Return the portable and the accelerated version of each operation that has both for a library, by name.

    Examples
    --------
    >>> "relu" in accelerated_versions("numpy"), accelerated_versions("array_api_strict")
    (True, {})
    """
    _find("", library)
    return {
        name: (_portable[name], accelerated) for (name, owner), accelerated in _accelerated.items() if owner == library
    }


def _find(name: str, library: str) -> Callable[..., Any] | None:
    _import_versions(library)
    return _accelerated.get((name, library))


@lru_cache
def _import_versions(library: str) -> None:
    for module in _MODULES.get(library, ()):
        importlib.import_module(f"xpconv.ops.{library}.{module}")

"""The few array operations that the array-API standard lacks, and the table of their fast versions.

A primitive is written once in standard array API, which every library runs. A library may have a faster
version, registered with `accelerate`; ``XPCONV_ACCELERATE=0`` turns all of those off.
"""

import importlib
import os
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

from xpconv.backend import Array, library_of

__all__ = ["accelerate", "accelerated_versions", "portable", "primitive"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_fast: dict[tuple[str, str], Callable[..., Any]] = {}
_portable: dict[str, Callable[..., Any]] = {}
_modules = {"numpy": "xpconv.primitives.cpu", "cupy": "xpconv.primitives.cuda"}
_load = lru_cache(importlib.import_module)


def primitive(function: _Function) -> _Function:
    """Make `function` the portable version of the primitive of its name; it dispatches on its first argument."""
    name = function.__name__
    _portable[name] = function

    @wraps(function)
    def dispatch(x: Array, *args: Any, **kwargs: Any) -> Any:
        fast = _lookup(name, library_of(x)) if os.environ.get("XPCONV_ACCELERATE") != "0" else None
        return (fast or function)(x, *args, **kwargs)

    return dispatch  # type: ignore[return-value]


def accelerate(name: str, library: str) -> Callable[[_Function], _Function]:
    """Register the decorated function as the fast version of a primitive for one library."""
    def register(function: _Function) -> _Function:
        _fast[name, library] = function
        return function

    return register


def portable(name: str) -> Callable[..., Any]:
    """Return the portable version of a primitive."""
    return _portable[name]


def accelerated_versions(library: str) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Return the portable and the fast version of every primitive that `library` accelerates, by name."""
    _lookup("", library)
    return {name: (_portable[name], fast) for (name, owner), fast in _fast.items() if owner == library}


def _lookup(name: str, library: str) -> Callable[..., Any] | None:
    if library in _modules:
        _load(_modules[library])
    return _fast.get((name, library))

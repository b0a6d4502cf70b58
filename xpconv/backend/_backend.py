"""Backends, which are an array library together with a device, and their selection."""

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, wraps
from threading import Lock
from typing import Any, TypeVar

import array_api_compat
import numpy as np

from xpconv._validation import check_flag
from xpconv.backend._array import STRICT_CPU, Array, array_namespace, check_no_pair, library_of
from xpconv.backend._probes import PROBES, check_not_forked
from xpconv.errors import ArgumentError, ArgumentTypeError, BackendUnavailableError, DeviceMismatchError

__all__ = ["LIBRARIES", "Backend", "backend_of", "get_backend", "on_its_device", "to_host", "use_backend"]

LIBRARIES = tuple(PROBES)
"""The libraries that a backend may name."""

_Method = TypeVar("_Method", bound=Callable[..., Any])
_selected: ContextVar["Backend | None"] = ContextVar("xpconv_backend", default=None)
_everywhere: tuple[tuple["Backend"], ...] = ()  # One entry per open block with everywhere=True, in order of entry.
_everywhere_lock = Lock()


@dataclass(frozen=True)
class Backend:
    """An array library together with one of its devices.

    Parameters
    ----------
    library : str
        One of `LIBRARIES`.
    device : object
        The device in the library's own terms.

    Examples
    --------
    >>> backend = get_backend("numpy")
    >>> x = backend.asarray([[1, 2], [3, 4]], dtype="float32")
    >>> backend.to_host(backend.xp.sum(x)).item()
    10.0
    """

    library: str
    device: Any

    @property
    def xp(self) -> Any:
        """The library's array-API namespace."""
        return _namespace(self.library)

    def __hash__(self) -> int:
        """Return the hash of the text, since some libraries' devices cannot be hashed."""
        return hash(str(self))

    def __str__(self) -> str:
        """Return the text that selects this backend, such as ``cupy:1``."""
        if self.library == "numpy":
            return "numpy"
        if self.library == "cupy":
            return f"cupy:{self.device.id}"
        if self.library == "array_api_strict":
            return self.library if str(self.device) == STRICT_CPU else f"{self.library}:{_strict_name(self.device)}"
        return f"{self.library}:{self.device}"

    def dtype(self, name: str) -> Any:
        """Return the library's dtype with a name, such as ``float32``."""
        try:
            return getattr(self.xp, name)
        except (AttributeError, TypeError):
            raise ArgumentError(f"dtype is {name!r}, which {self.library} does not have") from None

    def asarray(self, x: Any, dtype: str | None = None) -> Array:
        """Return `x` as an array on this backend's device, cast to the dtype with that name.

        If `x` already has this device and dtype, `x` itself is returned, not a copy.
        """
        if isinstance(x, np.ndarray) or not array_api_compat.is_array_api_obj(x):
            return self._from_host(np.asarray(x), dtype)
        if library_of(x) != self.library:
            return self._from_host(to_host(x), dtype)
        if array_api_compat.device(x) != self.device:
            x = array_api_compat.to_device(x, self.device)
        return x if dtype is None else self.xp.astype(x, self.dtype(dtype), copy=False)

    def _from_host(self, x: np.ndarray, dtype: str | None) -> Array:
        wanted = None if dtype is None else self.dtype(dtype)
        if self.library == "numpy":
            return x if wanted is None else x.astype(wanted, copy=False)
        if self.library == "cupy":
            check_not_forked()
        x = x.astype(x.dtype.newbyteorder("="), copy=False)
        if not hasattr(self.xp, x.dtype.name):  # a dtype that the library lacks, such as float16 in array_api_strict
            x = x.astype(dtype or ("float64" if x.dtype.itemsize > 4 else "float32"))
        if self.library == "torch":  # torch shares host memory, refuses negative strides and warns of read-only arrays
            x = np.array(x, order="C", copy=True)
        moved = self.xp.asarray(x, device=self.device)
        return moved if wanted is None else self.xp.astype(moved, wanted, copy=False)

    def upload(self, name: str, x: Any, dtype: str | None = None) -> Array:
        """Return `asarray(x, dtype)`, or raise an error that names `x` if it is on another device."""
        check_no_pair(name, x)
        x = np.asarray(x) if isinstance(x, list | tuple) else x
        if not isinstance(x, np.ndarray) and backend_of(x) != self:
            raise DeviceMismatchError(
                f"{name} is on {backend_of(x)} but the model is on {self}: pass "
                f"get_backend({str(self)!r}).asarray({name}) or NumPy arrays"
            )
        return self.asarray(x, dtype)

    def to_host(self, x: Array) -> np.ndarray:
        """Wait until `x` is computed and return it as a NumPy array.

        If `x` is a NumPy array, `x` itself is returned, not a copy.
        """
        if isinstance(x, np.ndarray):
            return x
        array: Any = x  # `Array` does not declare the methods of each library
        if self.library == "cupy":
            check_not_forked()
            return np.asarray(array.get())
        if self.library == "torch":
            return np.asarray(array.detach().cpu().numpy())
        if self.library == "array_api_strict":
            return np.asarray(self.xp.asarray(x, device=self.xp.Device(), copy=True))
        return np.asarray(x)

    @contextmanager
    def current(self, stream: Any = None) -> Iterator[None]:
        """Make this device the current one of its library inside a ``with`` block.

        Only CuPy has a current device. If `stream` is given, CuPy's work inside the block goes to that stream.
        """
        if self.library != "cupy":
            yield
            return
        check_not_forked()
        with importlib.import_module("cupy").cuda.Device(self.device.id), stream or nullcontext():
            yield

    def stream(self) -> Any:
        """Return the CUDA stream that this thread's work goes to; None for libraries other than CuPy."""
        if self.library != "cupy":
            return None
        with self.current():
            return importlib.import_module("cupy").cuda.get_current_stream()

    def synchronize(self) -> None:
        """Wait until the device has finished all work given to it."""
        if self.library == "cupy":
            self.device.synchronize()
        elif self.library == "torch" and self.device.type == "cuda":
            importlib.import_module("torch").cuda.synchronize(self.device)


def on_its_device(method: _Method) -> _Method:
    """Make a method compute on the device of its object's ``backend``.

    Examples
    --------
    >>> class Ones:
    ...     backend = get_backend("numpy")
    ...
    ...     @on_its_device
    ...     def make(self, count):
    ...         return self.backend.xp.ones(count)
    >>> Ones().make(2)
    array([1., 1.])
    """

    @wraps(method)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.backend.current():
            return method(self, *args, **kwargs)

    return inside  # type: ignore[return-value]


@contextmanager
def use_backend(spec: "str | Backend", *, everywhere: bool = False) -> Iterator[Backend]:
    """Select a backend for the code inside a ``with`` block.

    Other threads do not see the selection, even those started inside the block, unless `everywhere` is True. Other
    processes never see it, such as joblib's default workers: call `use_backend` in the function that they run, or set
    the environment variable ``XP_BACKEND`` before they start.

    Parameters
    ----------
    spec : str or Backend
        As for `get_backend`.
    everywhere : bool
        Whether to select the backend in every thread of this process that is not inside a `use_backend` of its own.
        If several such blocks are open, threads outside all of them get the backend of the last one entered.

    Examples
    --------
    >>> with use_backend("numpy") as backend:
    ...     print(get_backend() is backend)
    True

    A pool of threads sees the selection only with ``everywhere=True``:

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with (
    ...     use_backend("array_api_strict", everywhere=True),
    ...     ThreadPoolExecutor() as pool,
    ... ):
    ...     print(pool.submit(get_backend).result())
    array_api_strict
    """
    check_flag("everywhere", everywhere)
    backend = get_backend(spec)
    token = _selected.set(backend)
    try:
        with _selected_everywhere(backend) if everywhere else nullcontext():
            yield backend
    finally:
        _selected.reset(token)


@contextmanager
def _selected_everywhere(backend: Backend) -> Iterator[None]:
    """Select a backend in threads without a selection of their own; blocks may end in any order."""
    global _everywhere
    mine = (backend,)
    with _everywhere_lock:
        _everywhere = (*_everywhere, mine)
    try:
        yield
    finally:
        with _everywhere_lock:
            _everywhere = tuple(entry for entry in _everywhere if entry is not mine)


def get_backend(spec: "str | Backend | None" = None) -> Backend:
    """Return the named backend, or the selected one.

    Parameters
    ----------
    spec : str or Backend, optional
        ``library`` or ``library:device``: ``numpy``, ``cupy``, ``cupy:1``, ``torch``, ``torch:cuda``,
        ``array_api_strict:device1``; or ``auto``, which is CuPy if that works here and NumPy otherwise.
        The default is the backend of the enclosing `use_backend`, else that of another thread's
        ``use_backend(..., everywhere=True)``, else that of the environment variable ``XP_BACKEND``, else NumPy.

    Raises
    ------
    BackendUnavailableError
        If the backend cannot run here; the text says what is missing and what to install.
    ArgumentError
        If no backend has that name.

    Examples
    --------
    >>> str(get_backend("numpy"))
    'numpy'
    """
    if isinstance(spec, Backend):
        return spec
    if spec is None:
        selected = _selected.get()
        if selected is not None:
            return selected
        if open_blocks := _everywhere:
            return open_blocks[-1][0]
        spec = os.environ.get("XP_BACKEND") or "numpy"
    if not isinstance(spec, str):
        raise ArgumentTypeError(f"backend is {spec!r}; expected a string such as 'cupy:0' or a Backend")
    if spec == "auto":
        try:
            return _find("cupy")
        except BackendUnavailableError as error:
            warnings.warn(f"backend auto: using numpy, since {error}", stacklevel=2)
            return _find("numpy")
    return _find(spec)


@lru_cache
def _find(spec: str) -> Backend:
    library, _, device = spec.partition(":")
    if library not in LIBRARIES:
        raise ArgumentError(
            f"backend is {spec!r}; expected auto or one of {', '.join(LIBRARIES)}, "
            "with a device after a colon if you choose one, as in cupy:1"
        )
    return Backend(library, PROBES[library](device or None))


def backend_of(x: Array) -> Backend:
    """Return the library and device of `x`.

    Examples
    --------
    >>> str(backend_of(np.ones(3)))
    'numpy'
    """
    array_namespace(x=x)
    return Backend(library_of(x), array_api_compat.device(x))


def to_host(x: Any) -> np.ndarray:
    """Return any array, number or nested list as a NumPy array, waiting for its device.

    Examples
    --------
    >>> to_host([1, 2]) + 1
    array([2, 3])
    """
    if isinstance(x, np.generic) or not array_api_compat.is_array_api_obj(x):
        return np.asarray(x)
    return backend_of(x).to_host(x)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_find.cache_clear)  # A forked process must probe backends again.


@lru_cache
def _namespace(library: str) -> Any:
    module = importlib.import_module(library)
    if library == "array_api_strict":
        return module
    return array_api_compat.array_namespace(module.zeros(()) if library != "cupy" else module.ndarray((1,)))


def _strict_name(device: Any) -> str:
    """Return the name in a text such as ``array_api_strict.Device('device1')``."""
    return repr(device).partition("'")[2].partition("'")[0]

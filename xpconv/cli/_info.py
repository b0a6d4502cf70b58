"""The environment: what a bug report needs to say about this machine."""

import importlib
import os
import platform
import warnings
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_info

from xpconv._version import __version__
from xpconv.backend import LIBRARIES, diagnose, get_backend, tf32_enabled
from xpconv.data.cifar10 import cache_folder
from xpconv.errors import XpconvError
from xpconv.ops.numpy._workers import num_threads
from xpconv.ops.tiling import workspace_bytes
from xpconv.training._capture import capture_obstacle

__all__ = ["environment"]


def environment() -> list[tuple[str, str]]:
    """Return pairs of a name and a text: versions, threads, backends, environment variables and the data folder.

    Examples
    --------
    >>> dict(environment())["numpy"] == np.__version__
    True
    """
    rows = [
        ("xpconv", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("numpy", np.__version__),
    ]
    rows += [
        ("BLAS", f"{library['internal_api']} {library['version']}, {library['num_threads']} threads")
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    rows += [("threads", _or_error(lambda: str(num_threads()))), ("workspace", _or_error(_workspace))]
    for library in LIBRARIES:
        found = diagnose(library)
        state = f"available, version {found.version}, " if found.available else "not available: "
        rows.append((f"backend {library}", state + found.detail))
        if library == "cupy" and found.available:
            rows.append(("matrix products", _or_error(_products)))
            rows.append(("captured steps", capture_obstacle(get_backend("cupy")) or "on"))
    rows.append(("selected backend", _or_error(_selected)))
    rows += [
        (name, value)
        for name, value in sorted(os.environ.items())
        if name == "XP_BACKEND" or name.startswith("XPCONV_")
    ]
    rows.append(("data cache", _or_error(lambda: str(cache_folder()))))
    return rows


def _or_error(describe: Callable[[], str]) -> str:
    try:
        return describe()
    except XpconvError as error:
        return f"error: {error}"


def _workspace() -> str:
    host, gpu = (f"{workspace_bytes(library) / 2**20:g} MiB" for library in ("numpy", "cupy"))
    return host if host == gpu else f"{host}, with CuPy {gpu}"


def _products() -> str:
    """Return which library multiplies CuPy's matrices, and whether TF32 is on."""
    library, text = importlib.import_module("xpconv.ops.cupy._gemm").load()
    if library is None:
        return f"by CuPy, without CUDA graphs, and with TF32 only if CUPY_TF32 is 1: {text}"
    return f"by cuBLAS {text}, TF32 {'on' if tf32_enabled() else 'off'}"


def _selected() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # auto warns about backends that the rows above show
        return str(get_backend())

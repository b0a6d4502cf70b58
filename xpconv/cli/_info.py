"""What is printed for people: tables, and what a bug report needs to know of this machine."""

import os
import platform
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
from threadpoolctl import threadpool_info

from xpconv._version import __version__
from xpconv.backend import LIBRARIES, diagnose, get_backend
from xpconv.errors import XpconvError
from xpconv.ops.numpy._workers import num_threads
from xpconv.ops.tiling import workspace_bytes

__all__ = ["environment"]


def environment() -> list[tuple[str, str]]:
    """Return pairs of a name and what is the case, from the version of xpconv to the folder of the data.

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
    rows += [("threads", _tell(lambda: str(num_threads()))), ("workspace", _tell(_workspace))]
    for library in LIBRARIES:
        found = diagnose(library)
        state = f"available, version {found.version}, " if found.available else "not available: "
        rows.append((f"backend {library}", state + found.detail))
    rows.append(("selected backend", _tell(_selected)))
    rows += [
        (name, value)
        for name, value in sorted(os.environ.items())
        if name == "XP_BACKEND" or name.startswith("XPCONV_")
    ]
    rows.append(("data cache", _cache()))
    return rows


def _tell(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except XpconvError as error:
        return f"error: {error}"


def _workspace() -> str:
    host, gpu = (f"{workspace_bytes(library) / 2**20:g} MiB" for library in ("numpy", "cupy"))
    return host if host == gpu else f"{host}, with CuPy {gpu}"


def _selected() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # auto warns of what the rows above tell
        return str(get_backend())


def _cache() -> str:
    if find_spec("pooch") is None:
        return 'unknown without pooch: pip install "xpconv[train]"'
    import pooch

    return str(pooch.os_cache("xpconv"))

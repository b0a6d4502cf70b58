"""What is printed for people: tables, and what a bug report needs to know of this machine."""

import importlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from threadpoolctl import threadpool_info

import xpconv
from xpconv.backend import LIBRARIES, Backend, get_backend
from xpconv.errors import ArgumentError, BackendUnavailableError, XpconvError
from xpconv.primitives.threads import num_threads
from xpconv.primitives.tiling import workspace_bytes

__all__ = ["Diagnosis", "diagnose", "environment", "print_table"]


@dataclass(frozen=True)
class Diagnosis:
    """Whether a backend can run here, and if not, why.

    Examples
    --------
    >>> diagnosis = diagnose("no_such_library")
    >>> diagnosis.available, diagnosis.version
    (False, '-')
    """

    spec: str
    available: bool
    version: str
    detail: str


def diagnose(spec: str) -> Diagnosis:
    """Find out whether a backend can run on this machine, without raising.

    Parameters
    ----------
    spec : str
        A backend's name as for `get_backend`; ``auto`` names none.

    Examples
    --------
    >>> diagnose("numpy").available
    True
    """
    library, version = spec.partition(":")[0], "-"
    if library not in LIBRARIES:
        return Diagnosis(spec, False, version, f"{spec!r} is none of {', '.join(LIBRARIES)}")
    with suppress(ImportError, OSError):
        version = str(getattr(importlib.import_module(library), "__version__", "-"))
    try:
        backend = get_backend(spec)
    except (BackendUnavailableError, ArgumentError) as error:
        return Diagnosis(spec, False, version, str(error))
    return Diagnosis(spec, True, version, _describe_device(backend))


def _describe_device(backend: Backend) -> str:
    if backend.library == "cupy":
        cupy = importlib.import_module("cupy")
        properties = cupy.cuda.runtime.getDeviceProperties(backend.device.id)
        driver = cupy.cuda.runtime.driverGetVersion()
        return (f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB, "
                f"CUDA driver {driver // 1000}.{driver % 1000 // 10}")
    if backend.library == "torch" and backend.device.type == "cuda":
        return str(importlib.import_module("torch").cuda.get_device_name(backend.device))
    return f"device {backend.device}"


def environment() -> list[tuple[str, str]]:
    """Return pairs of a name and what is the case, from the version of xpconv to the folder of the data.

    Examples
    --------
    >>> dict(environment())["numpy"] == np.__version__
    True
    """
    rows = [("xpconv", xpconv.__version__),
            ("python", f"{platform.python_version()} on {platform.platform()}"),
            ("numpy", np.__version__)]
    rows += [("BLAS", f"{library['internal_api']} {library['version']}, {library['num_threads']} threads")
             for library in threadpool_info() if library["user_api"] == "blas"]
    rows += [("threads", _tell(lambda: str(num_threads()))),
             ("workspace", _tell(_workspace))]
    for library in LIBRARIES:
        found = diagnose(library)
        state = f"available, version {found.version}, " if found.available else "not available: "
        rows.append((f"backend {library}", state + found.detail))
    rows.append(("selected backend", _tell(_selected)))
    rows += [(name, value) for name, value in sorted(os.environ.items())
             if name == "XP_BACKEND" or name.startswith("XPCONV_")]
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
        return "unknown without pooch: pip install pooch"
    import pooch

    return str(pooch.os_cache("xpconv"))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Print a table: ruled on a terminal, with tabs in a pipe.

    Examples
    --------
    >>> from contextlib import redirect_stdout
    >>> from io import StringIO
    >>> with redirect_stdout(StringIO()) as pipe:
    ...     print_table([("numpy", "1.5")], header=("backend", "step, ms"))
    >>> pipe.getvalue().splitlines()[1].split()
    ['numpy', '1.5']
    """
    if not sys.stdout.isatty():
        for row in [header, *rows] if header else rows:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, show_header=bool(header))
    for name, *values in rows:
        table.add_row(Text(name, "bold"), *map(Text, values))
    Console().print(table)

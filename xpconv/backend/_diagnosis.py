"""Find out whether a backend can run on this machine, and if not, why."""

import importlib
from contextlib import suppress
from dataclasses import dataclass

from xpconv.backend._backend import LIBRARIES, Backend, get_backend
from xpconv.errors import ArgumentError, BackendUnavailableError

__all__ = ["Diagnosis", "diagnose"]


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
        The name of a backend as for `get_backend`, but not ``auto``.

    Examples
    --------
    >>> diagnose("numpy").available
    True
    """
    library, version = spec.partition(":")[0], "-"
    if library not in LIBRARIES:
        return Diagnosis(spec, False, version, f"{spec!r} is none of {', '.join(LIBRARIES)}")
    with suppress(Exception):  # an incompatible library may raise anything
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
        return (
            f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB, "
            f"CUDA driver {driver // 1000}.{driver % 1000 // 10}"
        )
    if backend.library == "torch" and backend.device.type == "cuda":
        return str(importlib.import_module("torch").cuda.get_device_name(backend.device))
    return f"device {backend.device}"

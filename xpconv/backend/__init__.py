"""Which array library computes, and on which device.

This is the one door between host and device: `Backend.asarray` moves arrays in, `Backend.to_host` moves
them out and is the only place where the host waits for the device.
"""

from xpconv.backend._array import Array, array_namespace, library_of, on_host
from xpconv.backend._backend import (
    LIBRARIES,
    Backend,
    backend_of,
    get_backend,
    on_its_device,
    to_host,
    use_backend,
)
from xpconv.backend._diagnosis import Diagnosis, diagnose

__all__ = [
    "LIBRARIES",
    "Array",
    "Backend",
    "Diagnosis",
    "array_namespace",
    "backend_of",
    "diagnose",
    "get_backend",
    "library_of",
    "on_host",
    "on_its_device",
    "to_host",
    "use_backend",
]

"""Backends: an array library and a device.

Arrays move between host and device only through two methods: `Backend.asarray` moves them to the device, and
`Backend.to_host` moves them back, for which the host waits.
"""

from xpconv.backend._array import Array, array_namespace, copy_arrays, library_of, on_host
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
from xpconv.backend._tf32 import set_tf32, tf32_enabled

__all__ = [
    "LIBRARIES",
    "Array",
    "Backend",
    "Diagnosis",
    "array_namespace",
    "backend_of",
    "copy_arrays",
    "diagnose",
    "get_backend",
    "library_of",
    "on_host",
    "on_its_device",
    "set_tf32",
    "tf32_enabled",
    "to_host",
    "use_backend",
]

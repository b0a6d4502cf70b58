"""How much memory a computation takes, and how much there is."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

from xpconv.backend import Backend

__all__ = ["free_bytes", "peak_bytes"]


def peak_bytes(function: Callable[[], object], backend: Backend) -> int | None:
    """Run a function and return how many bytes it held at most beyond those before, or None where nobody counts."""
    if backend.library == "cupy":
        return _peak_of_pool(function, backend)
    if backend.library == "torch":
        return None
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not tracing:
            tracemalloc.stop()


def _peak_of_pool(function: Callable[[], object], backend: Backend) -> int:
    """Return by how much CuPy's memory pool grew from nothing to spare: it gives nothing back by itself."""
    pool = backend.xp.get_default_memory_pool()
    with backend.device:
        pool.free_all_blocks()
        before = pool.total_bytes()
        function()
        return int(pool.total_bytes() - before)


def free_bytes(backend: Backend) -> int | None:
    """Return how many bytes a computation may still take, or None where that is not known."""
    if backend.library == "cupy":
        with backend.device:
            free, _ = backend.xp.cuda.runtime.memGetInfo()
            return int(free + backend.xp.get_default_memory_pool().free_bytes())
    if backend.library == "torch":
        return None
    try:  # Linux counts what other programs' files could make room for
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError):
        return None
    return int(available) * 1024

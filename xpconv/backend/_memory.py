"""Measure how much memory a computation takes, and how much is free."""

import importlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xpconv.backend import Backend
from xpconv.backend._blocks import free_blocks

__all__ = ["free_bytes", "peak_bytes"]


def peak_bytes(backend: Backend, call: Callable[[], Any]) -> int | None:
    """Return the peak memory of a backend's arrays during a call, in bytes above the memory that they took before.

    Return None for PyTorch on a CPU, which does not count its memory.

    Examples
    --------
    >>> import numpy as np
    >>> from xpconv import get_backend
    >>> backend = get_backend("numpy")
    >>> peak_bytes(backend, lambda: np.ones(10**6)) // 10**6
    8
    """
    if backend.library == "cupy":
        return _peak_of_cupy(call)
    if backend.library == "torch":
        if backend.device.type != "cuda":
            return None
        cuda = importlib.import_module("torch").cuda
        cuda.reset_peak_memory_stats(backend.device)
        before = cuda.memory_allocated(backend.device)
        call()
        return int(cuda.max_memory_allocated(backend.device) - before)
    free_blocks()  # otherwise the call would use memory that was taken before
    running = tracemalloc.is_tracing()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not running:
            tracemalloc.stop()


def _peak_of_cupy(call: Callable[[], Any]) -> int:
    """Return the peak of the bytes that CuPy's memory pool hands out and does not yet have back."""
    now = peak = 0

    def add(size: int) -> None:
        nonlocal now, peak
        now += size
        peak = max(peak, now)

    class Hook(importlib.import_module("cupy").cuda.MemoryHook):  # type: ignore[misc]
        name = "xpconv-peak"

        def malloc_postprocess(self, **block: int) -> None:
            add(block["mem_size"] if block["mem_ptr"] else 0)

        def free_postprocess(self, **block: int) -> None:
            add(-block["mem_size"])

    with Hook():
        call()
    return peak


def free_bytes(backend: Backend) -> int | None:
    """Return how many bytes a computation can still allocate, or None if that is unknown."""
    if backend.library == "cupy":
        with backend.device:
            free, _ = backend.xp.cuda.runtime.memGetInfo()
            return int(free + backend.xp.get_default_memory_pool().free_bytes())
    if backend.library == "torch":
        return None
    try:  # only Linux has this file; MemAvailable includes the file cache
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError):
        return None
    return int(available) * 1024

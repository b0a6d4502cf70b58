"""Scratch arrays that are reused, one for each name and thread."""

from math import prod
from threading import local
from typing import Any

import numpy as np

from xpconv.backend._blocks import aligned_block

__all__ = ["scratch"]

_scratch = local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return this thread's scratch array of that name, uninitialised; the next call with the name reuses its memory.

    New memory would cost more than the work on it, since the system maps it page by page. The array is aligned to
    cache lines, so that no vector load crosses two of them.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    store: dict[str, np.ndarray] = _scratch.__dict__
    if name not in store or store[name].nbytes < size:
        store[name] = aligned_block(size)
    array: np.ndarray = store[name][:size].view(dtype)
    return array.reshape(shape)

"""Scratch arrays, one of each name and thread."""

from math import prod
from threading import local
from typing import Any

import numpy as np

__all__ = ["scratch"]


_LINE_BYTES = 64  # of a cache


_scratch = local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return this thread's scratch array of that name: it holds anything, and is reused by the next call.

    Fresh memory costs more than the work on it here, since the system hands it out page by page. It begins at a cache
    line: from elsewhere each vector is read from two lines.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    store: dict[str, np.ndarray] = _scratch.__dict__
    if name not in store or store[name].nbytes < size:
        memory = np.empty(size + _LINE_BYTES, np.uint8)
        store[name] = memory[-memory.ctypes.data % _LINE_BYTES :]
    array: np.ndarray = store[name][:size].view(dtype)
    return array.reshape(shape)

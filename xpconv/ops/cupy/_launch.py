"""Compiling and launching the kernels of kernels.cu."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from xpconv.errors import ArgumentError

Grid = tuple[tuple[int, int], tuple[int]]
Shape = tuple[int, ...]
Array = Any  # A CuPy array: CuPy has no type annotations.

THREADS = 256  # Threads per block, as in kernels.cu.
_BLOCKS_PER_MULTIPROCESSOR = 8  # A multiprocessor holds 2048 threads.
_MAX_GRID_Y = 65535
_REAL = {"f": "float", "d": "double"}

DIVISOR = np.dtype([("d", np.uint32), ("m", np.uint32), ("s", np.uint32)])  # The struct Divisor of kernels.cu.


def launch(name: str, dtype: np.dtype, grid: tuple[Any, Any], *arguments: Any, index: str = "uint8") -> None:
    """Launch a kernel that is compiled for values of `dtype`, and for an argmax of dtype `index`."""
    _kernel(name, dtype.char, index)(*grid, arguments)


@lru_cache
def _kernel(name: str, dtype: str, index: str) -> Any:
    return _module(_REAL[dtype], index).get_function(name)


@lru_cache
def _module(real: str, index: str) -> Any:
    source = Path(__file__).with_name("kernels.cu").read_text(encoding="utf-8")
    return cupy.RawModule(code=source, options=("-std=c++17", f"-DReal={real}", f"-DIndex={index}"))


def struct(dtype: np.dtype, **fields: Any) -> np.ndarray:
    """Return a struct with these fields, as an argument that a kernel takes by value."""
    packed = np.zeros(1, dtype)
    for name in dtype.names or ():
        packed[name] = fields.pop(name)
    if fields:
        raise TypeError(f"the struct has no fields {', '.join(fields)}")
    return packed.view(f"V{dtype.itemsize}")


def divisor(d: int) -> tuple[int, int, int]:
    """Return the fields of the struct Divisor, with which kernels divide by d."""
    shift = (d - 1).bit_length()
    return d, (1 << 32) * ((1 << shift) - d) // d + 1, shift


def grid_of(rows: int, count: int, max_blocks: int | None = None) -> Grid:
    """Return grid and block size for `rows` rows of `count` values, with at most `max_blocks` blocks for a row."""
    if count >= 2**31:
        raise ArgumentError(
            f"the batch has {count} values per channel; expected fewer than 2**31: take a smaller batch"
        )
    blocks = min(-(-count // THREADS), _MAX_GRID_Y)
    return (rows, blocks if max_blocks is None else min(blocks, max_blocks)), (THREADS,)


def reduction_blocks() -> int:
    """Return the number of blocks that share one sum: those that the current device runs at the same time."""
    return _blocks_of_device(cupy.cuda.runtime.getDevice())


@lru_cache
def _blocks_of_device(device: int) -> int:
    return _BLOCKS_PER_MULTIPROCESSOR * int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])

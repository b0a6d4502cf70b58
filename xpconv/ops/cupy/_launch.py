"""Compiling and launching the kernels of kernels.cu."""

from functools import lru_cache
from math import gcd, prod
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from xpconv.errors import ArgumentError

Grid = tuple[tuple[int, int], tuple[int]]
Shape = tuple[int, ...]
Array = Any  # A CuPy array: CuPy has no type annotations.

THREADS = 256  # in a block, for most kernels
WARP = 32  # threads that a multiprocessor runs together
_BLOCKS_PER_MULTIPROCESSOR = 8  # A multiprocessor holds 2048 threads.
_MAX_GRID_Y = 65535
_ACCESS_BYTES = 16  # the widest load or store of a thread
_TYPES = {"e": ("Half", "float"), "f": ("float", "float"), "d": ("double", "double")}  # Element and Real of kernels.cu.

DIVISOR = np.dtype([("d", np.uint32), ("m", np.uint32), ("s", np.uint32)])  # The struct Divisor of kernels.cu.


def launch(
    name: str, dtype: np.dtype, grid: tuple[Any, Any], *arguments: Any, index: str = "uint8", wide: int = 1
) -> None:
    """Launch a kernel compiled for activations of `dtype`, `wide` values per load, and an argmax of dtype `index`.

    If `wide` is not 1, pass the arrays that the kernel reads through `aligned`.
    """
    _kernel(name, dtype.char, index, wide, prod(grid[1]))(*grid, arguments)


@lru_cache
def _kernel(name: str, dtype: str, index: str, wide: int, threads: int) -> Any:
    return _module(dtype, index, wide, threads).get_function(name)


@lru_cache
def _module(dtype: str, index: str, wide: int, threads: int) -> Any:
    source = Path(__file__).with_name("kernels.cu").read_text(encoding="utf-8")
    element, arithmetic = _TYPES[dtype]
    constants = {"Element": element, "Real": arithmetic, "Index": index, "WIDE": wide, "THREADS": threads}
    options = "-std=c++17", *(f"-D{name}={value}" for name, value in constants.items())
    return cupy.RawModule(code=source, options=options)


def sum_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype of sums over activations, and of parameters: float32 if the activations are float16."""
    return np.promote_types(dtype, np.float32)


def width(count: int, dtype: np.dtype, stride: int = 1) -> int:
    """Return how many values a kernel may load at once from rows of `count` values: at most 16 bytes, a power of two.

    A kernel that stores one value for each window loads pixels `stride` apart: the loaded pixels span at most 16 bytes.
    The width depends on the shape alone, so that sums are always added in the same order.
    """
    return gcd(count, max(1, _ACCESS_BYTES // (dtype.itemsize * stride)))


def aligned(a: Array) -> Array:
    """Return a contiguous array whose address allows wide loads; copy it if need be."""
    a = cupy.ascontiguousarray(a)
    return a if a.data.ptr % _ACCESS_BYTES == 0 else a.copy()


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


def grid_of(rows: int, count: int, max_blocks: int | None = None, wide: int = 1, threads: int = THREADS) -> Grid:
    """Return grid and block size for `rows` rows of `count` values, with at most `max_blocks` blocks for a row.

    Each of the `threads` threads of a block handles `wide` values at a time.
    """
    if count >= 2**31:
        raise ArgumentError(
            f"the batch has {count} values per channel; expected fewer than 2**31: take a smaller batch"
        )
    blocks = min(-(-count // (threads * wide)), _MAX_GRID_Y)
    return (rows, blocks if max_blocks is None else min(blocks, max_blocks)), (threads,)


def reduction_blocks() -> int:
    """Return the number of blocks that share one sum: those that the current device runs at the same time."""
    return _blocks_of_device(cupy.cuda.runtime.getDevice())


@lru_cache
def _blocks_of_device(device: int) -> int:
    return _BLOCKS_PER_MULTIPROCESSOR * int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])

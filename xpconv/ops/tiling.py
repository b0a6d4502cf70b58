"""How a batch is cut into tiles.

The tiles and the order in which their sums are added depend on shapes alone, so results have the same bits
for any number of threads.
"""

import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import Array, library_of
from xpconv.errors import ArgumentError
from xpconv.ops.numpy._workers import run, run_products

__all__ = [
    "for_each_block",
    "for_each_tile",
    "map_tiles",
    "matmul",
    "sum_in_blocks",
    "sum_of_squares",
    "sum_over_tiles",
    "sum_rows",
    "workspace_bytes",
]

_CACHE_BYTES = 1 << 22  # of a NumPy tile: shared caches hold it, and its calls are long enough for two threads
_BLOCK_BYTES = 1 << 19  # of each array in an elementwise update, where several share the cache
_ROWS = 1 << 8  # of a sum that are added one after the other
_LANES = 8  # partial sums of large work, whatever the number of threads
_FEW = 4  # lanes of work that waits for memory: more threads gain nothing, each tile costs 50 us beside its work
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}

_SMALL_PRODUCT = 1 << 18  # multiplications that are not worth a second thread

Tile = slice


def workspace_bytes(library: str = "numpy") -> int:
    """Return ``XPCONV_WORKSPACE`` (such as ``64MiB``, the default; ``1GiB`` on a GPU by CuPy) in bytes."""
    return _parse_bytes(os.environ.get("XPCONV_WORKSPACE", "1GiB" if library == "cupy" else "64MiB"))


@lru_cache
def _parse_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not match or match[2].upper() not in _UNITS:
        raise ArgumentError(f"XPCONV_WORKSPACE is {text!r}; expected a size such as 64MiB or 1GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def for_each_tile(task: Callable[[Tile], None], count: int, item_bytes: int, like: Array) -> None:
    """Call ``task(tile)`` for slices that cover ``range(count)``; tasks write to places of their own.

    Parameters
    ----------
    task : callable
        Takes a slice of the batch.
    count : int
        Images in the batch.
    item_bytes : int
        Scratch memory that one image needs, in bytes.
    like : array
        Any array of the computation; its library decides how tiles run.
    """
    tiles = _tiles(count, item_bytes, like)
    run_products(lambda k: task(tiles[k]), len(tiles), like)


def sum_over_tiles(
    task: Callable[[Tile], tuple[Array, ...]], count: int, item_bytes: int, like: Array
) -> tuple[Array, ...]:
    """Call ``task(tile)`` for slices that cover ``range(count)`` and return the sums of what the calls return.

    Tiles are dealt to a few lanes; each lane adds up its own in order, then the lanes are added in order.
    """
    tiles = _tiles(count, item_bytes, like)
    lanes = min(_LANES, len(tiles)) if library_of(like) == "numpy" else 1
    sums: list[tuple[Array, ...]] = [()] * lanes

    def lane(k: int) -> None:
        mine = tiles[k * len(tiles) // lanes : (k + 1) * len(tiles) // lanes]
        total = task(mine[0])
        for tile in mine[1:]:
            total = _add(total, task(tile))
        sums[k] = total

    run_products(lane, lanes, like)
    total = sums[0]
    for part in sums[1:]:
        total = _add(total, part)
    return total


def _add(total: tuple[Array, ...], part: tuple[Array, ...]) -> tuple[Array, ...]:
    for a, b in zip(total, part, strict=True):
        if a is not None:
            a[...] = a + b
    return total


def _tiles(count: int, item_bytes: int, like: Array, lanes: int = _LANES) -> list[Tile]:
    """Cut a batch in tiles of nearly the same size; for NumPy their number is a multiple of the lanes.

    Both are powers of two, which divide many batches: the same tiles for small ones and large.
    """
    on_numpy = library_of(like) == "numpy"
    size = max(1, (_CACHE_BYTES if on_numpy else workspace_bytes(library_of(like))) // max(item_bytes, 1))
    tiles = -(-count // size)
    if on_numpy:
        lanes = min(lanes, 1 << (count * item_bytes // _BLOCK_BYTES | 1).bit_length() - 1)  # 1 for what is soon done
        tiles = min(count, lanes * -(-count // (lanes << (size.bit_length() - 1))))
    return [slice(k * count // tiles, (k + 1) * count // tiles) for k in range(tiles)]


def map_tiles(body: Callable[..., tuple[Array, ...]], axis: int, *arrays: Array) -> Any:
    """Apply a function to arrays whose slices along `axis` it treats independently.

    For NumPy it is applied to slices that fit the cache, on all threads, and the results are joined along `axis`;
    elsewhere it is applied to the arrays themselves.

    Parameters
    ----------
    body : callable
        Takes the arrays and returns arrays, all with that axis.
    axis : int
    *arrays : array
        Those of size 1 along the axis are passed on as they are.
    """
    like = arrays[0]
    if library_of(like) != "numpy" or like.nbytes <= _BLOCK_BYTES:
        return body(*arrays)
    count = like.shape[axis]
    tiles = _tiles(count, like.nbytes // count, like, lanes=_FEW)
    before = (slice(None),) * axis
    parts: list[tuple[Array, ...]] = [()] * len(tiles)

    def task(k: int) -> None:
        at = (*before, tiles[k])
        parts[k] = body(*(a[at] if a.shape[axis] == count else a for a in arrays))

    run(task, len(tiles), like)
    return tuple(np.concatenate(results, axis) for results in zip(*parts, strict=True))


def matmul(a: Array, b: Array) -> Array:
    """Return the matrix product, for NumPy cut along one side into blocks that depend on shapes alone."""
    (M, K), N = a.shape, b.shape[1]
    if library_of(a) != "numpy":
        return a @ b
    blocks = _LANES if M * K * N > _SMALL_PRODUCT else 1
    in_terms = max(M, N, blocks * min(M, N)) <= K  # which are no larger than a or b
    size = -(-(K if in_terms else max(M, N)) // blocks)
    parts = [slice(k * size, (k + 1) * size) for k in range(blocks)]
    if in_terms:
        terms = np.empty((blocks, M, N), np.result_type(a, b))
        run_products(lambda k: np.matmul(a[:, parts[k]], b[parts[k]], out=terms[k]), blocks, a)
        return terms.sum(axis=0) if blocks > 1 else terms[0]
    out = np.empty((M, N), np.result_type(a, b))
    if M >= N:
        run_products(lambda k: np.matmul(a[parts[k]], b, out=out[parts[k]]), blocks, a)
    else:
        run_products(lambda k: np.matmul(a, b[:, parts[k]], out=out[:, parts[k]]), blocks, a)
    return out


def for_each_block(update: Callable[..., None], *arrays: Array) -> None:
    """Call an elementwise in-place update on arrays of one shape, for NumPy in cache-sized blocks on all threads."""
    count, block = _blocks(*arrays)
    run(lambda k: update(*block(k)), count, arrays[0])


def sum_in_blocks(term: Callable[..., Array], *arrays: Array) -> Array:
    """Return the sum, in order, of what a call returns for such blocks; it may leave work to BLAS."""
    count, block = _blocks(*arrays)
    terms: list[Any] = [None] * count

    def task(k: int) -> None:
        terms[k] = term(*block(k))

    run_products(task, count, arrays[0])
    return sum(terms)


def _blocks(*arrays: Array) -> tuple[int, Callable[[int], Sequence[Array]]]:
    """Return into how many blocks to cut arrays of one shape, if they are NumPy's, and what cuts the k-th."""
    if library_of(arrays[0]) != "numpy":
        return 1, lambda k: arrays
    flat = [a.reshape(-1) for a in arrays] if all(a.flags.c_contiguous for a in arrays) else arrays
    rows = len(flat[0])
    size = max(1, _BLOCK_BYTES * rows // max(1, flat[0].nbytes))
    return max(1, -(-rows // size)), lambda k: [a[k * size : (k + 1) * size] for a in flat]


def sum_rows(a: Array) -> Array:
    """Return the sum over the first axis, for NumPy in pieces, since it adds rows one after the other."""
    if library_of(a) == "numpy" and len(a) > _ROWS:
        a = np.add.reduceat(a, np.arange(0, len(a), _ROWS))
    return array_api_compat.array_namespace(a).sum(a, axis=0)


def sum_of_squares(a: Array) -> Array:
    """Return the sum of the squares of all elements, for NumPy by BLAS if it is flat."""
    if library_of(a) == "numpy" and a.ndim == 1:
        return np.dot(a, a)
    return array_api_compat.array_namespace(a).sum(a * a)

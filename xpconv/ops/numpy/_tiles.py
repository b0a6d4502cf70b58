"""Cut work on NumPy arrays into tiles that fit the caches, and share the tiles among threads.

The tiles, and the order in which their sums are added, depend only on shapes, so results have the same bits for any
number of threads. A sum is added in *lanes*: each lane adds up a fixed run of neighbouring tiles in order, and then the
lanes are added in order. Example: 100 images with 1 MiB of scratch memory each make 32 tiles of 3 or 4 images, in 8
lanes::

    lane 0:  ((t0 + t1) + t2) + t3            sum:  ((lane 0 + lane 1) + ...) + lane 7
    lane 1:  ((t4 + t5) + t6) + t7
    ...
    lane 7:  ((t28 + t29) + t30) + t31
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xpconv.backend._blocks import empty
from xpconv.ops.dispatch import accelerate
from xpconv.ops.numpy._workers import run_parallel, run_products
from xpconv.ops.tiling import add_in_place

__all__ = ["for_each_block", "for_each_tile", "map_tiles", "matmul", "sum_in_blocks", "sum_over_tiles"]

Array = np.ndarray

_TILE_BYTES = 1 << 22  # Scratch memory of a tile: fits a shared cache, and is enough work to be worth a thread.
_BLOCK_BYTES = 1 << 20  # Of each array in a block of an update; threads wait for the GIL between passes.
_LANES, _LANE_BYTES = 8, 1 << 20  # Lanes of work that is limited by arithmetic, and the least scratch memory of one.
# Lanes of work that is limited by memory, and the least size of an array's part in one: more threads gain nothing, and
# waking a thread takes 0.1 ms.
_MEMORY_LANES, _MEMORY_LANE_BYTES = 4, 1 << 21
_SUMMED_ROWS = 1 << 8  # NumPy adds rows one after the other; more rows than this would lose digits.
_SMALL_PRODUCT = 1 << 22  # Up to this number of multiplications, a second thread gains nothing.


def _power_of_two(limit: int) -> int:
    """Return the largest power of two up to `limit`, which is 1 or more."""
    return 1 << (limit.bit_length() - 1)


def cut_tiles(count: int, item_bytes: int, lanes: int = _LANES, lane_bytes: int = _LANE_BYTES) -> list[slice]:
    """Cut `count` items into tiles of nearly equal size, each with scratch memory that fits a cache.

    If there are enough items, the number of tiles is a multiple of the number of lanes. The limits on lanes and on
    items per tile are powers of two, which divide many batch sizes: small and large batches then have tiles of the
    same shape.

    Examples
    --------
    >>> [tile.stop - tile.start for tile in cut_tiles(100, item_bytes=1 << 20)][:8]
    [3, 3, 3, 3, 3, 3, 3, 4]
    """
    lanes = min(lanes, _power_of_two(max(1, count * item_bytes // lane_bytes)))
    items_per_tile = _power_of_two(max(1, _TILE_BYTES // max(item_bytes, 1)))
    rounds = -(-count // (lanes * items_per_tile))
    tiles = min(count, lanes * rounds)
    return [slice(k * count // tiles, (k + 1) * count // tiles) for k in range(tiles)]


@accelerate("numpy")
def for_each_tile(x: Array, task: Callable[[slice], None], count: int, item_bytes: int) -> None:
    """Share the tiles among the threads."""
    tiles = cut_tiles(count, item_bytes)
    run_products(lambda k: task(tiles[k]), len(tiles))


@accelerate("numpy")
def sum_over_tiles(
    x: Array, task: Callable[[slice], tuple[Array, ...]], count: int, item_bytes: int
) -> tuple[Array, ...]:
    """Add up the tiles of each lane in order, then add the lanes in order."""
    tiles = cut_tiles(count, item_bytes)
    lanes = min(_LANES, len(tiles))
    sums: list[tuple[Array, ...]] = [()] * lanes

    def add_lane(k: int) -> None:
        first, *others = tiles[k * len(tiles) // lanes : (k + 1) * len(tiles) // lanes]
        sums[k] = task(first)
        for tile in others:
            add_in_place(sums[k], task(tile))

    run_products(add_lane, lanes)
    total, *rest = sums
    for lane in rest:
        add_in_place(total, lane)
    return total


@accelerate("numpy")
def map_tiles(x: Array, *others: Array, function: Callable[..., tuple[Array, ...]], axis: int) -> tuple[Array, ...]:
    """Apply the function to tiles on all threads, and join its results along the axis; small arrays are one tile."""
    if x.nbytes < 2 * _MEMORY_LANE_BYTES:
        return function(x, *others)
    count = x.shape[axis]
    tiles = cut_tiles(count, x.nbytes // count, _MEMORY_LANES, _MEMORY_LANE_BYTES)
    before = (slice(None),) * axis
    results: list[tuple[Array, ...]] = [()] * len(tiles)

    def task(k: int) -> None:
        tile = (*before, tiles[k])
        results[k] = function(*(a[tile] if a.shape[axis] == count else a for a in (x, *others)))

    run_parallel(task, len(tiles))
    return tuple(np.concatenate(parts, axis) for parts in zip(*results, strict=True))


@accelerate("numpy")
def matmul(a: Array, b: Array) -> Array:
    """Cut the product along its longest side into blocks that depend only on the shapes."""
    (M, K), N = a.shape, b.shape[1]
    blocks = _LANES if M * K * N > _SMALL_PRODUCT else 1
    cut_sum = max(M, N, blocks * min(M, N)) <= K  # The partial products (blocks, M, N) are no larger than a or b.
    size = -(-(K if cut_sum else max(M, N)) // blocks)
    parts = [slice(k * size, (k + 1) * size) for k in range(blocks)]
    if cut_sum:
        terms = empty((blocks, M, N), np.result_type(a, b))
        run_products(lambda k: np.matmul(a[:, parts[k]], b[parts[k]], out=terms[k]), blocks)
        total: Array = terms.sum(axis=0) if blocks > 1 else terms[0]
        return total
    out = empty((M, N), np.result_type(a, b))
    if M >= N:
        run_products(lambda k: np.matmul(a[parts[k]], b, out=out[parts[k]]), blocks)
    else:
        run_products(lambda k: np.matmul(a, b[:, parts[k]], out=out[:, parts[k]]), blocks)
    return out


@accelerate("numpy")
def for_each_block(x: Array, *others: Array, update: Callable[..., object]) -> None:
    """Update cache-sized blocks on all threads."""
    count, block = _blocks(x, *others)
    run_parallel(lambda k: update(*block(k)), count)


@accelerate("numpy")
def sum_in_blocks(x: Array, *others: Array, term: Callable[..., Any]) -> Any:
    """Add the terms of the blocks in order; a term may call BLAS."""
    count, block = _blocks(x, *others)
    terms: list[Any] = [None] * count

    def task(k: int) -> None:
        terms[k] = term(*block(k))

    run_products(task, count)
    return sum(terms)


def _blocks(*arrays: Array) -> tuple[int, Callable[[int], Sequence[Array]]]:
    """Return the number of blocks for arrays of one shape, and a function that returns block k of each array."""
    flat = [a.reshape(-1) for a in arrays] if all(a.flags.c_contiguous for a in arrays) else arrays
    rows = len(flat[0])
    size = max(1, _BLOCK_BYTES * rows // max(1, flat[0].nbytes))
    return max(1, -(-rows // size)), lambda k: [a[k * size : (k + 1) * size] for a in flat]


@accelerate("numpy")
def sum_rows(a: Array) -> Array:
    """Add up at most `_SUMMED_ROWS` rows at a time, then those sums, since NumPy adds rows one after the other."""
    if len(a) > _SUMMED_ROWS:
        a = np.add.reduceat(a, np.arange(0, len(a), _SUMMED_ROWS))
    total: Array = a.sum(axis=0)
    return total


@accelerate("numpy")
def sum_of_squares(a: Array) -> Any:
    """Let BLAS add up the squares of a flat array."""
    return np.dot(a, a) if a.ndim == 1 else np.sum(a * a)

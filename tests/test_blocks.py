"""Arrays in the memory of earlier ones: never in memory that an array still uses, and within a limit."""

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpconv import get_backend, layers
from xpconv.backend import _blocks
from xpconv.backend._blocks import BlockPool, aligned_block, empty, free_blocks
from xpconv.backend._memory import peak_bytes

KIB = 1024


@pytest.fixture
def pool():
    return BlockPool(limit=1024 * KIB)


def address(array):
    return array.__array_interface__["data"][0]


def kept(pool):
    return sum(block.nbytes for block in pool._blocks.values())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex128, np.int8, np.uint64, bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (300, 1, 512)])
def test_an_array_has_the_shape_and_dtype_asked_for(shape, dtype, pool):
    array = empty(shape, dtype, pool)
    assert type(array) is np.ndarray
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert array.flags.writeable


def test_large_arrays_begin_at_a_cache_line(pool):
    assert address(empty((256 * KIB,), np.int8, pool)) % 64 == 0


def test_an_array_of_the_same_size_gets_the_memory_that_was_given_back_last(pool):
    first, second = (empty((64, KIB), np.float32, pool) for _ in range(2))
    places = [address(first), address(second)]
    del second, first
    assert address(empty((KIB, 64), np.int32, pool)) == places[0]


def test_another_size_gets_other_memory(pool):
    array = empty((256 * KIB,), np.int8, pool)
    place = address(array)
    del array
    assert address(empty((255 * KIB,), np.int8, pool)) != place


def test_memory_stays_in_use_while_a_view_of_the_array_lives(pool):
    array = empty((64, KIB), np.float32, pool)
    array[...] = 7
    views = [array[1:2].view(np.int32).reshape(-1)[5:6], memoryview(array)[2:3]]
    del array
    while views:
        empty((64, KIB), np.float32, pool)[...] = 0
        view = np.asarray(views.pop()).view(np.float32)
        assert (view == 7).all()
        del view
    assert len(pool._blocks) == 2


def test_the_blocks_given_back_first_are_freed_beyond_the_limit(pool):
    arrays = [empty((256 * KIB,), np.int8, pool) for _ in range(6)]
    places = [address(a) for a in arrays]
    while arrays:
        del arrays[0]
    assert kept(pool) == 1024 * KIB
    assert [address(block) for block in pool._blocks.values()] == places[2:]


def test_a_block_larger_than_the_limit_is_freed(pool):
    empty((2048 * KIB,), np.int8, pool)
    assert kept(pool) == 0


def test_an_array_in_a_cycle_of_garbage_gives_its_memory_back(pool):
    cycle = [empty((256 * KIB,), np.int8, pool)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert len(pool._blocks) == 1


def test_a_block_that_another_thread_takes_first_is_not_taken_twice(pool):
    """The other thread takes it after this one has read the list of blocks."""

    class Blocks(dict):
        def items(self):
            listed = list(super().items())
            self.clear()
            return listed

    empty((256 * KIB,), np.int8, pool)
    taken = list(pool._blocks.values())
    pool._blocks = Blocks(pool._blocks)
    assert pool.take(256 * KIB) is not taken[0]


def test_kept_blocks_are_freed_if_there_is_no_other_memory(pool, monkeypatch):
    def allocate(size):
        if kept(pool):
            raise MemoryError
        return aligned_block(size)

    empty((256 * KIB,), np.int8, pool)
    monkeypatch.setattr(_blocks, "aligned_block", allocate)
    array = empty((512 * KIB,), np.int8, pool)
    assert array.nbytes == 512 * KIB
    assert kept(pool) == 0


def test_arrays_of_objects_are_not_in_blocks(pool):
    array = empty((256 * KIB,), object, pool)
    assert array.flags.owndata
    del array
    assert kept(pool) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=60))
def test_live_arrays_never_share_memory(steps):
    pool, live = BlockPool(limit=600 * KIB), []
    for step, (allocate, choice) in enumerate(steps):
        if allocate or not live:
            live.append((step, empty(((choice + 1) * 32, KIB), np.float32, pool)))
            live[-1][1][...] = step
        else:
            number, array = live.pop(choice % len(live))
            assert (array == number).all()
            del array
        assert kept(pool) <= 600 * KIB
    for number, array in live:
        assert (array == number).all()


def test_layers_take_no_new_memory_once_their_arrays_are_gone(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "1")
    x, w, b = np.ones((8, 16, 32, 32)), np.ones((16, 16, 3, 3)), np.zeros(16)

    def step():
        out, conv_cache = layers.conv_forward(x, w, b, padding=1)
        out, relu_cache = layers.relu_forward(out)
        layers.conv_backward(layers.relu_backward(out, relu_cache), conv_cache)

    for _ in range(3):
        step()
    tracemalloc.start()
    try:
        step()
        assert tracemalloc.get_traced_memory()[1] < x.size  # less than a new mask
    finally:
        tracemalloc.stop()


def test_peak_memory_counts_arrays_in_kept_blocks():
    backend, x = get_backend("numpy"), np.ones((64, 16, 32, 32))
    for _ in range(2):
        assert x.nbytes < peak_bytes(backend, lambda: layers.relu_forward(x)) < 1.3 * x.nbytes


def test_free_blocks_frees_what_no_array_uses():
    free_blocks()
    tracemalloc.start()
    try:
        array = empty((1024 * KIB,), np.int8)
        del array
        before = tracemalloc.get_traced_memory()[0]
        free_blocks()
        assert before - tracemalloc.get_traced_memory()[0] > 900 * KIB
    finally:
        tracemalloc.stop()

"""Samplers and minibatches: which rows come, in which order, on which device."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpconv.backend import get_backend
from xpconv.data import Batches
from xpconv.data.sampling import SAMPLERS, EpochSampler, ReplacementSampler
from xpconv.errors import ArgumentError, ArgumentTypeError

# ---- samplers

COUNTS = st.integers(1, 40)


@given(COUNTS, COUNTS, st.integers(0, 100))
def test_an_epoch_repeats_no_row_and_leaves_out_less_than_a_minibatch(num_rows, size, seed):
    sampler = EpochSampler(np.random.default_rng(seed), num_rows, size)
    for _ in range(3):
        batches = [sampler() for _ in range(max(num_rows // size, 1))]
        rows = np.concatenate(batches)
        assert all(len(batch) == min(size, num_rows) for batch in batches)
        assert len(set(rows.tolist())) == len(rows) > num_rows - size
        assert set(rows.tolist()) <= set(range(num_rows))


def test_every_epoch_has_its_own_order_and_no_row_is_left_out_of_all_epochs():
    sampler = EpochSampler(np.random.default_rng(0), 10, 3)
    epochs = [tuple(np.concatenate([sampler() for _ in range(3)])) for _ in range(20)]
    assert len(set(epochs)) == 20
    assert set(np.concatenate(epochs)) == set(range(10))


@pytest.mark.parametrize("make", [lambda: np.random.default_rng(3), lambda: np.random.RandomState(3)])
@pytest.mark.parametrize("sampler_class", SAMPLERS.values())
@given(COUNTS, COUNTS, st.integers(0, 30))
def test_a_state_that_went_through_json_repeats_the_draws(sampler_class, make, num_rows, size, num_drawn):
    first, second = sampler_class(make(), num_rows, size), sampler_class(make(), num_rows, size)
    for _ in range(num_drawn):
        first()
    second.state = json.loads(json.dumps(first.state))
    for _ in range(10):
        np.testing.assert_array_equal(first(), second())


@pytest.mark.parametrize("sampler_class", SAMPLERS.values())
def test_prefetched_minibatches_are_drawn_again_after_an_interruption(sampler_class):
    X, y = np.arange(20.0)[:, None], np.arange(20)
    uninterrupted = sampler_class(np.random.default_rng(0), 20, 3)
    expected = [uninterrupted() for _ in range(15)]
    sampler = sampler_class(np.random.default_rng(0), 20, 3)
    drawn = []
    for _ in range(3):
        with Batches(X, y, sampler, get_backend("numpy"), prefetch=2) as batches:
            drawn += [next(batches)[1] for _ in range(5)]
    np.testing.assert_array_equal(drawn, expected)


def test_samplers_are_found_by_name():
    assert {"replacement": ReplacementSampler, "epoch": EpochSampler} == SAMPLERS


# ---- minibatches


class Draws:
    """A sampler that returns known draws and counts them."""

    def __init__(self, num_rows=20, batch_size=5):
        rng = np.random.default_rng(0)
        self.expected = [rng.choice(num_rows, batch_size) for _ in range(12)]
        self.count = 0

    def __call__(self):
        self.count += 1
        return self.expected[self.count - 1]


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (20, 3, 4, 4), dtype=np.uint8), rng.integers(0, 10, 20)


def batch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xpconv-batches")]


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
@pytest.mark.parametrize("resident", [False, True])
def test_minibatches_arrive_on_the_device_in_the_order_of_their_draws(backend, rows, resident, prefetch):
    X, y = rows
    data = (backend.asarray(X), backend.asarray(y)) if resident else rows
    draws = Draws()
    with Batches(*data, draws, backend, prefetch=prefetch) as batches:
        for indices, (X_batch, y_batch) in zip(draws.expected[:6], batches, strict=False):
            for batch, expected in ((X_batch, X[indices]), (y_batch, y[indices])):
                assert type(batch) is type(backend.asarray(expected))
                assert batch.device == backend.device
                host = backend.to_host(batch)
                assert host.dtype == expected.dtype
                np.testing.assert_array_equal(host, expected)


def test_without_prefetch_nothing_is_drawn_early(rows):
    draws = Draws()
    with Batches(*rows, draws, get_backend("numpy"), prefetch=0) as batches:
        for count in range(1, 5):
            next(batches)
            assert draws.count == count
        assert not batch_threads()


def test_prefetch_minibatches_are_drawn_ahead(rows):
    draws = Draws()
    with Batches(*rows, draws, get_backend("numpy"), prefetch=2) as batches:
        assert draws.count == 0
        next(batches)
        assert draws.count == 3
        next(batches)
        assert draws.count == 4


def test_the_sampler_runs_in_the_thread_that_iterates(rows):
    threads = []

    def sample():
        threads.append(threading.current_thread())
        return np.array([0])

    with Batches(*rows, sample, get_backend("numpy")) as batches:
        next(batches)
    assert set(threads) == {threading.current_thread()}


@pytest.mark.parametrize("error", [StopIteration, ValueError, KeyboardInterrupt])
def test_no_thread_outlives_the_block(rows, error):
    def consume():
        with Batches(*rows, Draws(), get_backend("numpy"), prefetch=5) as batches:
            next(batches)
            assert batch_threads()
            raise error

    with pytest.raises(error):
        consume()
    assert not batch_threads()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_error_while_gathering_reaches_the_consumer(rows, prefetch):
    with (
        pytest.raises(IndexError, match="out of bounds"),
        Batches(*rows, lambda: np.array([99]), get_backend("numpy"), prefetch=prefetch) as batches,
    ):
        next(batches)
    assert not batch_threads()


def test_two_consumers_in_two_threads_get_the_same_minibatches(rows):
    def consume(_):
        with Batches(*rows, Draws(), get_backend("numpy")) as batches:
            return [next(batches)[1] for _ in range(8)]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(consume, range(2))
    np.testing.assert_array_equal(first, second)


def test_labels_of_the_wrong_length_are_refused(rows):
    with pytest.raises(ArgumentError, match="X has 20 rows but y has 19: give each row one label"):
        Batches(rows[0], rows[1][:-1], Draws(), get_backend("numpy"))


def test_a_prefetch_that_is_not_a_count_is_refused(rows):
    with pytest.raises(ArgumentError, match="prefetch is -1; expected an int, 0 or more"):
        Batches(*rows, Draws(), get_backend("numpy"), prefetch=-1)
    with pytest.raises(ArgumentTypeError, match=r"prefetch is 1\.5; expected an int, 0 or more"):
        Batches(*rows, Draws(), get_backend("numpy"), prefetch=1.5)

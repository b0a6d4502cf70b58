"""Random numbers start on the host; masks are the same bits on every backend."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assert_array
from xpconv.errors import ArgumentTypeError
from xpconv.ops.random_bits import keep_mask, random_integers
from xpconv.random import as_random_stream, draw_seed, spawn, split_seed


def host_mask(seed, shape, keep_prob):
    return keep_mask(seed, shape, keep_prob, like=np.zeros(1))


# ---- streams


def test_none_is_the_global_state_that_numpy_seeds():
    np.random.seed(231)
    expected = np.random.randn(3)
    np.random.seed(231)
    assert as_random_stream(None).standard_normal(3).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", [7, np.int64(7), np.uint8(7)])
def test_integer_seeds_a_new_stream(seed):
    assert as_random_stream(seed).random(3).tolist() == np.random.default_rng(7).random(3).tolist()


@pytest.mark.parametrize("stream", [np.random.default_rng(0), np.random.RandomState(0)])
def test_stream_stands_for_itself(stream):
    assert as_random_stream(stream) is stream


@pytest.mark.parametrize("rng", ["0", 1.0, True, [1], np.random])
def test_anything_else_is_refused(rng):
    with pytest.raises(ArgumentTypeError, match="expected None, an int, a numpy Generator or a RandomState"):
        as_random_stream(rng)


@pytest.mark.parametrize("make", [lambda: 3, lambda: np.random.default_rng(3), lambda: np.random.RandomState(3)])
def test_spawned_streams_are_distinct_and_reproducible(make):
    draws = [stream.random(4).tolist() for stream in spawn(make(), 3)]
    assert len({tuple(draw) for draw in draws}) == 3
    assert draws == [stream.random(4).tolist() for stream in spawn(make(), 3)]


def test_spawning_follows_the_global_seed():
    draws = []
    for _ in range(2):
        np.random.seed(5)
        draws.append(spawn(None, 1)[0].random())
    assert draws[0] == draws[1]


@pytest.mark.parametrize("make", [lambda: np.random.default_rng(3), lambda: np.random.RandomState(3)])
def test_seeds_are_distinct_and_reproducible(make):
    def seeds():
        stream = make()
        return [draw_seed(stream) for _ in range(50)]

    assert len(set(seeds())) == 50
    assert seeds() == seeds()
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds())


# ---- masks


@pytest.mark.parametrize("seed", [0, 1, 123456789, 2**31 - 1])
def test_mask_has_the_same_bits_on_every_backend(backend, seed):
    like = backend.asarray(np.zeros(1, dtype=np.float32))
    mask = keep_mask(seed, (3, 4, 50), 0.3, like=like)
    assert_array(mask, host_mask(seed, (3, 4, 50), 0.3), backend, "bool", tolerance=0)


def test_mask_of_a_seed_never_changes():
    assert "".join(str(int(bit)) for bit in host_mask(7, (24,), 0.5)) == "101101001110100011111100"


@pytest.mark.parametrize("keep_prob", [0.05, 0.5, 0.9])
def test_mask_keeps_the_requested_fraction(keep_prob):
    n = 200_000
    for seed in (0, 1, 2**31 - 1):
        assert abs(host_mask(seed, (n,), keep_prob).mean() - keep_prob) < 5 * np.sqrt(keep_prob * (1 - keep_prob) / n)


def test_masks_of_neighbours_and_of_other_seeds_are_independent():
    n = 100_000
    masks = [host_mask(seed, (n,), 0.5) for seed in (0, 1, 2, 3, 1 << 30)]
    for i, mask in enumerate(masks):
        for other in [mask[1:], mask[2:], mask[64:], *masks[:i]]:
            agreement = np.mean(mask[: len(other)] == other)
            assert abs(agreement - 0.5) < 5 * 0.5 / np.sqrt(n)


def test_mask_at_the_ends_keeps_all_or_nothing():
    assert host_mask(3, (1000,), 1.0).all()
    assert not host_mask(3, (1000,), 0.0).any()


def test_mask_may_have_any_shape():
    flat = host_mask(9, (24,), 0.5)
    assert host_mask(9, (2, 3, 4), 0.5).tolist() == flat.reshape(2, 3, 4).tolist()
    assert host_mask(9, (), 0.5).shape == ()
    assert host_mask(9, (0, 3), 0.5).shape == (0, 3)


# ---- integers


@given(st.integers(0, 2**31 - 1), st.lists(st.integers(0, 5), max_size=3).map(tuple), st.integers(1, 2**16))
@settings(max_examples=50)
def test_random_integers_have_the_requested_shape_and_range(seed, shape, high):
    integers = random_integers(seed, shape, high, like=np.zeros(1))
    assert (integers.shape, integers.dtype) == (shape, np.int64)
    assert ((integers >= 0) & (integers < high)).all()


@pytest.mark.parametrize("high", [2, 9, 100])
def test_random_integers_are_uniform_and_the_same_on_every_backend(backend, high):
    integers = random_integers(11, (100 * high,), high, like=backend.asarray(np.zeros(1, np.float32)))
    host = random_integers(11, (100 * high,), high, like=np.zeros(1))
    np.testing.assert_array_equal(backend.to_host(integers), host)
    assert abs(np.bincount(host, minlength=high) - 100).max() < 50


@given(st.integers(0, 2**31 - 1))
def test_split_seeds_are_seeds_and_differ(seed):
    seeds = split_seed(seed, 4)
    assert len({seed, *seeds}) == 5
    assert all(type(s) is int and 0 <= s < 2**31 for s in seeds)

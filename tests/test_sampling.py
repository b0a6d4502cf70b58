"""Minibatches drawn each row once an epoch, and drawn again from a state."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpconv.backend import get_backend
from xpconv.data import Batches
from xpconv.data.sampling import SAMPLERS, EpochSampler, ReplacementSampler

COUNTS = st.integers(1, 40)


@given(COUNTS, COUNTS, st.integers(0, 100))
def test_no_row_comes_twice_in_an_epoch_and_few_are_left_over(count, size, seed):
    sampler = EpochSampler(np.random.default_rng(seed), count, size)
    for _ in range(3):
        batches = [sampler() for _ in range(max(count // size, 1))]
        rows = np.concatenate(batches)
        assert all(len(batch) == min(size, count) for batch in batches)
        assert len(set(rows.tolist())) == len(rows) > count - size
        assert set(rows.tolist()) <= set(range(count))


def test_every_row_comes_in_time_and_every_epoch_has_its_own_order():
    sampler = EpochSampler(np.random.default_rng(0), 10, 3)
    epochs = [tuple(np.concatenate([sampler() for _ in range(3)])) for _ in range(20)]
    assert len(set(epochs)) == 20
    assert set(np.concatenate(epochs)) == set(range(10))


@pytest.mark.parametrize("make", [lambda: np.random.default_rng(3), lambda: np.random.RandomState(3)])
@pytest.mark.parametrize("kind", SAMPLERS.values())
@given(COUNTS, COUNTS, st.integers(0, 30))
def test_state_of_plain_data_gives_the_same_draws_again(kind, make, count, size, before):
    first, second = kind(make(), count, size), kind(make(), count, size)
    for _ in range(before):
        first()
    second.state = json.loads(json.dumps(first.state))
    for _ in range(10):
        np.testing.assert_array_equal(first(), second())


@pytest.mark.parametrize("kind", SAMPLERS.values())
def test_draws_made_ahead_are_made_again_after_an_interruption(kind):
    X, y = np.arange(20.0)[:, None], np.arange(20)
    whole = kind(np.random.default_rng(0), 20, 3)
    expected = [whole() for _ in range(15)]
    sampler = kind(np.random.default_rng(0), 20, 3)
    drawn = []
    for _ in range(3):
        with Batches(X, y, sampler, get_backend("numpy"), prefetch=2) as batches:
            drawn += [next(batches)[1] for _ in range(5)]
    np.testing.assert_array_equal(drawn, expected)


def test_names_of_samplings():
    assert {"replacement": ReplacementSampler, "epoch": EpochSampler} == SAMPLERS

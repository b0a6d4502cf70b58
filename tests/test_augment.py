"""Random crops and flips: the same bits on every backend, and only the images that were there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import assert_array
from xpconv.data.augment import (
    AUGMENTATIONS,
    add_mirrored_copies,
    add_shifted_copies,
    parse_augmentation,
    random_crop,
    random_flip,
)
from xpconv.errors import ArgumentError
from xpconv.ops.random_bits import random_integers
from xpconv.random import split_seed

SEEDS = st.integers(0, 2**31 - 1)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


def distinct(shape, dtype=np.int64):
    """Return images whose pixels are all different, and none of them 0."""
    return np.arange(1, 1 + np.prod(shape), dtype=dtype).reshape(shape)


def every_crop(image, padding):
    """Cut every crop out of one padded image (C, H, W), by loops."""
    C, H, W = image.shape
    padded = np.zeros((C, H + 2 * padding, W + 2 * padding), image.dtype)
    padded[:, padding : padding + H, padding : padding + W] = image
    return [
        padded[:, top : top + H, left : left + W] for top in range(2 * padding + 1) for left in range(2 * padding + 1)
    ]


@given(SHAPES, st.integers(0, 3), SEEDS)
def test_each_image_becomes_one_of_its_crops(shape, padding, seed):
    x = distinct(shape)
    out = random_crop(x, padding, seed)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    for image, cropped in zip(x, out, strict=True):
        assert any(np.array_equal(cropped, crop) for crop in every_crop(image, padding))


@given(SHAPES, SEEDS)
def test_each_image_is_flipped_whole_or_not_at_all(shape, seed):
    x = distinct(shape)
    for image, out in zip(x, random_flip(x, seed), strict=True):
        assert np.array_equal(out, image) or np.array_equal(out, image[:, :, ::-1])


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize(
    "transform",
    [
        lambda x, seed: random_crop(x, 2, seed),
        random_flip,
        parse_augmentation("crop-flip")[1],
        parse_augmentation("flip")[1],
    ],
    ids=["crop", "flip", "crop-flip", "an augmentation of one"],
)
def test_changes_are_the_same_bits_on_every_backend_and_layout(backend, layout, transform, dtype):
    host = (distinct((6, 2, 5, 8)) % 251).astype(dtype)
    x = layout(backend, host)
    for seed in (0, 12345, 2**31 - 1):
        assert_array(transform(x, seed), transform(host, seed), backend, dtype, tolerance=0)
    np.testing.assert_array_equal(backend.to_host(x), host)


def test_every_place_and_side_comes_equally_often():
    x = np.broadcast_to(distinct((1, 1, 3, 3)), (9000, 1, 3, 3))
    crops, counts = np.unique(random_crop(x, 1, seed=3), axis=0, return_counts=True)
    assert len(crops) == 9
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000 * 8 / 9)
    flipped = np.mean(random_flip(x, seed=3)[:, 0, 0, 0] == 3)
    assert abs(flipped - 0.5) < 5 * 0.5 / np.sqrt(9000)


def test_place_and_side_know_nothing_of_each_other():
    x = np.broadcast_to(distinct((1, 1, 3, 3)), (18000, 1, 3, 3))
    _, counts = np.unique(parse_augmentation("crop-flip")[1](x, 5), axis=0, return_counts=True)
    assert len(counts) == 18
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_crop_of_no_padding_changes_nothing():
    x = distinct((4, 3, 5, 5))
    np.testing.assert_array_equal(random_crop(x, 0, 7), x)


@pytest.mark.parametrize("call", [lambda x: random_crop(x, 1, 0), lambda x: random_flip(x, 0)])
def test_changes_refuse_what_is_no_batch_of_images(call):
    with pytest.raises(ArgumentError, match=r"x has shape \(3, 4\); expected images \(N, C, H, W\)"):
        call(np.zeros((3, 4)))


def test_negative_padding_is_refused():
    with pytest.raises(ArgumentError, match="padding is -1; expected 0 or more pixels"):
        random_crop(np.zeros((1, 1, 2, 2)), -1, 0)


# ---- whole numbers from a seed


@given(SEEDS, st.lists(st.integers(0, 5), max_size=3).map(tuple), st.integers(1, 2**16))
@settings(max_examples=50)
def test_whole_numbers_have_the_shape_and_range_that_were_asked_for(seed, shape, high):
    numbers = random_integers(seed, shape, high, like=np.zeros(1))
    assert (numbers.shape, numbers.dtype) == (shape, np.int64)
    assert ((numbers >= 0) & (numbers < high)).all()


@pytest.mark.parametrize("high", [2, 9, 100])
def test_whole_numbers_are_equally_likely_and_the_same_on_every_backend(backend, high):
    numbers = random_integers(11, (100 * high,), high, like=backend.asarray(np.zeros(1, np.float32)))
    host = random_integers(11, (100 * high,), high, like=np.zeros(1))
    np.testing.assert_array_equal(backend.to_host(numbers), host)
    assert abs(np.bincount(host, minlength=high) - 100).max() < 50


@given(SEEDS)
def test_keys_of_a_key_are_keys_unlike_each_other(seed):
    keys = split_seed(seed, 4)
    assert len({seed, *keys}) == 5
    assert all(type(k) is int and 0 <= k < 2**31 for k in keys)


# ---- words


def test_words_join_copies_and_changes():
    X, y = distinct((2, 1, 8, 8)), np.array([3, 5])
    expand, transform = parse_augmentation("shift-mirror-crop-flip")
    expected = add_mirrored_copies(*add_shifted_copies(X, y))
    for out, wanted in zip(expand(X, y), expected, strict=True):
        np.testing.assert_array_equal(out, wanted)
    crop_seed, flip_seed = split_seed(9, 2)
    np.testing.assert_array_equal(transform(X, 9), random_flip(random_crop(X, 1, crop_seed), flip_seed))


@pytest.mark.parametrize("word", ["none", "shift", "mirror"])
def test_copies_alone_change_no_minibatch(word):
    assert parse_augmentation(word)[1] is None


def test_crops_move_by_an_eighth_of_the_smaller_side():
    x = np.ones((200, 1, 32, 64), np.uint8)
    rows = (parse_augmentation("crop")[1](x, 1).any(axis=3)[:, 0] == 0).sum(axis=1)
    assert (rows.min(), rows.max()) == (0, 4)


@pytest.mark.parametrize("spec", ["turn", "crop-turn", "", "crop,flip"])
def test_words_that_mean_nothing_are_refused_with_the_choices(spec):
    with pytest.raises(ArgumentError, match=f"augment is '{spec}'; expected none, shift, mirror, crop, flip, or sev"):
        parse_augmentation(spec)


def test_every_word_does_something_or_is_none():
    X, y = distinct((4, 1, 8, 8)), np.arange(4)
    for word in AUGMENTATIONS:
        expand, transform = parse_augmentation(word)
        assert (len(expand(X, y)[1]) > 4 or transform is not None) == (word != "none")

"""Augmentation: crops, flips and copies, with the same bits on every backend."""

import numpy as np
import pytest
from hypothesis import given
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
from xpconv.random import split_seed

SEEDS = st.integers(0, 2**31 - 1)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


def distinct(shape, dtype=np.int64):
    """Return images whose pixels are all different and not 0."""
    return np.arange(1, 1 + np.prod(shape), dtype=dtype).reshape(shape)


def every_crop(image, padding):
    """Return every crop of one padded image (C, H, W), by loops."""
    C, H, W = image.shape
    padded = np.zeros((C, H + 2 * padding, W + 2 * padding), image.dtype)
    padded[:, padding : padding + H, padding : padding + W] = image
    return [
        padded[:, top : top + H, left : left + W] for top in range(2 * padding + 1) for left in range(2 * padding + 1)
    ]


@given(SHAPES, st.integers(0, 3), SEEDS)
def test_random_crop_returns_one_of_the_crops_of_each_image(shape, padding, seed):
    x = distinct(shape)
    out = random_crop(x, padding, seed)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    for image, cropped in zip(x, out, strict=True):
        assert any(np.array_equal(cropped, crop) for crop in every_crop(image, padding))


@given(SHAPES, SEEDS)
def test_random_flip_returns_each_image_or_its_mirror_image(shape, seed):
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
    ids=["crop", "flip", "crop-flip", "one word"],
)
def test_transforms_give_the_same_bits_on_every_backend_and_layout(backend, layout, transform, dtype):
    host = (distinct((6, 2, 5, 8)) % 251).astype(dtype)
    x = layout(backend, host)
    for seed in (0, 12345, 2**31 - 1):
        assert_array(transform(x, seed), transform(host, seed), backend, dtype, tolerance=0)
    np.testing.assert_array_equal(backend.to_host(x), host)


def test_crop_positions_and_flips_are_uniformly_distributed():
    x = np.broadcast_to(distinct((1, 1, 3, 3)), (9000, 1, 3, 3))
    crops, counts = np.unique(random_crop(x, 1, seed=3), axis=0, return_counts=True)
    assert len(crops) == 9
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000 * 8 / 9)
    flipped = np.mean(random_flip(x, seed=3)[:, 0, 0, 0] == 3)
    assert abs(flipped - 0.5) < 5 * 0.5 / np.sqrt(9000)


def test_crop_position_and_flip_are_independent():
    x = np.broadcast_to(distinct((1, 1, 3, 3)), (18000, 1, 3, 3))
    _, counts = np.unique(parse_augmentation("crop-flip")[1](x, 5), axis=0, return_counts=True)
    assert len(counts) == 18
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_crop_of_no_padding_changes_nothing():
    x = distinct((4, 3, 5, 5))
    np.testing.assert_array_equal(random_crop(x, 0, 7), x)


@pytest.mark.parametrize("call", [lambda x: random_crop(x, 1, 0), lambda x: random_flip(x, 0)])
def test_arrays_that_are_not_batches_of_images_are_refused(call):
    with pytest.raises(ArgumentError, match=r"x has shape \(3, 4\); expected images \(N, C, H, W\)"):
        call(np.zeros((3, 4)))


def test_negative_padding_is_refused():
    with pytest.raises(ArgumentError, match="padding is -1; expected an int, 0 or more"):
        random_crop(np.zeros((1, 1, 2, 2)), -1, 0)


# ---- specifications


def test_a_specification_joins_expansions_and_transforms():
    X, y = distinct((2, 1, 8, 8)), np.array([3, 5])
    expand, transform = parse_augmentation("shift-mirror-crop-flip")
    expected = add_mirrored_copies(*add_shifted_copies(X, y))
    for actual, array in zip(expand(X, y), expected, strict=True):
        np.testing.assert_array_equal(actual, array)
    crop_seed, flip_seed = split_seed(9, 2)
    np.testing.assert_array_equal(transform(X, 9), random_flip(random_crop(X, 1, crop_seed), flip_seed))


@pytest.mark.parametrize("word", ["none", "shift", "mirror"])
def test_specifications_without_a_random_word_have_no_transform(word):
    assert parse_augmentation(word)[1] is None


def test_crops_move_by_an_eighth_of_the_smaller_side():
    x = np.ones((200, 1, 32, 64), np.uint8)
    rows = (parse_augmentation("crop")[1](x, 1).any(axis=3)[:, 0] == 0).sum(axis=1)
    assert (rows.min(), rows.max()) == (0, 4)


@pytest.mark.parametrize("spec", ["turn", "crop-turn", "", "crop,flip"])
def test_unknown_words_are_refused_with_the_choices(spec):
    with pytest.raises(ArgumentError, match=f"augment is '{spec}'; expected none, shift, mirror, crop, flip, or sev"):
        parse_augmentation(spec)


def test_every_word_but_none_has_an_effect():
    X, y = distinct((4, 1, 8, 8)), np.arange(4)
    for word in AUGMENTATIONS:
        expand, transform = parse_augmentation(word)
        assert (len(expand(X, y)[1]) > 4 or transform is not None) == (word != "none")

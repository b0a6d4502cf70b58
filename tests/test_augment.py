"""Augmentation: crops, flips and other changes, with the same bits on every backend."""

import warnings

import array_api_compat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import assert_array
from xpconv.cli._run import build_solver
from xpconv.cli._settings import settings_for
from xpconv.data import load_digits
from xpconv.data.augment import (
    AUGMENTATIONS,
    Minibatch,
    alternating_flip,
    cutout,
    mixup,
    parse_augmentation,
    random_affine,
    random_brightness,
    random_contrast,
    random_crop,
    random_flip,
)
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.ops.random_bits import random_integers
from xpconv.random import split_seed

SEEDS = st.integers(0, 2**31 - 1)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


def distinct(shape, dtype=np.int64):
    """Return images whose pixels are all different and not 0."""
    return np.arange(1, 1 + np.prod(shape), dtype=dtype).reshape(shape)


def transform_of(spec, seed=0, epoch=0, num_classes=10):
    """Return the transform of images that a specification names, for tests of images alone."""
    transform = parse_augmentation(spec, seed)

    def augment(x, minibatch_seed):
        y, rows = np.arange(x.shape[0]) % num_classes, np.arange(x.shape[0])
        y = array_api_compat.array_namespace(x).asarray(y, device=array_api_compat.device(x))
        return transform(Minibatch(x, y, rows, epoch, num_classes), minibatch_seed).X

    return augment


def every_crop(image, padding, mode="constant"):
    """Return every crop of one padded image (C, H, W), by loops."""
    H, W = image.shape[1:]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode)
    return [
        padded[:, top : top + H, left : left + W] for top in range(2 * padding + 1) for left in range(2 * padding + 1)
    ]


@pytest.mark.parametrize(("border", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
@given(SHAPES, st.integers(0, 3), SEEDS)
def test_random_crop_returns_one_of_the_crops_of_each_image(border, mode, shape, padding, seed):
    x = distinct(shape)
    padding = min(padding, min(shape[2:]) - 1) if border == "reflect" else padding
    out = random_crop(x, padding, seed, border=border)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    for image, cropped in zip(x, out, strict=True):
        assert any(np.array_equal(cropped, crop) for crop in every_crop(image, padding, mode))


def test_reflected_crops_have_the_positions_of_crops_with_zeros():
    x = distinct((50, 2, 6, 7))
    zeros, reflected = random_crop(x, 3, 5), random_crop(x, 3, 5, border="reflect")
    np.testing.assert_array_equal(reflected[zeros > 0], zeros[zeros > 0])


@given(SHAPES, SEEDS, st.integers(0, 9))
def test_alternating_flip_shows_each_image_and_its_mirror_image_in_turn(shape, seed, epoch):
    x, rows = distinct(shape), np.arange(shape[0]) * 7
    now, then, again = (alternating_flip(x, rows, epoch + later, seed) for later in range(3))
    np.testing.assert_array_equal(then, now[..., ::-1])
    np.testing.assert_array_equal(again, now)
    for image, out in zip(x, now, strict=True):
        assert np.array_equal(out, image) or np.array_equal(out, image[:, :, ::-1])


def test_alternating_flip_depends_on_the_number_of_an_image_in_the_data_alone():
    x, rows = np.broadcast_to(distinct((1, 1, 2, 3)), (4000, 1, 2, 3)), np.arange(4000)
    whole, order = alternating_flip(x, rows, 0, seed=3), np.random.default_rng(0).permutation(4000)
    np.testing.assert_array_equal(alternating_flip(x, rows[order], 0, seed=3), whole[order])
    flipped = whole[:, 0, 0, 0] == 3
    assert abs(flipped.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    other = alternating_flip(x, rows, 0, seed=4)[:, 0, 0, 0] == 3
    assert abs((flipped == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)


@given(SHAPES, st.integers(1, 7), SEEDS)
def test_cutout_covers_a_square_around_a_pixel_with_the_mean_of_each_channel(shape, size, seed):
    x = distinct(shape, np.float64)
    (_, C, H, W), half = shape, size // 2
    for image, out in zip(x, cutout(x, size, seed), strict=True):
        means = np.broadcast_to(image.reshape(C, -1).mean(axis=1)[:, None, None], image.shape)
        squares = []
        for i in range(H):
            for j in range(W):
                expected = image.copy()
                square = np.s_[:, max(i - half, 0) : i - half + size, max(j - half, 0) : j - half + size]
                expected[square] = means[square]
                squares.append(expected)
        assert any(np.allclose(out, square, rtol=1e-12) for square in squares)


def test_cutout_centres_are_uniformly_distributed():
    x = np.broadcast_to(np.arange(12.0).reshape(1, 1, 3, 4), (12000, 1, 3, 4))
    _, counts = np.unique(cutout(x, 1, seed=3) == 5.5, axis=0, return_counts=True)
    assert len(counts) == 12
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


@given(SHAPES, SEEDS)
def test_affine_of_strength_and_shift_0_changes_nothing(shape, seed):
    x = distinct(shape, np.float64)
    np.testing.assert_array_equal(random_affine(x, 0, seed, shift=0), x)


@given(SHAPES, st.floats(0, 1), st.floats(0, 1), SEEDS)
def test_affine_interpolates_between_the_four_pixels_around_each_position(shape, strength, shift, seed):
    x = distinct(shape, np.float64)
    (N, C, H, W), out = shape, random_affine(x, strength, seed, shift=shift)
    factors = random_integers(seed, (6, N), 2**16, like=x) * 2.0**-15 - 1
    for n in range(N):
        R, t = strength * factors[:4, n].reshape(2, 2), shift * factors[4:, n] * [H, W]
        centre = np.array([(H - 1) / 2, (W - 1) / 2])
        for i in range(H):
            for j in range(W):
                top, left = (np.eye(2) + R) @ ([i, j] - centre) + t + centre
                expected = np.zeros(C)
                for row in range(H):
                    for column in range(W):
                        weight = max(1 - abs(row - top), 0) * max(1 - abs(column - left), 0)
                        expected += weight * x[n, :, row, column]
                np.testing.assert_allclose(out[n, :, i, j], expected, rtol=1e-9, atol=1e-9)


def test_brightness_multiplies_each_image_by_a_factor_within_the_strength():
    x = np.ones((4000, 2, 3, 3)) * np.arange(1, 3)[:, None, None]
    factors = random_brightness(x, 0.25, seed=2) / x
    assert np.ptp(factors.reshape(4000, -1), axis=1).max() < 1e-12
    assert 0.75 <= factors.min() < 0.76
    assert 1.24 < factors.max() <= 1.25
    assert abs(factors[:, 0, 0, 0].mean() - 1) < 5 * 0.25 / np.sqrt(3 * 4000)


def test_contrast_multiplies_distances_from_the_mean_of_each_image():
    x = np.random.default_rng(0).random((3000, 3, 4, 5))
    out, means = random_contrast(x, 0.5, seed=2), x.mean(axis=(1, 2, 3), keepdims=True)
    factors = (out - means) / (x - means)
    np.testing.assert_allclose(factors.reshape(3000, -1).std(axis=1), 0, atol=1e-9)
    assert 0.5 <= factors.min() < 0.51
    assert 1.49 < factors.max() <= 1.5


def test_brightness_and_contrast_of_bytes_are_rounded_and_limited():
    x = np.random.default_rng(0).integers(0, 256, (500, 3, 4, 4), dtype=np.uint8)
    for change in (random_brightness, random_contrast):
        exact = change(x.astype(np.float64), 1.0, seed=4)
        np.testing.assert_allclose(change(x, 1.0, seed=4), np.rint(exact).clip(0, 255), atol=1)
    np.testing.assert_array_equal(random_contrast(x, 0, seed=4), x)


@given(SHAPES, SEEDS, st.floats(0.1, 3))
def test_mixup_averages_images_and_labels_with_one_weight(shape, seed, alpha):
    x, y = distinct(shape, np.float64), np.arange(shape[0]) % 3
    out, probabilities = mixup(x, y, 3, seed, alpha=alpha)
    one_hot = np.eye(3)[y]
    weight = np.random.RandomState(seed).beta(alpha, alpha)
    for n in range(shape[0]):
        following = (n + 1) % shape[0]
        np.testing.assert_allclose(out[n], weight * x[n] + (1 - weight) * x[following], rtol=1e-12)
        np.testing.assert_allclose(probabilities[n], weight * one_hot[n] + (1 - weight) * one_hot[following])
    again = mixup(x, probabilities, 3, seed, alpha=alpha)[1]
    np.testing.assert_allclose(again.sum(axis=1), 1)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_mixup_gives_the_same_bits_on_every_backend(backend, layout, dtype):
    host, y = (distinct((6, 2, 5, 8)) % 251).astype(dtype), np.arange(6)
    for seed in (0, 12345, 2**31 - 1):
        expected = mixup(host, y, 6, seed)
        actual = mixup(layout(backend, host), backend.asarray(y), 6, seed)
        assert_array(actual[0], expected[0], backend, dtype, tolerance=0)
        assert_array(actual[1], expected[1], backend, "float64" if dtype == "float64" else "float32", tolerance=0)


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
        lambda x, seed: random_crop(x, 2, seed, border="reflect"),
        random_flip,
        lambda x, seed: alternating_flip(x, np.arange(x.shape[0]), 1, seed),
        lambda x, seed: cutout(x, 3, seed),
        lambda x, seed: random_affine(x, 0.3, seed),
        lambda x, seed: random_brightness(x, 0.7, seed),
        lambda x, seed: random_contrast(x, 0.7, seed),
        transform_of("crop-flip"),
        transform_of("reflect-alternate-cutout-brightness-contrast-mixup"),
    ],
    ids=["crop", "reflect", "flip", "alternate", "cutout", "affine", "brightness", "contrast", "crop-flip", "all"],
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
    _, counts = np.unique(transform_of("crop-flip")(x, 5), axis=0, return_counts=True)
    assert len(counts) == 18
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_crop_of_no_padding_changes_nothing():
    x = distinct((4, 3, 5, 5))
    np.testing.assert_array_equal(random_crop(x, 0, 7), x)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: random_crop(x, 1, 0),
        lambda x: random_flip(x, 0),
        lambda x: alternating_flip(x, np.arange(3), 0),
        lambda x: cutout(x, 1, 0),
        lambda x: random_affine(x, 0.1, 0),
        lambda x: random_brightness(x, 0.1, 0),
        lambda x: random_contrast(x, 0.1, 0),
        lambda x: mixup(x, np.arange(3), 3, 0),
        lambda x: transform_of("crop")(x, 0),
    ],
)
def test_arrays_that_are_not_batches_of_images_are_refused(call):
    with pytest.raises(ArgumentError, match=r"x has shape \(3, 4\); expected images \(N, C, H, W\)"):
        call(np.zeros((3, 4)))


def test_negative_padding_is_refused():
    with pytest.raises(ArgumentError, match="padding is -1; expected an int, 0 or more"):
        random_crop(np.zeros((1, 1, 2, 2)), -1, 0)


IMAGES = np.zeros((2, 1, 4, 6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_crop(IMAGES, 1, 0, border="wrap"), "border is 'wrap'; expected zeros or reflect"),
        (
            lambda: random_crop(IMAGES, 4, 0, border="reflect"),
            r"padding is 4, but images of shape \(4, 6\) can be reflected by at most 3 pixels: take a smaller padding",
        ),
        (
            lambda: alternating_flip(IMAGES, np.arange(3), 0),
            r"rows has shape \(3,\); expected \(2,\), one number for each",
        ),
        (lambda: cutout(IMAGES, 0, 0), "size is 0; expected an int, 1 or more"),
        (lambda: random_affine(IMAGES, 1.5, 0), r"strength is 1\.5; expected a number from 0 to 1"),
        (lambda: random_affine(IMAGES, 0, 0, shift=-1), "shift is -1; expected a number from 0 to 1"),
        (lambda: random_brightness(IMAGES, 1.5, 0), r"strength is 1\.5; expected a number from 0 to 1"),
        (lambda: random_contrast(IMAGES, -0.5, 0), r"strength is -0\.5; expected a number from 0 to 1"),
        (lambda: mixup(IMAGES, np.arange(2), 3, 0, alpha=0), "alpha is 0; expected a number above 0: leave mixup out"),
        (
            lambda: mixup(IMAGES, np.zeros((2, 4)), 3, 0),
            r"y has shape \(2, 4\); expected labels \(2,\) or probabilities \(2, 3\)",
        ),
        (
            lambda: parse_augmentation("mixup")(Minibatch(IMAGES, np.arange(2), np.arange(2), 0), 0),
            "mixup needs the number of classes, but the model has no num_classes",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: cutout(x, 1, 0),
        lambda x: random_affine(x, 0.1, 0),
        lambda x: random_brightness(x, 0.1, 0),
        lambda x: mixup(x, np.arange(2), 2, 0),
    ],
)
def test_images_of_other_integers_are_refused_where_pixels_are_computed(call):
    with pytest.raises(ArgumentTypeError, match="x has dtype int64; expected uint8 or floating-point images"):
        call(IMAGES.astype(np.int64))


# ---- specifications


def test_a_specification_joins_transforms():
    X = distinct((2, 1, 8, 8))
    crop_seed, flip_seed = split_seed(9, 2)
    np.testing.assert_array_equal(transform_of("crop-flip")(X, 9), random_flip(random_crop(X, 1, crop_seed), flip_seed))


def test_crops_move_by_an_eighth_of_the_smaller_side():
    x = np.ones((200, 1, 32, 64), np.uint8)
    rows = (transform_of("crop")(x, 1).any(axis=3)[:, 0] == 0).sum(axis=1)
    assert (rows.min(), rows.max()) == (0, 4)


@pytest.mark.parametrize("spec", ["turn", "crop-turn", "", "crop,flip", "crop-4", "Crop", "4"])
def test_unknown_words_are_refused_with_the_choices(spec):
    with pytest.raises(ArgumentError, match=f"augment is '{spec}'; expected none, crop, reflect, affine, .*, or sev"):
        parse_augmentation(spec)


def test_every_word_but_none_has_an_effect():
    for word in AUGMENTATIONS:
        assert (parse_augmentation(word) is None) == (word == "none")


@pytest.mark.parametrize("spec", AUGMENTATIONS)
def test_an_epoch_has_as_many_iterations_with_every_augmentation_as_without(spec):
    settings = settings_for("digits", num_train=105, epochs=3, batch_size=10, augment=spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a flip of digits warns
        solver = build_solver(settings, load_digits())
    solver.verbose = False
    solver.train()
    assert (solver.epoch, solver.iteration) == (3, 30)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("flip4", "augment is 'flip4'; expected no number after flip"),
        ("none1", "expected no number after none"),
        ("crop0", "expected a whole number of pixels, 1 or more after crop"),
        ("cutout2.5", "expected a whole number of pixels, 1 or more after cutout"),
        ("flip-brightness2", "expected a number above 0, at most 1 after brightness"),
        ("mixup0.0", "expected a number above 0 after mixup"),
        ("crop-reflect", "augment is 'crop-reflect', but crop and reflect exclude each other: leave one of them out"),
        ("alternate-crop-flip", "but flip and alternate exclude each other"),
    ],
)
def test_numbers_and_words_that_do_not_fit_are_refused(spec, message):
    with pytest.raises(ArgumentError, match=message):
        parse_augmentation(spec)


def test_numbers_follow_their_words():
    x = np.random.default_rng(0).random((20, 1, 9, 9))
    seeds = split_seed(11, 3)
    expected = random_contrast(cutout(random_crop(x, 3, seeds[0], border="reflect"), 2, seeds[1]), 0.5, seeds[2])
    np.testing.assert_array_equal(transform_of("reflect3-cutout2-contrast0.5")(x, 11), expected)


def test_the_seed_of_the_run_and_the_epoch_determine_alternating_flips():
    x = distinct((30, 1, 2, 3))
    first = transform_of("alternate", seed=5)
    np.testing.assert_array_equal(first(x, 1), first(x, 2))
    np.testing.assert_array_equal(transform_of("alternate", seed=5, epoch=3)(x, 1), first(x, 1)[..., ::-1])
    np.testing.assert_array_equal(first(x, 1), alternating_flip(x, np.arange(30), 0, 5))


BATCH = np.zeros((2, 3, 4, 4), np.uint8)
BATCH_LABELS = np.array([0, 1])
IMAGE_FUNCTIONS = {
    "random_crop": lambda x, seed=1: random_crop(x, 1, seed),
    "random_affine": lambda x, seed=1: random_affine(x, 0.2, seed),
    "random_flip": lambda x, seed=1: random_flip(x, seed),
    "alternating_flip": lambda x, seed=1: alternating_flip(x, BATCH_LABELS, 0, seed),
    "cutout": lambda x, seed=1: cutout(x, 2, seed),
    "random_brightness": lambda x, seed=1: random_brightness(x, 0.2, seed),
    "random_contrast": lambda x, seed=1: random_contrast(x, 0.2, seed),
    "mixup": lambda x, seed=1: mixup(x, BATCH_LABELS, 3, seed),
}


@pytest.mark.parametrize("function", IMAGE_FUNCTIONS.values(), ids=IMAGE_FUNCTIONS)
@pytest.mark.parametrize(
    ("images", "seed", "message"),
    [
        (BATCH.tolist(), 1, "x is a list; expected an array of images"),
        (None, 1, "x is a NoneType; expected an array of images"),
        (BATCH[:, :, :0], 1, r"x has shape \(2, 3, 0, 4\); expected images \(N, C, H, W\) of one pixel or more"),
        (BATCH, 1.5, "seed is 1.5; expected an int from 0 to 4294967295"),
        (BATCH, None, "seed is None; expected an int"),
        (BATCH, -1, "seed is -1; expected an int"),
        (BATCH, 2**70, "seed is 1180591620717411303424; expected an int"),
    ],
)
def test_what_is_no_image_or_seed_is_refused(function, images, seed, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        function(images, seed)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mixup(BATCH, [0, 1], 3, 1), "y is a list; expected an array of labels"),
        (
            lambda: mixup(BATCH, BATCH_LABELS + 2, 3, 1),
            "y has labels from 2 to 3; expected 0 to 2, since num_classes is 3",
        ),
        (lambda: mixup(BATCH, BATCH_LABELS - 1, 3, 1), "y has labels from -1 to 0; expected 0 to 2"),
        (lambda: mixup(BATCH, BATCH_LABELS / 2, 3, 1), "y has dtype float64; expected integer labels"),
        (lambda: alternating_flip(BATCH, BATCH_LABELS / 2, 0), "rows has dtype float64; expected integers"),
        (lambda: alternating_flip(BATCH, ["a", "b"], 0), "rows has dtype <U1; expected integers"),
        (lambda: alternating_flip(BATCH, BATCH_LABELS, 0.5), "epoch is 0.5; expected an int, 0 or more"),
        (lambda: parse_augmentation(None), "augment is None; expected text, such as crop-flip"),
        (lambda: parse_augmentation("alternate", -1), "seed is -1; expected an int"),
        (lambda: parse_augmentation("flip")(BATCH, 1), "minibatch is a ndarray; expected a Minibatch"),
        (
            lambda: parse_augmentation("flip")(Minibatch(BATCH, BATCH_LABELS, BATCH_LABELS, 0), "a"),
            "seed is 'a'; expected an int",
        ),
    ],
)
def test_errors_name_the_argument_of_an_augmentation(call, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        call()


@pytest.mark.parametrize("name", ["random_affine", "cutout", "random_brightness", "random_contrast"])
def test_float16_images_change_as_float32_images_do(name):
    x = np.random.default_rng(0).integers(0, 256, (4000, 3, 4, 8)).astype(np.float16)  # sums of an image may overflow
    function = IMAGE_FUNCTIONS[name]
    changed = function(x * 16)
    assert changed.dtype == np.float16
    np.testing.assert_array_equal(changed, function((x * 16).astype(np.float32)).astype(np.float16))


@pytest.mark.parametrize("function", IMAGE_FUNCTIONS.values(), ids=IMAGE_FUNCTIONS)
def test_empty_minibatches_stay_empty(function, monkeypatch):
    monkeypatch.setitem(globals(), "BATCH_LABELS", BATCH_LABELS[:0])
    result = function(BATCH[:0])
    assert (result[0] if isinstance(result, tuple) else result).shape == (0, 3, 4, 4)

"""Pictures of one's own: strokes framed as the digits are, and images that are unlike the training images."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import xpconv
from tests.commands import call
from tests.own_digits import FONTS, draw_pictures
from xpconv.data import load_digits, strokes
from xpconv.data.images import read_image, read_strokes
from xpconv.data.strokes import INK, MOST_INK, frame_strokes
from xpconv.data.typical import TypicalImages, measure_images
from xpconv.errors import ArgumentError, ArgumentTypeError, CheckpointError

DIGITS = load_digits()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The model that a plain ``xpconv train`` makes."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    result = call("train", "--out", folder)
    assert result.exit_code == 0, result.output
    assert float(re.search(r"test accuracy: (\S+)", result.stdout)[1]) >= 0.98
    return folder / "model.safetensors"


def write(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


# ---- whole commands


def test_nine_of_ten_digits_of_ones_own_are_recognised(model):
    pictures, net = list(draw_pictures()), xpconv.load_model(model, "numpy")
    X = np.stack([frame_strokes(picture.pixels, 8, 8).pixels for picture in pictures])[:, None]
    right = net.predict(X) == [picture.digit for picture in pictures]
    assert len(pictures) >= 700
    assert right.mean() >= 0.9
    assert (net.preprocessing.typical.distances(X) > 1).mean() < 0.05


def test_the_pictures_are_varied():
    pictures = list(draw_pictures())
    assert {picture.kind for picture in pictures} == {*FONTS, "handwritten", "MNIST-like"}
    assert {picture.digit for picture in pictures} == set(range(10))
    borders = [np.median(picture.pixels[0]) for picture in pictures]
    assert 0.3 < np.mean(np.array(borders) > 128) < 0.7
    heights = [picture.pixels.shape[0] for picture in pictures]
    assert min(heights) < 30
    assert max(heights) > 200


def test_predict_inverts_dark_strokes_and_says_so(model, tmp_path):
    picture = next(picture.pixels for picture in draw_pictures() if picture.digit == 5 and picture.pixels[0, 0] < 30)
    light, dark = write(tmp_path / "light.png", picture), write(tmp_path / "dark.png", 255 - picture)
    plain, inverted = call("predict", model, light), call("predict", model, dark)
    assert (plain.exit_code, inverted.exit_code) == (0, 0)
    assert plain.stdout.split("\t")[1:] == inverted.stdout.split("\t")[1:]
    assert plain.stderr == ""
    assert inverted.stderr == f"xpconv: {dark} has dark strokes on a light background: inverted\n"


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((30, 30), 128, np.uint8),
        np.zeros((28, 28), np.uint8),
        np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8),
    ],
    ids=["grey", "black", "noise", "large noise"],
)
def test_predict_warns_of_an_image_that_is_no_digit(model, tmp_path, pixels):
    path = write(tmp_path / "no digit.png", pixels)
    result = call("predict", model, path)
    assert result.exit_code == 0
    assert f"xpconv: warning: {path} is unlike the training images, so its class may be meaningless\n" in result.stderr


def test_fewer_than_one_test_image_in_a_hundred_is_called_unlike(model):
    typical = xpconv.load_model(model, "numpy").preprocessing.typical
    assert (typical.distances(DIGITS.X_test) > 1).mean() < 0.01
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (500, 1, 8, 8), dtype=np.uint8)
    blank = np.arange(0, 256, 5, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 1, 8, 8), np.uint8)
    for unlike in (255 - DIGITS.X_test, noise, blank):
        assert (typical.distances(unlike) > 1).mean() > 0.99


# ---- strokes


def test_digits_fill_their_height_and_have_the_ink_that_framing_gives():
    """Nothing but their width has a margin, so framing needs none above and below."""
    assert (DIGITS.X_train[:, 0, [0, -1]].max(axis=2) > 0).all()
    assert abs(DIGITS.X_train.mean() / 255 - INK) < 0.02


@given(st.integers(1, 3), st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_position_size_and_polarity_do_not_matter(scale, top, left, dark):
    picture = np.zeros((20, 14), np.uint8)
    picture[2:18, 3:5], picture[10:13, 3:12] = 255, 255
    expected = frame_strokes(np.pad(picture, 3), 8, 8).pixels
    other = np.pad(np.kron(picture, np.ones((scale, scale), np.uint8)), ((top + 1, 5), (left + 1, 7)))
    strokes = frame_strokes(255 - other if dark else other, 8, 8)
    assert (strokes.inverted, strokes.plain) == (dark, True)
    assert abs(strokes.pixels.astype(int) - expected).max() <= 40


def test_thin_strokes_are_thickened_and_slanted_ones_made_upright():
    thin = np.zeros((80, 60), np.uint8)
    for row in range(10, 70):
        thin[row, 45 - row // 3] = 255
    pixels = frame_strokes(thin, 8, 8).pixels.astype(float)
    assert pixels.mean() / 255 >= INK * 0.99
    columns = pixels @ np.arange(8) / pixels.sum(axis=1)
    assert np.ptp(columns) < 0.6


def test_the_foot_of_an_upright_stem_is_cut_off():
    stem, foot = np.zeros((80, 60), np.uint8), np.zeros((80, 60), np.uint8)
    stem[10:65, 28:34], foot[65:71, 16:46] = 255, 255
    expected = frame_strokes(stem, 8, 8).pixels
    assert abs(frame_strokes(stem + foot, 8, 8).pixels.astype(int) - expected).max() <= 40
    foot[:, :28] = 0  # on one side only, as in an L
    letter = (stem + foot)[10:71, 28:46] / 255
    assert strokes._without_foot(letter) is letter


def test_no_digit_but_a_1_has_a_foot():
    with_foot = set()
    for picture in draw_pictures(copies=1):
        ink, _ = strokes._ink(picture.pixels)
        upright = strokes._upright(strokes._fitted(strokes._cropped(ink), 64, 256))
        if strokes._without_foot(upright) is not upright:
            with_foot.add(picture.digit)
    assert with_foot == {1}


def test_thick_strokes_are_thinned_and_thin_ones_beside_them_stay():
    bold = np.zeros((80, 60), np.uint8)
    bold[5:75, 5:21], bold[5:75, 39:55], bold[38:41, 5:55] = 255, 255, 255  # an H with a thin bar
    pixels = frame_strokes(bold, 8, 8).pixels.astype(float)
    assert pixels[2:6, 1:7].sum(axis=0).min() > 30
    assert INK / 2 < pixels.mean() / 255 <= MOST_INK * 1.01


def test_blank_pictures_have_no_strokes():
    for level in (0, 100, 255):
        picture = np.full((9, 30), level, np.uint8)
        picture[4, 7] = level - 10 if level else 10  # paper is never quite even
        assert not frame_strokes(picture, 8, 8).pixels.any()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 33), st.integers(1, 33), st.integers(0, 2**31))
def test_any_picture_can_be_framed_at_any_size(rows, columns, height, width, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (rows, columns), dtype=np.uint8)
    pixels = frame_strokes(picture, height, width).pixels
    assert (pixels.shape, pixels.dtype) == ((height, width), np.uint8)
    assert pixels.max() in (0, 255)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((3, 4, 3), np.uint8), r"picture has shape \(3, 4, 3\) and dtype uint8; expected a grey picture"),
        (np.zeros((3, 4)), r"picture has shape \(3, 4\) and dtype float64; expected .* of uint8: convert it first"),
        (np.zeros((0, 4), np.uint8), r"picture has shape \(0, 4\) and dtype uint8; expected a grey picture"),
        ([[0, 1]], r"picture is a list; expected a numpy\.ndarray \(rows, columns\) of uint8"),
        (None, r"picture is a NoneType; expected a numpy\.ndarray"),
    ],
)
def test_other_arrays_are_no_pictures(picture, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        frame_strokes(picture, 8, 8)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([[[[1]]]], "X is a list; expected a numpy.ndarray"),
        (None, "X is a NoneType; expected a numpy.ndarray"),
        (np.full((2, 1, 3, 3), "a"), "X has dtype <U1; expected images of real numbers"),
        (np.zeros((2, 1, 0, 3)), r"X has shape \(2, 1, 0, 3\); expected images \(N, C, H, W\) of one pixel or more"),
        (np.zeros((2, 0, 3, 3)), r"X has shape \(2, 0, 3, 3\); expected images \(N, C, H, W\) of one pixel or more"),
        (np.full((2, 1, 3, 3), np.nan), "X has NaN, infinite or huge values; expected finite images"),
    ],
)
def test_typical_images_are_arrays_of_finite_pixels(X, message):
    typical = measure_images(np.arange(18.0).reshape(2, 1, 3, 3))
    for measure in (measure_images, typical.distances):
        with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
            measure(X)


def test_sizes_of_strokes_are_checked():
    with pytest.raises(ArgumentError, match="height is 0; expected an int, 1 or more"):
        frame_strokes(np.zeros((3, 4), np.uint8), 0, 8)
    with pytest.raises(ArgumentTypeError, match=r"width is 1\.5; expected an int"):
        frame_strokes(np.zeros((3, 4), np.uint8), 8, 1.5)
    with pytest.raises(ArgumentTypeError, match="height is '8'; expected an int"):
        read_strokes("digit.png", "8", 8)


@pytest.mark.parametrize("path", [None, 5])
def test_only_paths_are_opened_as_images(path):
    for read in (lambda: read_strokes(path, 8, 8), lambda: read_image(path, (1, 8, 8))):
        with pytest.raises(ArgumentTypeError, match=f"path is {path}; expected the path of an image file"):
            read()
    with pytest.raises(ArgumentTypeError, match=r"shape is 8; expected \(1, H, W\) or \(3, H, W\)"):
        read_image("digit.png", 8)


def test_files_of_strokes_are_framed_in_every_channel(tmp_path):
    picture = next(draw_pictures()).pixels
    path = write(tmp_path / "digit.png", picture)
    expected = frame_strokes(picture, 8, 8)
    assert read_strokes(path, 8, 8).inverted == expected.inverted
    np.testing.assert_array_equal(read_image(path, (3, 8, 8), "strokes"), np.tile(expected.pixels, (3, 1, 1)))


# ---- typical images


def test_distances_are_those_of_mahalanobis():
    X = np.random.default_rng(0).integers(0, 200, (300, 3, 5, 6)).astype(np.uint8)
    typical = measure_images(X)
    x = X[7].astype(float)
    vertical, horizontal = abs(x[:, 1:] - x[:, :-1]).mean(), abs(x[:, :, 1:] - x[:, :, :-1]).mean()
    away = np.array([*x.mean(axis=(1, 2)), x.std(), vertical, horizontal]) - typical.mean
    assert typical.distances(X[7:8])[0] == pytest.approx(np.sqrt(away @ typical.precision @ away))
    assert (typical.distances(X) > 1).mean() <= 0.001


def test_images_that_are_all_the_same_are_typical():
    X = np.full((4, 1, 1, 1), 9, np.uint8)
    typical = measure_images(X)
    assert (typical.distances(X) == 0).all()
    assert typical.distances(X + 90)[0] > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: measure_images(np.zeros((3, 4))),
            r"X has shape \(3, 4\); expected images \(N, C, H, W\) of one pixel or more",
        ),
        (lambda: measure_images(np.zeros((0, 1, 2, 2))), r"X has shape \(0, 1, 2, 2\); expected one image or more"),
        (
            lambda: measure_images(np.zeros((2, 1, 2, 2))).distances(np.zeros((2, 3, 2, 2))),
            r"X has shape \(2, 3, 2, 2\); expected images \(N, C, H, W\) with 1 channels, as the training images",
        ),
    ],
)
def test_arrays_that_are_no_such_images_are_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_model_files_keep_what_is_typical(tmp_path):
    net = xpconv.ThreeLayerConvNet(input_dim=(1, 8, 8), rng=0)
    net.preprocessing = xpconv.Preprocessing(100.0, 50.0, "strokes", measure_images(DIGITS.X_train))
    xpconv.save_model(net, tmp_path / "net.safetensors")
    loaded = xpconv.load_model(tmp_path / "net.safetensors", "numpy").preprocessing
    assert loaded.resize == "strokes"
    np.testing.assert_array_equal(loaded.typical.precision, net.preprocessing.typical.precision)
    np.testing.assert_array_equal(loaded.typical.mean, net.preprocessing.typical.mean)


def test_typical_images_of_another_shape_are_not_saved(tmp_path):
    net = xpconv.ThreeLayerConvNet(input_dim=(1, 8, 8), rng=0)
    net.preprocessing = xpconv.Preprocessing(100.0, 50.0, None, TypicalImages(np.zeros(6), np.zeros((6, 6))))
    with pytest.raises(CheckpointError, match=r"typical\.mean"):
        xpconv.save_model(net, tmp_path / "net.safetensors")

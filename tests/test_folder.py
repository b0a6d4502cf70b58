"""Stratified splits, and folders of images as data sets."""

import json
import re
import shutil
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from xpconv import load_model
from xpconv.cli import _app
from xpconv.cli._settings import settings_for
from xpconv.data import folder, load_dataset, load_digits, load_folder, stratified_split
from xpconv.data.images import read_image
from xpconv.errors import ArgumentError, ArgumentTypeError, DatasetError
from xpconv.training.metrics import probabilities

# ---- splits


@st.composite
def labels_and_fractions(draw):
    weights = draw(st.lists(st.integers(1, 50), min_size=1, max_size=4))
    counts = draw(st.lists(st.integers(len(weights), 40), min_size=1, max_size=5))
    y = np.repeat(np.arange(len(counts)) * 3, counts)
    return draw(st.permutations(y.tolist())), [weight / sum(weights) for weight in weights]


@given(labels_and_fractions(), st.integers(0, 100))
def test_splits_are_complete_disjoint_and_stratified(case, seed):
    y, fractions = np.array(case[0]), case[1]
    splits = stratified_split(y, fractions, seed)
    assert np.array_equal(np.sort(np.concatenate(splits)), np.arange(len(y)))
    assert all(split.dtype == np.int64 for split in splits)
    for label in np.unique(y):
        n = np.sum(y == label)
        counts = [np.sum(y[split] == label) for split in splits]
        assert min(counts) >= 1
        if min(fractions) * n >= 1:
            assert all(abs(count - fraction * n) <= 1 for count, fraction in zip(counts, fractions, strict=True))


def test_split_follows_the_seed_and_mixes_the_classes():
    y = np.repeat([0, 1, 2], 40)
    first, again, other = (stratified_split(y, (0.5, 0.5), seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)
    assert set(y[first[:15]]) == {0, 1, 2}


@pytest.mark.parametrize(
    ("y", "fractions", "message"),
    [
        (
            [[0, 1]],
            (0.5, 0.5),
            r"y has shape \(1, 2\) and fractions is \(0.5, 0.5\); expected labels \(N,\) and fractions",
        ),
        ([0, 1], (0.5, 0.4), "that add up to 1"),
        ([0, 1], (1.5, -0.5), "fractions above 0"),
        ([0, 1], (), "fractions above 0"),
        ([0, 0, 7], (0.5, 0.5), "class 7 has 1 sample; expected 2 or more, one for each split"),
    ],
)
def test_labels_and_fractions_that_cannot_be_split_are_refused(y, fractions, message):
    with pytest.raises(ArgumentError, match=message):
        stratified_split(np.array(y), fractions)


# ---- folders


def write_images(folder, colors, size=(12, 9)):
    """Write one image of each grey level."""
    folder.mkdir(parents=True)
    for i, color in enumerate(colors):
        Image.new("L", size, color).save(folder / f"{i}.png")


@pytest.fixture
def flat(tmp_path):
    """Return a folder of 20 light and 10 dark images, each of its own grey level; those of dark are below 100."""
    write_images(tmp_path / "light", range(100, 120))
    write_images(tmp_path / "dark", range(10))
    return tmp_path


def grey_levels(X):
    return sorted(X[:, 0, 0, 0].tolist())


def test_each_subfolder_is_a_class_split_in_about_the_same_proportions(flat):
    data = load_folder(flat, (3, 4, 6))
    assert (data.name, data.class_names, data.input_shape) == (str(flat), ("dark", "light"), (3, 4, 6))
    assert [np.bincount(y).tolist() for y in (data.y_train, data.y_val, data.y_test)] == [[8, 15], [1, 2], [1, 3]]
    assert grey_levels(np.concatenate([data.X_train, data.X_val, data.X_test])) == [*range(10), *range(100, 120)]
    for split in ("train", "val", "test"):
        X, y = data.splits()[f"X_{split}"], data.splits()[f"y_{split}"]
        assert (X.dtype, y.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(X[:, 0, 0, 0] >= 100, y == 1)


def test_the_seed_alone_determines_the_split_of_an_image(flat):
    first, small, other = load_folder(flat), load_folder(flat, (1, 2, 2)), load_folder(flat, seed=1)
    assert first.input_shape == (3, 32, 32)
    assert grey_levels(first.X_test) == grey_levels(small.X_test) != grey_levels(other.X_test)


def split_of_each_level(data):
    """Return the split of each image, by its grey level."""
    return {level: split for split in ("train", "val", "test") for level in grey_levels(data.splits()[f"X_{split}"])}


def test_new_renamed_and_removed_files_move_no_other_image(tmp_path):
    write_images(tmp_path / "light", range(100, 150))
    write_images(tmp_path / "dark", range(50))
    before = split_of_each_level(load_folder(tmp_path, (1, 2, 2)))
    assert 60 <= list(before.values()).count("train") <= 80
    for level, name in ((200, "light"), (60, "dark")):
        Image.new("L", (12, 9), level).save(tmp_path / name / "!first.png")
        (tmp_path / name / "7.png").rename(tmp_path / name / "renamed.png")
        (tmp_path / name / "8.png").unlink()
    write_images(tmp_path / "another", range(70, 80))
    after = split_of_each_level(load_folder(tmp_path, (1, 2, 2)))
    kept = before.keys() - {7, 8, 107, 108}  # renamed or removed
    assert len(kept) == 96
    assert {level: after[level] for level in kept} == {level: before[level] for level in kept}


@given(st.integers(3, 12), st.integers(0, 1000))
def test_each_split_has_an_image_of_a_small_class(count, seed):
    files = [f"small/{seed}-{i}.png" for i in range(count)]
    parts = folder._split_by_name(files, (0.7, 0.15, 0.15), seed)
    assert len(parts) == 3
    assert all(parts)
    assert sorted(file for part in parts for file in part) == sorted(files)


def test_hidden_entries_and_files_beside_the_classes_are_ignored(flat):
    (flat / "README.txt").write_text("about these images")
    (flat / ".cache").mkdir()
    (flat / "dark" / ".DS_Store").write_text("x")
    assert load_folder(flat, (1, 2, 2)).class_names == ("dark", "light")


@pytest.mark.parametrize(
    "name",
    ["__MACOSX", "Thumbs.db", "thumbs.db", "desktop.ini", "@eaDir", "Icon\r", "._0.png", "System Volume Information"],
)
def test_what_systems_add_to_folders_is_ignored(flat, name):
    expected = load_folder(flat, (1, 2, 2))
    (flat / name).mkdir()
    (flat / name / "1.png").write_text("x")
    (flat / "dark" / name).write_text("x")
    data = load_folder(flat, (1, 2, 2))
    assert data.class_names == expected.class_names
    np.testing.assert_array_equal(data.X_test, expected.X_test)


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        (("train", "val", "test"), (20, 4, 4)),
        (("train", "test"), (17, 3, 4)),
        (("train", "val"), (17, 4, 3)),
        (("train",), (15, 2, 3)),
    ],
)
def test_folders_of_splits_are_used_and_missing_ones_are_taken_from_train(tmp_path, splits, sizes):
    for k, split in enumerate(splits):
        for j, name in enumerate(("a", "b")):
            start = 100 * j + 30 * k
            write_images(tmp_path / split / name, range(start, start + (10 if split == "train" else 2)))
    data = load_folder(tmp_path, (1, 2, 2))
    assert tuple(len(y) for y in (data.y_train, data.y_val, data.y_test)) == sizes
    for k, split in enumerate(splits[1:], start=1):
        X = data.splits()[f"X_{split}"]
        assert grey_levels(X) == [30 * k, 30 * k + 1, 100 + 30 * k, 101 + 30 * k]
    everything = np.concatenate([data.X_train, data.X_val, data.X_test])
    assert len(np.unique(everything[:, 0, 0, 0])) == len(everything)
    assert len(set(data.y_train[:8])) == 2, "the first images are of both classes"


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "plane"):
        write_images(tmp_path / name, range(5))
    assert load_folder(tmp_path).class_names == ("plane", "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: (f / "empty").mkdir(),
            "{0}/empty has no images; expected one subfolder of images for each class: fill it or remove it",
        ),
        (
            lambda f: (f / "light").rename(f.parent / "elsewhere"),
            "{0} has 1 subfolder of images (dark); expected two or",
        ),
        (
            lambda f: write_images(f / "rare", range(2)),
            "{0}/rare has 2 images; expected 3 or more, at least one for each of train, val, test",
        ),
        (
            lambda f: write_images(f / "rare", range(1)),
            "{0}/rare has 1 image; expected 3 or more, at least one for each",
        ),
        (
            lambda f: write_images(f / "train" / "cars", range(2)),
            "{0}/train has 1 subfolder of images (cars); expected",
        ),
    ],
)
def test_errors_about_folders_say_what_is_expected(tmp_path, change, message):
    root = tmp_path / "images"
    write_images(root / "light", range(100, 105))
    write_images(root / "dark", range(5))
    change(root)
    warnings.simplefilter("ignore")  # about the classes beside a folder called train; pytest restores the filters
    with pytest.raises(DatasetError) as caught:
        load_folder(root)
    assert str(caught.value).startswith(message.format(root))


def spoil(folder):
    """Add files that are not images, and cut one image off."""
    (folder / "light" / "notes.txt").write_text("x")
    whole = (folder / "dark" / "3.png").read_bytes()
    (folder / "dark" / "3.png").write_bytes(whole[:-30])


@pytest.mark.parametrize("threads", ["1", "3"])
def test_files_that_cannot_be_read_are_left_out_and_listed(flat, monkeypatch, threads):
    monkeypatch.setenv("XPCONV_NUM_THREADS", threads)
    before = load_folder(flat, (1, 2, 2))
    spoil(flat)
    with pytest.warns(UserWarning, match=r"left out 2 files of .*; the first: cannot read the image .*") as caught:
        data = load_folder(flat, (1, 2, 2))
    assert [warning.filename for warning in caught] == [__file__]
    assert sorted(line.rpartition("/")[2].partition(":")[0] for line in data.skipped) == ["3.png", "notes.txt"]
    assert all(line.startswith(f"cannot read the image {flat}/") for line in data.skipped)
    expected = split_of_each_level(before)
    del expected[3]
    assert split_of_each_level(data) == expected
    for split in ("train", "val", "test"):
        X, y = data.splits()[f"X_{split}"], data.splits()[f"y_{split}"]
        np.testing.assert_array_equal(X[:, 0, 0, 0] >= 100, y == 1)
    assert before.skipped == ()


@pytest.mark.parametrize("threads", ["1", "3"])
def test_strict_stops_at_a_file_that_cannot_be_read(flat, monkeypatch, threads):
    monkeypatch.setenv("XPCONV_NUM_THREADS", threads)
    load_folder(flat, (1, 2, 2), strict=True)
    spoil(flat)
    with pytest.raises(DatasetError, match=r"cannot read the image .*(dark/3\.png|light/notes\.txt): "):
        load_folder(flat, strict=True)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("xpconv-images")]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x89PNG\r\n\x1a\nxx", "it begins as a PNG picture does, but is damaged: replace or remove it"),
        (b"\xff\xd8\xff\xe0" + bytes(9), "it begins as a JPEG picture does, but is damaged: replace or remove it"),
        (b"notes", "it is a text file, and its format is none of BMP, .*: convert or remove it"),
        (b"", "it is an empty file, and its format is none of BMP, .*: convert or remove it"),
        (bytes(9), "its format is none of BMP, .*: convert or remove it"),
    ],
)
def test_a_file_that_is_no_readable_image_is_named_with_what_it_is(tmp_path, content, why):
    path = tmp_path / "1.png"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"^cannot read the image {re.escape(str(path))}: {why}$"):
        read_image(path, (1, 2, 2))


def test_a_class_without_a_readable_image_is_refused(flat):
    for path in (flat / "dark").iterdir():
        path.write_text("x")
    with pytest.raises(DatasetError, match=r"no train image of dark can be read: the first error is: cannot read the"):
        load_folder(flat)


def test_images_of_a_class_may_lie_in_further_subfolders(flat):
    before = load_folder(flat, (1, 2, 2))
    write_images(flat / "dark" / "more" / "deep", range(60, 70))
    (flat / "dark" / "more" / "empty").mkdir()
    (flat / "dark" / "more" / "round").symlink_to(flat / "dark")
    data = load_folder(flat, (1, 2, 2))
    assert data.class_names == ("dark", "light")
    after = split_of_each_level(data)
    assert sorted(after) == [*range(10), *range(60, 70), *range(100, 120)]
    kept = {level: split for level, split in after.items() if not 60 <= level < 70}
    assert sum(kept[level] != split for level, split in split_of_each_level(before).items()) <= 2  # a split was filled


@pytest.mark.parametrize(("size", "shape"), [((30, 20), (4, 4)), ((20, 32), (5, 5)), ((21, 30), (6, 3))])
def test_an_image_of_another_aspect_ratio_is_cropped_around_its_centre(tmp_path, size, shape):
    pixels = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    (height, width), (H, W) = pixels.shape, shape
    scale = min(height // H, width // W)  # pixels of the file in one of the result, down and across
    top, left = (height - H * scale) // 2, (width - W * scale) // 2
    blocks = pixels[top : top + H * scale, left : left + W * scale].reshape(H, scale, W, scale)
    expected = blocks.mean(axis=(1, 3))
    np.testing.assert_allclose(read_image(tmp_path / "image.png", (1, *shape))[0], expected, atol=1.01)  # rounded twice
    squashed = Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BOX)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", (1, *shape), "squash")[0], squashed)


def test_folders_are_cropped_unless_they_are_to_be_squashed(tmp_path):
    edges = np.zeros((10, 30), np.uint8)
    edges[:, 10:20] = 200
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(edges).save(tmp_path / name / f"{i}.png")
    assert (load_folder(tmp_path, (1, 2, 2)).X_train == 200).all()
    assert (load_folder(tmp_path, (1, 1, 3), resize="squash").X_train == [0, 200, 0]).all()
    with pytest.raises(ArgumentError, match="resize is 'stretch'; expected crop or squash"):
        load_folder(tmp_path, resize="stretch")
    with pytest.raises(ArgumentTypeError, match="strict is 1; expected True or False"):
        load_folder(tmp_path, strict=1)


def test_splits_with_different_classes_are_refused(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/c"):
        write_images(tmp_path / name, range(5))
    with pytest.raises(DatasetError, match=r"test and .*train differ in b, c; expected the same classes in both"):
        load_folder(tmp_path)


@pytest.mark.parametrize(("val", "test"), [("valid", "Test"), ("Validation", "testing"), ("dev", "TEST")])
def test_folders_of_splits_may_have_other_usual_names(tmp_path, val, test):
    for split, levels in (("Training", range(5)), (val, range(10, 13)), (test, range(20, 22))):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, levels)
    data = load_folder(tmp_path)
    assert grey_levels(data.X_train) == sorted([*range(5)] * 2)
    assert grey_levels(data.X_val) == sorted([*range(10, 13)] * 2)
    assert grey_levels(data.X_test) == sorted([*range(20, 22)] * 2)


def test_a_folder_that_is_no_split_is_named_and_two_for_one_split_are_refused(tmp_path):
    for name in ("train/a", "train/b", "holdout/a"):
        write_images(tmp_path / name, range(5))
    with pytest.warns(UserWarning, match="has holdout beside train, which are ignored; .* are called val and test"):
        load_folder(tmp_path)
    for name in ("val/a", "valid/a"):
        write_images(tmp_path / name, range(5))
    with pytest.raises(DatasetError, match=r"valid and .*val both name the val images; expected one: rename one"):
        load_folder(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_missing_folder_is_named(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DatasetError, match=f"cannot read the folder .*{name} "):
        load_folder(tmp_path / name)
    with pytest.raises(ArgumentError, match=f"data is '.*{name}', and there is no such folder; expected one of digits"):
        load_dataset(str(tmp_path / name))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((64,), r"samples of shape \(64,\) cannot be read from image files; expected"),
        ((2, 4, 4), r"samples of shape \(2, 4, 4\) cannot be read from image files; expected"),
        ((3, 0, 4), "height is 0; expected an int, 1 or more"),
    ],
)
def test_shapes_that_are_not_of_images_are_refused(flat, shape, message):
    with pytest.raises(ArgumentError, match=message):
        load_folder(flat, shape)


# ---- the command line


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    """Return a folder of three digits whose name contains a space."""
    root, digits = tmp_path_factory.mktemp("my digits"), load_digits()
    for label, name in enumerate(("zero", "one", "two")):
        (root / name).mkdir()
        for i, image in enumerate(digits.X_train[digits.y_train == label][:60, 0]):
            Image.fromarray(image).resize((20, 20)).save(root / name / f"{i}.png")
    return root


def run(*words):
    result = CliRunner().invoke(_app.app, [str(word) for word in words], env={"XP_BACKEND": None})
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


@pytest.mark.parametrize("options", [(), ("--image-size", 10)])
def test_commands_train_evaluate_and_predict_on_a_folder(digits_folder, tmp_path, monkeypatch, options):
    monkeypatch.chdir(digits_folder.parent)
    shown = run(
        "train", "--data", digits_folder.name, "--epochs", 4, "--batch-size", 10, "--out", tmp_path / "run", *options
    )
    model = tmp_path / "run" / "model.safetensors"
    size = options[1] if options else 32
    assert load_model(model, "numpy").input_shape == (3, size, size)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["data"] == str(digits_folder)
    assert f"--data '{digits_folder}'" in config["command"]
    monkeypatch.chdir(tmp_path)
    assert run("eval", model) == shown[-1:]
    assert float(shown[-1].split()[-1]) >= 0.9
    image = digits_folder / "two" / "5.png"
    assert run("predict", model, image)[0].startswith(f"{image}\ttwo\t")


@given(st.integers(1, 100_000), st.none() | st.integers(1, 500))
def test_defaults_for_a_folder_make_300_iterations_of_at_most_a_tenth_of_the_images(count, batch_size):
    settings = settings_for("pictures", count, batch_size=batch_size)
    assert settings.epochs * max(count // settings.batch_size, 1) >= 300
    assert settings.epochs >= 20
    assert settings.lr_decay**settings.epochs == pytest.approx(0.9**20, rel=0.02)
    if batch_size is None:
        assert settings.batch_size <= max(count / 10, min(count, 4))


def test_options_for_a_folder_replace_the_defaults_for_few_images():
    settings = settings_for("pictures", 84, epochs=3, batch_size=10, schedule="step", lr_decay=0.5)
    assert (settings.epochs, settings.batch_size, settings.lr_decay) == (3, 10, 0.5)
    assert settings_for("pictures", 84, epochs=3).lr_decay == 0.9
    assert settings_for("digits", 84) == settings_for("digits")


def draw_shape(corners, rng):
    """Draw a bright polygon of about 20 pixels on a dark ground, at a random place, turned a little."""
    ground, colour = rng.integers(0, 80, 3), rng.integers(130, 256, 3)
    picture = Image.new("RGB", (128, 128), tuple(ground.tolist()))
    radius, turn = rng.uniform(22, 50), rng.uniform(-0.3, 0.3)
    centre, angles = rng.uniform(radius + 4, 124 - radius, 2), turn + 2 * np.pi * np.arange(corners) / corners
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ImageDraw.Draw(picture).polygon([tuple(point) for point in points.tolist()], fill=tuple(colour.tolist()))
    return picture.resize((48, 48), Image.Resampling.BILINEAR)


def test_a_folder_of_three_classes_of_forty_pictures_is_learned_without_options(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 50)):
        for name, corners in (("circle", 40), ("square", 4), ("triangle", 3)):
            place = tmp_path / "shapes" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                draw_shape(corners, rng).save(place / f"{number}.png")
    shown = run("train", "--data", tmp_path / "shapes", "--out", tmp_path / "run")
    assert float(shown[-1].split()[-1]) >= 0.9


def test_a_folder_of_few_images_trains_for_300_iterations(digits_folder, tmp_path):
    shown = run("train", "--data", digits_folder, "--image-size", 8, "--out", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["iterations"] >= 300
    assert config["settings"]["batch_size"] == config["dataset"]["sizes"]["y_train"] // 10
    assert float(shown[-1].split()[-1]) >= 0.9


def test_eval_warns_of_test_images_that_the_model_was_trained_on(digits_folder, tmp_path):
    shutil.copytree(digits_folder, tmp_path / "images")
    words = ("--epochs", 1, "--batch-size", 10, "--image-size", 8, "--num-train", 50)
    run("train", "--data", tmp_path / "images", *words, "--out", tmp_path / "run")

    def evaluate():
        words = ["eval", str(tmp_path / "run" / "model.safetensors")]
        return CliRunner().invoke(_app.app, words, env={"XP_BACKEND": None})

    assert evaluate().stderr == ""
    for path in sorted((tmp_path / "images").glob("*/*.png")):
        path.rename(path.with_name(f"moved-{path.name}"))
    result = evaluate()
    assert result.exit_code == 0
    assert re.search(r"warning: the model was trained on \d+ of the \d+ test images, so the accuracy", result.stderr)


@pytest.mark.parametrize("options", [(), ("--resize", "squash")])
def test_eval_and_predict_fit_images_as_the_training_did(tmp_path, options):
    """The classes differ in the outer thirds of the images, which a crop leaves out, and in the middle third."""
    rng = np.random.default_rng(0)
    for name, third in (("left", 0), ("right", 20)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 50, (10, 30), dtype=np.uint8)
            pixels[:, third : third + 10] += 150
            pixels[:, 10 + third // 4 : 15 + third // 4] += 50
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    words = ("--data", tmp_path / "images", "--image-size", 12, "--epochs", 1, "--lr", 1e-6, *options)
    shown = run("train", *words, "--out", tmp_path / "run")
    net = load_model(tmp_path / "run" / "model.safetensors", "numpy")
    resize = options[1] if options else "crop"
    assert net.preprocessing.resize == resize
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["resize"] == resize
    assert f"--resize {resize}" in config["command"]
    assert run("eval", tmp_path / "run") == shown[-1:]
    data = load_folder(tmp_path / "images", (3, 12, 12), resize=resize)
    assert float(shown[-1].split()[-1]) == pytest.approx(
        np.mean(net.loss(data.X_test).argmax(axis=1) == data.y_test), abs=1e-4
    )
    image = tmp_path / "images" / "left" / "0.png"
    probability = probabilities(net, read_image(image, (3, 12, 12), resize)[None]).max()
    assert run("predict", tmp_path / "run", image)[0].endswith(f"\t{probability:.4f}")


@pytest.mark.parametrize("strict", [False, True])
def test_train_lists_the_files_that_it_left_out_at_its_end(flat, tmp_path, strict):
    spoil(flat)
    words = ["train", "--data", flat, "--image-size", 8, "--epochs", 1, "--out", tmp_path / "run"]
    result = CliRunner().invoke(
        _app.app, [str(word) for word in words + ["--strict"] * strict], env={"XP_BACKEND": None}
    )
    if strict:
        assert result.exit_code == 1
        assert "xpconv: error: cannot read the image " in result.stderr
        return
    assert result.exit_code == 0
    assert "xpconv: warning: left out 2 files of " in result.stderr
    *_, title, first, second = result.stdout.splitlines()
    assert title == "left out 2 files that cannot be read:"
    assert {line.rpartition("/")[2].partition(":")[0] for line in (first, second)} == {"3.png", "notes.txt"}


def test_train_lists_a_single_file_that_it_left_out(flat, tmp_path):
    (flat / "light" / "notes.txt").write_text("x")
    shown = run("train", "--data", flat, "--image-size", 8, "--epochs", 1, "--out", tmp_path / "run")
    assert shown[-2] == "left out 1 file that cannot be read:"


def test_a_run_resumes_after_its_images_were_moved(digits_folder, tmp_path):
    words = ("--epochs", 2, "--batch-size", 10, "--image-size", 8)
    run("train", "--data", digits_folder, *words, "--out", tmp_path / "whole")
    shutil.copytree(digits_folder, tmp_path / "here")
    run("train", "--data", tmp_path / "here", *words, "--checkpoint-every", 5, "--out", tmp_path / "run")
    for name in ("config.json", "model.safetensors"):  # as after a kill
        (tmp_path / "run" / name).unlink()
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["settings"]["data"], config["finished"] = str(tmp_path / "here"), False
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "here").rename(tmp_path / "there")
    shown = run("train", "--resume", tmp_path / "run", "--data", tmp_path / "there")
    assert any(line.startswith("resumed at iteration ") for line in shown)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("name", ["red\x1b[2J", "red\x1b[2J.png"])
def test_control_characters_in_names_do_not_reach_the_terminal(flat, tmp_path, name):
    if name.endswith(".png"):
        (flat / "dark" / name).write_text("not an image")
    else:
        (flat / name).mkdir()
    words = ["train", "--data", str(flat), "--out", str(tmp_path / "run")]
    words += ["--strict", "--epochs", "1"]
    result = CliRunner().invoke(_app.app, words, env={"XP_BACKEND": None})
    assert result.exit_code == 1
    assert "red\\x1b[2J" in result.stderr
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--image-size", 1),
            "have 1x1 pixels; expected 8x8 or more, which the pooling of convnet needs: take a larger --image-size",
        ),
        (
            ("--image-size", 3, "--model", "three-layer"),
            "have 3x3 pixels; expected 4x4 or more, which the pooling of three-layer needs",
        ),
    ],
)
def test_images_that_are_too_small_for_the_net_are_refused(digits_folder, tmp_path, words, message):
    words = ["train", "--data", digits_folder, "--out", tmp_path / "run", *words]
    result = CliRunner().invoke(_app.app, [str(word) for word in words], env={"XP_BACKEND": None})
    assert result.exit_code == 1
    assert message in result.stderr

"""``xpconv train --init``: start from a trained model, with frozen layers and for other classes."""

import numpy as np
import pytest
from PIL import Image

from tests.commands import call
from xpconv import load_model
from xpconv.cli import _run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run on images of 16x16 pixels with three classes."""
    photos = make_images(tmp_path_factory.mktemp("photos"), ["a", "b", "c"])
    out = tmp_path_factory.mktemp("runs") / "first"
    words = ["--image-size", 16, "--model", "resnet9", "--width", 2, "--epochs", 1, "--out", out]
    assert call("train", "--data", photos, *words).exit_code == 0
    return out


def make_images(folder, classes):
    rng = np.random.default_rng(0)
    folder = folder / "photos"
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(12):
            pixels = rng.integers(0, 80, (16, 16, 3)) + np.eye(3, dtype=int)[number % 3] * 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{k}.png")
    return folder


def test_a_trained_model_learns_other_classes_with_frozen_layers(trained, tmp_path):
    photos = make_images(tmp_path, ["d", "e"])
    words = ["--init", trained, "--freeze", "conv*|batchnorm*", "--epochs", 2, "--out", tmp_path / "second"]
    result = call("train", "--data", photos, *words)
    assert result.exit_code == 0, result.output
    assert "parameters, " in result.stdout
    assert " are frozen\n" in result.stdout
    before, after = load_model(trained / "model.safetensors"), load_model(tmp_path / "second" / "model.safetensors")
    assert (before.input_shape, after.input_shape) == ((3, 16, 16), (3, 16, 16))
    assert after.class_names == ("d", "e")
    for key in before.params.keys() - {"W9", "b9"}:
        np.testing.assert_array_equal(before.params[key], after.params[key])
    assert after.params["W9"].shape == (16, 2)


def test_a_trained_model_for_the_same_classes_keeps_its_last_layer(trained, tmp_path):
    photos = make_images(tmp_path, ["a", "b", "c"])
    words = ["--init", trained, "--learning-rate", 0, "--epochs", 1, "--out", tmp_path / "again"]
    assert call("train", "--data", photos, *words).exit_code == 0
    before, after = load_model(trained / "model.safetensors"), load_model(tmp_path / "again" / "model.safetensors")
    for key, values in before.params.items():
        np.testing.assert_array_equal(values, after.params[key])


def test_the_trained_model_is_read_once(trained, tmp_path, monkeypatch):
    photos, read = make_images(tmp_path, ["d", "e"]), []
    monkeypatch.setattr(_run, "load_model", lambda *arguments: read.append(arguments) or load_model(*arguments))
    words = ["--init", trained, "--epochs", 1, "--out", tmp_path / "run"]
    assert call("train", "--data", photos, *words).exit_code == 0
    assert len(read) == 1


def test_the_new_model_records_how_its_own_images_were_resized(trained, tmp_path):
    photos = make_images(tmp_path, ["d", "e"])
    words = ["--init", trained, "--resize", "squash", "--epochs", 1, "--out", tmp_path / "run"]
    assert call("train", "--data", photos, *words).exit_code == 0
    before, after = load_model(trained / "model.safetensors"), load_model(tmp_path / "run" / "model.safetensors")
    assert (before.preprocessing.resize, after.preprocessing.resize) == ("crop", "squash")
    np.testing.assert_array_equal(before.preprocessing.mean, after.preprocessing.mean)


def test_a_resumed_run_starts_from_the_same_model(trained, tmp_path):
    photos = make_images(tmp_path, ["d", "e"])
    words = ["--init", trained, "--freeze", "conv1", "--epochs", 2, "--checkpoint-every", 1, "--out", tmp_path / "run"]
    assert call("train", "--data", photos, *words).exit_code == 0
    model = (tmp_path / "run" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "model.safetensors").unlink()
    for path in sorted((tmp_path / "run" / "checkpoints").glob("*.safetensors"))[-1:]:
        path.unlink()
    result = call("train", "--resume", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model", "fc"],
            "model is fc, which has no effect beside init, whose net is trained: leave out one of them",
        ),
        (["--norm", "batch"], "norm is batch, which has no effect beside init, whose net is trained: leave out one of"),
        (["--freeze", "dense*"], "'dense*' fits no layer; expected a pattern for conv1, batchnorm1,"),
        (["--freeze", "*"], "all layers of the model are frozen: unfreeze those to train"),
        (["--dtype", "float64"], "dtype is float64, but the model of init has float32: take --dtype float32"),
        (["--image-size", "32"], "a model for images of shape (3, 16, 16), but those of"),
    ],
)
def test_options_that_do_not_fit_the_trained_model_are_refused(trained, tmp_path, words, message):
    photos = make_images(tmp_path, ["d", "e"])
    result = call("train", "--data", photos, "--init", trained, *words, "--out", tmp_path / "run")
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--freeze", "conv*"],
            "freeze is conv*, which has no effect without a trained model: leave it out, or set init",
        ),
        (["--layers", "8,pool"], "layers is 8,pool, which the model three-layer does not offer: leave it out, or take"),
        (["--model", "convnet", "--layers", "pool"], "layers is 'pool'; expected at least one number of filters"),
        (["--model", "convnet", "--layers", "8,x"], "layers is '8,x'; expected numbers of filters and pool, as in"),
        (
            ["--model", "convnet", "--layers", "8,pool,pool,pool,pool,8"],
            "8x8 pixels; expected 16x16 or more, which the",
        ),
    ],
)
def test_options_that_do_not_fit_the_net_are_refused(tmp_path, words, message):
    result = call("train", *words, "--out", tmp_path / "run")
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split())

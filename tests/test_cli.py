import csv
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import xpconv
from tests.commands import SHORT, call
from xpconv import nn
from xpconv.cli import _app, _run, _run_folder, _tables
from xpconv.cli._compare import read_run
from xpconv.cli._evaluate import data_of_run
from xpconv.cli._info import diagnose
from xpconv.cli._nets import NETS
from xpconv.cli._run_folder import FILES
from xpconv.cli._settings import DEFAULTS, settings_for
from xpconv.data import DATASETS, load_digits
from xpconv.data.images import read_image
from xpconv.errors import ArgumentError
from xpconv.training._progress import show_progress
from xpconv.training.metrics import MirrorAveraged, accuracy, classification_report, probabilities
from xpconv.training.solver import Solver


def succeed(*words, **environment):
    result = call(*words, **environment)
    assert result.exit_code == 0, result.output
    return result.stdout


def rows_of(folder):
    with Path(folder, "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def config_of(folder):
    return json.loads(Path(folder, "config.json").read_text())


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The folder and the output of ``xpconv train`` without options."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("bare")
        patch.chdir(home)
        shown = succeed("train")
        (folder,) = (home / "runs").iterdir()
        return SimpleNamespace(folder=folder, shown=shown, model=folder / "model.safetensors")


# ---- train


def test_bare_train_reaches_97_percent_and_says_where_its_files_are(bare):
    last = bare.shown.splitlines()[-1]
    assert last.startswith("test accuracy: 0.")
    assert float(last.split()[-1]) >= 0.97
    assert sorted(path.name for path in bare.folder.iterdir()) == sorted(FILES)
    for name in FILES:
        assert f"wrote {Path('runs', bare.folder.name, name)}\n" in bare.shown
    assert re.search(r"^saved model: epoch \d+, lowest validation loss$", bare.shown, re.MULTILINE)
    assert "\x1b" not in bare.shown


def test_trained_model_describes_itself(bare):
    model = xpconv.load_model(bare.model)
    assert (model.name, model.input_shape, model.dtype) == ("ThreeLayerConvNet", (1, 8, 8), "float32")
    assert model.class_names == tuple("0123456789")
    assert model.preprocessing.mean.shape == (1, 1, 1)


def test_pictures_are_pngs_of_a_readable_size(bare):
    for name in ("curves.png", "filters.png"):
        with Image.open(bare.folder / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) >= 400


def test_metrics_have_one_row_per_iteration_and_accuracies_where_they_were_checked(bare):
    rows, config = rows_of(bare.folder), config_of(bare.folder)
    health = ["update_ratio_W1", "update_ratio_W2", "update_ratio_W3", "dead_relu_1", "dead_relu_2"]
    assert list(rows[0]) == [
        "iteration",
        "epoch",
        "loss",
        "learning_rate",
        "train_accuracy",
        "val_accuracy",
        "val_loss",
        *health,
    ]
    assert all(bool(row[name]) == bool(row["val_accuracy"]) for row in rows for name in health)
    assert [int(row["iteration"]) for row in rows] == list(range(1, config["iterations"] + 1))
    per_epoch = config["iterations"] // config["settings"]["epochs"]
    checked = [int(row["iteration"]) for row in rows if row["val_accuracy"]]
    assert checked == [1, *range(per_epoch, config["iterations"] + 1, per_epoch)]
    assert [row["epoch"] for row in rows[per_epoch - 1 : per_epoch + 1]] == ["1", "2"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) / 5


def test_command_in_config_repeats_the_run(tmp_path):
    options = (
        "--model",
        "fc",
        "--seed",
        3,
        "--optimizer",
        "sgd_momentum",
        "--learning-rate",
        0.02,
        "--reg",
        0.1,
        "--dtype",
        "float64",
        "--batch-size",
        30,
    )
    succeed(*SHORT, *options, "--out", tmp_path / "a")
    program, *words = shlex.split(config_of(tmp_path / "a")["command"])
    assert program == "xpconv"
    succeed(*words, "--out", tmp_path / "b")
    for name in ("metrics.csv", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    first, second = (xpconv.load_model(tmp_path / name / "model.safetensors", "numpy") for name in "ab")
    for key, value in first.params.items():
        np.testing.assert_array_equal(value, second.params[key], strict=True)


def test_config_names_versions_data_and_backend(bare):
    config = config_of(bare.folder)
    assert config["versions"]["numpy"] == np.__version__
    assert config["dataset"]["sizes"] == {"y_train": 1297, "y_val": 200, "y_test": 300}
    assert config["settings"]["backend"] == "numpy"
    assert config["interrupted"] is False


@pytest.mark.parametrize("model", NETS)
@pytest.mark.parametrize("augment", ["affine", "crop"])
def test_every_net_trains_and_predicts(tmp_path, model, augment):
    shown = succeed(*SHORT, "--model", model, "--augment", augment, "--out", tmp_path / "run")
    assert "test accuracy: 0." in shown
    picture = write_digit(tmp_path / "digit.png", 0)
    assert succeed("predict", tmp_path / "run" / "model.safetensors", picture).count("\t") == 2


def test_larger_images_get_the_net_of_their_size():
    model = NETS["three-layer"]((3, 32, 32), 10, rng=0)
    assert model.params["W1"].shape == (32, 3, 5, 5)
    assert set(DEFAULTS) == {*DATASETS, "a folder"}


def test_backend_of_the_environment_gives_the_same_losses(tmp_path):
    words = (*SHORT, "--dtype", "float64", "--epochs", 1)
    succeed(*words, "--out", tmp_path / "numpy")
    succeed(*words, "--out", tmp_path / "strict", XP_BACKEND="array_api_strict")
    assert config_of(tmp_path / "strict")["settings"]["backend"] == "array_api_strict"
    losses = [[float(row["loss"]) for row in rows_of(tmp_path / name)] for name in ("numpy", "strict")]
    np.testing.assert_allclose(*losses, rtol=1e-8)


@pytest.mark.skipif(diagnose("cupy").available, reason="auto takes the GPU here")
def test_backend_auto_says_on_stderr_why_it_takes_numpy(bare):
    result = call("eval", bare.model, "--backend", "auto")
    assert result.exit_code == 0
    assert result.stderr.startswith("xpconv: backend auto: using numpy, since")
    assert result.stdout.count("\n") == 1


# ---- folders of runs


def test_folder_of_another_run_is_refused_and_unchanged(tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    result = call(*SHORT, "--out", tmp_path)
    assert result.exit_code == 1
    assert "which already holds model.safetensors: choose another folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "precious"


def test_two_runs_of_one_second_have_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_run_folder.time, "strftime", lambda form: "now")
    with _run_folder.run_folder(None) as first, _run_folder.run_folder(None) as second:
        assert [first, second] == [Path("runs/now"), Path("runs/now-2")]
        assert second.is_dir()


def write_twice(path):
    path.touch()
    path.touch(exist_ok=False)


def test_failed_run_removes_only_a_folder_that_it_made(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with pytest.raises(ZeroDivisionError), _run_folder.run_folder(tmp_path / name):
            raise ZeroDivisionError
    with pytest.raises(FileExistsError), _run_folder.run_folder(tmp_path / "full") as folder:
        write_twice(folder / "notes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "mine"]


# ---- Ctrl-C


def test_interrupted_training_saves_all_files_and_exits_with_130(tmp_path, monkeypatch):
    step = Solver._step

    def interrupted_step(self, X, y):
        if self.iteration == 3:
            raise KeyboardInterrupt
        step(self, X, y)

    monkeypatch.setattr(Solver, "_step", interrupted_step)
    result = call(*SHORT, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(FILES)
    assert [row["val_accuracy"] != "" for row in rows_of(tmp_path / "run")] == [True, True, False]
    assert config_of(tmp_path / "run")["interrupted"] is True


def test_interrupted_training_prints_the_command_that_resumes_it(tmp_path, monkeypatch):
    step = Solver._step

    def pressed_in_step(self, X, y):
        step(self, X, y)
        if self.iteration == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Solver, "_step", pressed_in_step)
    result = call(*SHORT, "--out", tmp_path / "my run")
    assert result.exit_code == 130
    program, *words = shlex.split(result.stdout.splitlines()[-1].removeprefix("to resume: "))
    monkeypatch.setattr(Solver, "_step", step)
    assert program == "xpconv"
    assert "resumed at iteration 3" in succeed(*words)


def without_warnings(stderr):
    """Return the lines of errors and notes: so short a training also warns of its losses."""
    return [line for line in stderr.splitlines() if not line.startswith("xpconv: warning: the last losses are ")]


def test_training_continues_when_its_output_pipe_closes(tmp_path):
    words = [sys.executable, "-m", "xpconv", *map(str, SHORT), "--out", str(tmp_path / "run")]
    reading_end, pipe = os.pipe()
    os.close(reading_end)  # as head does, here before the first line, so that no output is in time
    try:
        done = subprocess.run(
            words, stdout=pipe, stderr=subprocess.PIPE, text=True, env=plain_environment(), check=False
        )
    finally:
        os.close(pipe)
    assert done.returncode == 0
    assert without_warnings(done.stderr) == [
        "xpconv: some output was lost ([Errno 32] Broken pipe); the training itself went on"
    ]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(FILES)


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")


@needs_dev_full
@pytest.mark.parametrize(
    ("redirection", "out", "err"),
    [
        (">/dev/full", "", "xpconv: some output was lost ([Errno 28] No space left on device); the training itself "),
        (">/dev/full 2>&1", "", ""),
        (">&-", "", ""),
        (">&- 2>&-", "", ""),
    ],
)
def test_training_survives_output_that_cannot_be_written(tmp_path, redirection, out, err):
    words = shlex.join([sys.executable, "-m", "xpconv", *map(str, SHORT), "--out", str(tmp_path / "run")])
    done = subprocess.run(
        ["sh", "-c", f"{words} {redirection}"], capture_output=True, text=True, env=plain_environment(), check=False
    )
    assert (done.returncode, done.stdout) == (0, out)
    errors = without_warnings(done.stderr)
    assert len(errors) == bool(err)
    assert "".join(errors).startswith(err)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(FILES)


def raising(error):
    def raise_error(*arguments, **options):
        raise error

    return raise_error


FULL, CLOSED = OSError(28, "No space left on device"), ValueError("I/O operation on closed file")
STREAMS = {
    "none, as under pythonw": None,
    "a logger without isatty": SimpleNamespace(write=lambda text: None, flush=lambda: None),
    "a logger without flush": SimpleNamespace(write=lambda text: None),
    "a closed file": SimpleNamespace(write=raising(CLOSED), flush=raising(CLOSED), isatty=raising(CLOSED)),
    "a full disk": SimpleNamespace(write=lambda text: None, flush=raising(FULL), isatty=lambda: False),
    "a terminal that is gone": SimpleNamespace(write=raising(FULL), flush=raising(FULL), isatty=lambda: True),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_solver_trains_without_a_terminal_to_print_to(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    digits = load_digits()
    solver = Solver(xpconv.TwoLayerNet(input_dim=64, rng=0), digits, num_epochs=2, preflight=True, rng=0)
    solver.train(lambda solver: solver.iteration == 15 and signal.raise_signal(signal.SIGINT))
    assert solver.interrupted
    solver.train()
    assert solver.iteration == len(solver.loss_history) == 2 * (len(digits.y_train) // 100)


@pytest.mark.parametrize("stream", [None, SimpleNamespace(write=lambda text: None), SimpleNamespace(closed=True)])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["eval", "nothing"], 1),
        (["train", "--nothing"], 2),
        (["eval", "--help"], 0),
    ],
)
def test_commands_run_without_a_terminal_to_print_to(monkeypatch, stream, words, code):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as ended:
        _app.app(words)
    assert ended.value.code == code
    assert sys.stdout is sys.stderr is stream


@pytest.mark.parametrize("redirection", [pytest.param(">/dev/full", marks=needs_dev_full), "2>&-"])
@pytest.mark.parametrize("words", ["--version", "--help", "eval --help", "eval nothing"])
def test_output_that_cannot_be_written_ends_a_command_in_one_line_or_in_silence(redirection, words):
    command = f"{shlex.quote(sys.executable)} -m xpconv {words} {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=plain_environment(), check=False)
    full, fails = "full" in redirection, words == "eval nothing"
    error = (
        "there is no file nothing; expected a safetensors file that xpconv wrote"
        if fails
        else "[Errno 28] No space left on device"
    )
    assert done.stderr == (f"xpconv: error: {error}\n" if full else "")
    assert done.returncode == (full or fails)
    assert bool(done.stdout) is not (full or fails)


@pytest.mark.parametrize("stream", [None, STREAMS["a logger without isatty"]])
def test_tables_are_printed_without_a_terminal(monkeypatch, stream):
    monkeypatch.setattr(sys, "stdout", stream)
    _tables.print_table([("numpy", "1.5")])


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("model", "nonsense", "model is 'nonsense'; expected three-layer or fc or convnet or resnet9"),
        ("sampling", "all", "sampling is 'all'; expected replacement or epoch"),
        ("schedule", "nonsense", "schedule is 'nonsense'; expected step or cosine or one-cycle or constant"),
        ("ema", 1.5, "ema is 1.5; expected a finite number, from 0 to 1"),
        ("lookahead", 0, "lookahead is 0; expected an int, 1 or more"),
        ("clip_norm", -1, "clip_norm is -1; expected a finite number, 0 or more"),
        ("batch_size", 0, "batch_size is 0; expected an int, 1 or more"),
        ("image_size", 100_000, "image_size is 100000; expected an int, at most 8192"),
        ("num_train", "5", "num_train is '5'; expected an int, 1 or more"),
        ("checkpoint_every", 0, "checkpoint_every is 0; expected an int, 1 or more"),
        ("data", 3, "data is 3; expected a string"),
        ("augment", 4, "augment is 4; expected a string"),
        ("seed", -1, "seed is -1; expected an int, 0 or more"),
        ("label_smoothing", 1.5, "label_smoothing is 1.5; expected a finite number, from 0 to 1"),
        ("class_weights", "1,a", "class_weights is '1,a'; expected balanced, or a number for each class"),
        ("class_weights", 3, "class_weights is 3; expected balanced, or a number for each class"),
        ("warmup", "a", "warmup is 'a'; expected a finite number, 0 or more"),
        ("learning_rate", None, "learning_rate is None; expected a finite number, 0 or more"),
        ("twist", 0.9, "this version of xpconv does not know twist): start a new run with --out"),
    ],
)
def test_unusable_settings_of_a_resumed_run_are_named(tmp_path, setting, value, message):
    settings = {**asdict(settings_for("digits")), setting: value}
    (tmp_path / "config.json").write_text(json.dumps({"settings": settings}))
    result = call("train", "--resume", tmp_path)
    assert result.exit_code == 1
    assert f"holds no settings of a run in config.json ({message}" in result.stderr


def test_resume_is_not_suggested_without_settings(tmp_path):
    (tmp_path / "model.safetensors").touch()
    refused = call(*SHORT, "--out", tmp_path).stderr
    assert "which already holds model.safetensors: choose another folder" in refused
    assert "--resume" not in refused


def test_data_with_resume_is_for_folders_of_images(tmp_path):
    succeed(*SHORT, "--out", tmp_path / "run")
    result = call("train", "--resume", tmp_path / "run", "--data", "cifar10")
    assert result.exit_code == 2
    assert "folder of images is now, but the run is on digits: leave out --data." in " ".join(result.stderr.split())


def test_runs_that_skip_do_not_warn_of_overflows(tmp_path):
    """Warnings are errors here; the run ends with the error that its scores are NaN."""
    result = call(
        *SHORT, "--optimizer", "sgd", "--learning-rate", "1e30", "--on-nonfinite", "skip", "--out", tmp_path / "run"
    )
    assert result.exit_code == 1
    assert "samples are NaN or infinite" in result.stderr


def test_checks_after_epochs_of_one_iteration_have_the_right_epoch(tmp_path):
    """The first check then comes after epoch 1, not before it."""
    shown = succeed("train", "--num-train", 20, "--augment", "none", "--epochs", 3, "--out", tmp_path / "run")
    assert "(Epoch 1 / 3)" in shown
    accuracies = read_run(tmp_path / "run").history["val_acc_history"]
    assert np.isnan(accuracies).tolist() == [True, False, False, False]
    epoch = shown.split(f"val_acc: {np.nanmax(accuracies):f}")[0].rpartition("(Epoch ")[2].split()[0]
    table = succeed("compare", tmp_path / "run", "--out", tmp_path / "comparison.png").splitlines()[1]
    assert table.split("\t")[-1] == epoch


def test_too_large_a_batch_size_is_lowered_with_a_warning(tmp_path):
    result = call(*SHORT, "--batch-size", 1000, "--out", tmp_path / "large")
    assert result.exit_code == 0
    assert (
        "xpconv: warning: batch_size is 1000, but there are 100 training images: taking a batch_size of 100\n"
        in result.stderr
    )
    succeed(*SHORT, "--batch-size", 100, "--out", tmp_path / "all")
    assert rows_of(tmp_path / "large") == rows_of(tmp_path / "all")


def test_a_training_that_ends_with_high_losses_warns_in_one_line(tmp_path):
    options = ("--optimizer", "adam", "--schedule", "constant", "--learning-rate", 100)
    result = call(*SHORT, *options, "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert re.fullmatch(
        r"xpconv: warning: the last losses are \S+ on average, more than the \S+ \(ln 10 \+ \S+ for L2\) of a "
        r"guess: take a smaller learning_rate \(it was at most 100\)\n",
        result.stderr,
    )


def test_resume_does_not_change_a_finished_run(tmp_path):
    run = tmp_path / "run"
    succeed(*SHORT, "--out", run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    (run / ".lock").touch()  # as if it had been killed at its very end
    for given in (run, run / "model.safetensors", run / "config.json"):
        assert f"{run} is finished: nothing is left to train" in succeed("train", "--resume", given)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    refused = call(*SHORT, "--out", run).stderr
    assert "choose another folder or move that run away" in refused
    assert "--resume" not in refused


def test_a_run_that_is_killed_while_it_writes_its_results_is_finished_by_resume(tmp_path, monkeypatch):
    whole, run = tmp_path / "whole", tmp_path / "run"
    succeed(*SHORT, "--out", whole)
    with monkeypatch.context() as patch:
        patch.setattr("xpconv.viz.save_filters", raising(OSError(errno.EIO, "killed")))
        assert call(*SHORT, "--out", run).exit_code == 1
    assert (run / "model.safetensors").exists()
    shown = succeed("train", "--resume", run)
    assert "resumed at iteration 4" in shown
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()} == {*FILES}
    for name in ("model.safetensors", "metrics.csv"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
    assert config_of(run)["finished"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_without_a_checkpoint_keeps_its_model(tmp_path, interrupted):
    run = tmp_path / "run"
    succeed(*SHORT, "--out", run)
    config = config_of(run) | {"finished": False, "interrupted": interrupted}
    (run / "config.json").write_text(json.dumps(config))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    result = call("train", "--resume", run)
    assert result.exit_code == 1
    assert (
        "holds a model but no undamaged checkpoint to continue from: to start over, which would replace"
        in result.stderr
    )
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_an_error_inside_the_net_names_the_layer(bare, monkeypatch):
    monkeypatch.setattr(nn.MaxPool, "forward", raising(MemoryError("32 GiB")))
    result = call("eval", bare.model)
    assert result.exit_code == 1
    assert result.stderr.startswith("xpconv: error: numpy has not enough memory for 300 samples at once (32 GiB): ")
    assert result.stderr.endswith(")\n")
    assert " (in layers[2], MaxPool(2))" in result.stderr


def test_ctrl_c_outside_training_exits_with_130(monkeypatch):
    monkeypatch.setattr(_run, "load_dataset", raising(KeyboardInterrupt()))
    result = call("train")
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.skipif(os.name != "posix", reason="signals to a process are POSIX")
def test_signal_ends_the_real_command_with_its_files_saved(tmp_path):
    command = [sys.executable, "-m", "xpconv", *map(str, SHORT), "--epochs", "1000000", "--out", "run"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=plain_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        while "Epoch 1 /" not in process.stdout.readline():
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGINT)
        shown, errors = process.communicate()
    assert (process.returncode, errors) == (130, "")
    assert "test accuracy: 0." in shown
    assert (tmp_path / "run" / "model.safetensors").is_file()


# ---- eval


def test_eval_gives_the_accuracy_that_training_printed(bare):
    assert succeed("eval", bare.model) == bare.shown.splitlines(keepends=True)[-1]


def test_eval_shows_precision_recall_and_f1_of_each_class(bare):
    header, *rows, last = succeed("eval", bare.model, "--per-class").splitlines()
    assert last == bare.shown.splitlines()[-1]
    assert header.split("\t") == ["class", "precision", "recall", "F1", "support"]
    digits = load_digits()
    probs = probabilities(xpconv.load_model(bare.model), digits.X_test)
    report = classification_report(digits.y_test, probs, digits.class_names)
    assert [tuple(row.split("\t")) for row in rows] == report.rows()
    assert len(rows) == 11


@pytest.mark.parametrize(("tta", "shift"), [("flip", 0), ("flip-shift", 1)])
def test_eval_and_predict_average_over_mirror_images_and_shifts(bare, tmp_path, tta, shift):
    digits, net = load_digits(), MirrorAveraged(xpconv.load_model(bare.model), shift=shift)
    result = call("eval", bare.model, "--tta", tta)
    expected = accuracy(net, digits.X_test, digits.y_test, net.model.backend)
    assert result.stdout == f"test accuracy: {expected:.4f}\n"
    assert f"xpconv: warning: tta is {tta}, but mirroring changes the class of some digits" in result.stderr
    Image.fromarray(digits.X_test[0, 0].astype(np.uint8)).save(tmp_path / "digit.png")
    image = read_image(tmp_path / "digit.png", net.model.input_shape, "strokes")
    probability = probabilities(net, image[None]).max()
    assert (
        succeed("predict", bare.model, tmp_path / "digit.png", "--tta", tta).split("\t")[-1] == f"{probability:.4f}\n"
    )


def test_an_unknown_test_time_augmentation_is_refused(bare):
    result = call("eval", bare.model, "--tta", "mirror")
    assert result.exit_code == 2
    assert "'mirror' is not one of none, flip, flip-shift." in result.stderr


def test_eval_takes_the_data_set_from_the_config_beside_the_model(tmp_path):
    assert data_of_run(tmp_path / "model.safetensors") == "digits"
    (tmp_path / "config.json").write_text('{"settings": {"data": "cifar10"}}')
    assert data_of_run(tmp_path / "model.safetensors") == "cifar10"


def test_eval_refuses_a_model_of_other_images(tmp_path):
    xpconv.save_model(xpconv.ThreeLayerConvNet(input_dim=(3, 8, 8), rng=0), tmp_path / "rgb.safetensors")
    result = call("eval", tmp_path / "rgb.safetensors")
    assert result.exit_code == 1
    assert "samples of shape (3, 8, 8)" in result.stderr
    assert "digits has images of shape (1, 8, 8)" in result.stderr


# ---- predict


def write_digit(path, index, change=lambda image: image):
    """Write a test digit as an image file ten times its size."""
    image = Image.fromarray(load_digits().X_test[index, 0])
    change(image.resize((80, 80), Image.Resampling.NEAREST)).save(path)
    return path


def test_predict_prints_path_class_and_probability_of_each_image(tmp_path, bare):
    paths = [write_digit(tmp_path / f"{i}.png", i) for i in range(5)]
    X = np.stack([read_image(path, (1, 8, 8), "strokes") for path in paths])
    scores = xpconv.load_model(bare.model, "numpy").loss(X).astype(float)
    probs = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    lines = call("predict", bare.model, *paths).stdout.splitlines()
    expected = [f"{path}\t{row.argmax()}\t{row.max():.4f}" for path, row in zip(paths, probs, strict=True)]
    assert lines == expected


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("colour.png", lambda image: image.convert("RGB")),
        ("transparent.png", lambda image: image.convert("RGBA")),
        ("palette.gif", lambda image: image.convert("P")),
    ],
)
def test_other_kinds_of_image_become_the_models_pixels(tmp_path, name, change):
    pixels = read_image(write_digit(tmp_path / name, 0, change), (1, 8, 8))
    assert (pixels.shape, pixels.dtype) == ((1, 8, 8), np.uint8)
    np.testing.assert_array_equal(pixels, load_digits().X_test[0])


@pytest.mark.parametrize("name", ["stroke.png", "palette.png", "grey.png"])
def test_transparent_pixels_become_white(tmp_path, name):
    """Drawing programs save a black stroke on a transparent ground, whose colour is black too."""
    opaque = Image.fromarray(np.array([[0, 255], [0, 0]], np.uint8))
    image = Image.merge("LA", (Image.new("L", (2, 2)), opaque))
    image = image if name == "grey.png" else image.convert("RGBA")
    (image.quantize(4) if name == "palette.png" else image).save(tmp_path / name)
    for channels in (1, 3):
        np.testing.assert_array_equal(
            read_image(tmp_path / name, (channels, 2, 2)), np.full((channels, 2, 2), [[255, 0], [255, 255]])
        )


def test_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png", (1, 2, 1))[0], [[0], [255]])


def test_unreadable_images_are_named_and_the_others_predicted(tmp_path, bare, monkeypatch):
    good = write_digit(tmp_path / "good.png", 0)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:-40])
    huge = write_digit(tmp_path / "huge.png", 0, lambda image: image.resize((200, 200)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    bad = [tmp_path / "text.png", tmp_path / "cut.png", huge, tmp_path / "missing.png", tmp_path]
    result = call("predict", bare.model, *bad, good)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{good}\t")
    assert result.stdout.count("\n") == 1
    messages = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(messages) == len(bad)
    for path, message in zip(bad, messages, strict=True):
        assert message.startswith(f"xpconv: error: cannot read the image {path}: ")


def test_model_of_no_images_cannot_take_files(tmp_path):
    with pytest.raises(ArgumentError, match=r"samples of shape \(64,\) cannot be read from image files"):
        read_image(tmp_path / "any.png", (64,))


def test_classes_without_names_are_numbers(tmp_path):
    xpconv.save_model(xpconv.ThreeLayerConvNet(input_dim=(3, 8, 8), rng=0), tmp_path / "net.safetensors")
    name = succeed("predict", tmp_path / "net.safetensors", write_digit(tmp_path / "0.png", 0)).split("\t")[1]
    assert name in "0123456789"


# ---- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--data", "mnist"], "'mnist' is none of digits, cifar10, and there is no such folder."),
        (["train", "--model", "resnet"], "'resnet' is not one of three-layer, fc, convnet, resnet9,"),
        (
            ["train", "--optimizer", "adm"],
            "'adm' is not one of sgd, sgd_momentum, sgd_nesterov, rmsprop, adam, adamw, lion, muon.",
        ),
        (["train", "--augment", "turn"], "augment is 'turn'; expected none, crop, reflect, affine, flip"),
        (["train", "--image-size", "100000"], "Invalid value for '--image-size'"),
        (["train", "--label-smoothing", "1.5"], "Invalid value for '--label-smoothing'"),
        (
            ["train", "--class-weights", "1,-2"],
            "class_weights is '1,-2'; expected balanced, or a number for each class",
        ),
        (["train", "--class-weights", "nan"], "class_weights is 'nan'; expected balanced, or a number for each class"),
        (["train", "--dtype", "float16"], "'float16' is not one of float32, float64."),
        (["train", "--backend", "jax"], "expected auto or one of numpy, cupy, torch, array_api_strict"),
        (["train", "--epochs", "0"], "--epochs"),
        (["train", "--batch-size", "many"], "--batch-size"),
        (["train", "--epoch-count", "3"], "No such option"),
        (["compare", "runs/first", "--out", "notes.txt"], "'notes.txt': expected a name that ends in .png."),
        (["train", "--on-nonfinite", "wait"], "'wait' is not one of stop, skip."),
        (
            ["train", "--resume", "run", "--seed", "3", "--out", "b"],
            "the settings of its run: leave out --seed, --out.",
        ),
        (["eval"], "MODEL"),
        (["predict", "net.safetensors"], "IMAGE"),
        (["teach"], "No such command 'teach'"),
        ([], "Usage: "),
    ],
)
def test_wrong_usage_names_the_choices_and_exits_with_2(words, message):
    result = call(*words)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (["train", "--backend", "numpy:gpu"], {}, "numpy has no device 'gpu'"),
        (["train"], {"XP_BACKEND": "array_api_strict:gpu"}, "array_api_strict has no device 'gpu'"),
        (["train", "--num-train", "1298"], {}, "--num-train is 1298; expected 1 to 1297"),
        (["train", "--class-weights", "1,2"], {}, "--class-weights has 2 weights; expected 10, one for each class"),
        (
            ["train", "--class-weights", "balanced", "--num-train", "5"],
            {},
            "y has no samples of class 0, 2, 3, 4, 5, 8; expected one or more of each class",
        ),
        (["train"], {"XPCONV_NUM_THREADS": "x"}, "XPCONV_NUM_THREADS is 'x'"),
        (
            ["train", "--out", "file"],
            {},
            "file: cannot be the folder of a run (File exists): choose another one with --out",
        ),
        (["train", "--out", "file/run"], {}, "file/run: cannot be the folder of a run (Not a directory): choose"),
        (["train", "--optimizer", "sgd", "--learning-rate", "1e30"], {}, "take a smaller --learning-rate (it is"),
        (["train", "--image-size", "16"], {}, "--image-size is 16, which has no effect on digits: leave it out, or"),
        (
            ["train", "--data", "cifar10"],
            {"XPCONV_DATA": "file"},
            "XPCONV_DATA is 'file', and there is no such folder: set",
        ),
        (["train", "--resume", "nothing"], {}, "resume is nothing, which holds no settings of a run in config.json"),
        (["train", "--resume", "file"], {}, "in config.json (file/config.json: Not a directory): start a new run"),
        (["train", "--augment", "cutout8"], {}, "augment shifts or covers 8 pixels, but the images have 8x8: take a"),
        (["train", "--init", "nothing"], {}, "nothing; expected a safetensors file that xpconv wrote"),
        (
            ["compare", "nothing"],
            {},
            "nothing is not the folder of a run (nothing/config.json: No such file or directory)",
        ),
        (
            ["watch", "file"],
            {},
            "file is not the folder of a run (file/config.json: Not a directory): expected one that",
        ),
        (["check", "loop.py"], {}, "there is no file loop.py; expected a Python file with the layer's functions"),
        (["eval", "loop.py"], {}, "there is no file loop.py; expected a safetensors file that xpconv wrote"),
        (
            ["predict", "nothing", "loop.py"],
            {},
            "there is no file nothing; expected a safetensors file that xpconv wrote",
        ),
        (["eval", "nothing"], {}, "there is no file nothing"),
        (["eval", "."], {}, "there is no file model.safetensors"),
        (["eval", "file"], {}, "file is a text file; expected a safetensors file that xpconv wrote"),
        (["predict", "file", "file"], {}, "file is a text file; expected a safetensors file that xpconv wrote"),
    ],
)
def test_failure_prints_one_line_and_exits_with_1(tmp_path, monkeypatch, words, environment, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("xpconv.data.cifar10._download", raising(OSError("offline")))
    monkeypatch.setattr("xpconv.data.cifar10.cache_folder", lambda: tmp_path / "cache")
    Path("file").write_text("no run")
    Path("loop.py").symlink_to("loop.py")
    result = call(*words, **environment)
    assert result.exit_code == 1
    assert result.stderr.startswith("xpconv: error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not list(tmp_path.glob("runs/*"))
    assert Path("file").read_text() == "no run"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError("8 GiB"), 1, "out of memory (8 GiB): take a smaller --batch-size"),
        (MemoryError(), 1, "out of memory: take a smaller --batch-size, a smaller net, or smaller or fewer images"),
        (PermissionError(errno.EACCES, "Permission denied", "folder"), 1, "xpconv: error: folder: Permission denied\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
    ],
)
def test_errors_of_the_system_print_no_traceback(monkeypatch, error, code, message):
    monkeypatch.setattr(_run, "load_dataset", raising(error))
    result = call("train")
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_missing_matplotlib_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call(*SHORT, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert 'pip install "xpconv[train]"' in result.stderr
    assert "Iteration" not in result.stdout
    assert not (tmp_path / "run").exists()


def test_missing_pillow_is_named(bare, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = call("predict", bare.model, "digit.png")
    assert result.exit_code == 1
    assert 'pip install "xpconv[train]"' in result.stderr


# ---- info, help, start


def test_info_is_plain_in_a_pipe_and_shows_every_backend():
    rows = dict(line.split("\t") for line in succeed("info", XPCONV_WORKSPACE="1MiB").splitlines())
    assert rows["xpconv"] == xpconv.__version__
    assert rows["backend numpy"].startswith(f"available, version {np.__version__}")
    assert {"python", "threads", "backend cupy", "backend torch", "backend array_api_strict", "data cache"} <= set(rows)
    assert (rows["selected backend"], rows["workspace"]) == ("numpy", "1 MiB")
    assert rows["XPCONV_WORKSPACE"] == "1MiB"


def test_info_shows_wrong_settings_instead_of_failing_on_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    rows = dict(line.split("\t") for line in succeed("info", XP_BACKEND="jax", XPCONV_NUM_THREADS="x").splitlines())
    assert rows["selected backend"].startswith("error: backend is 'jax'; expected auto or one of numpy")
    assert rows["threads"].startswith("error: XPCONV_NUM_THREADS is 'x'")
    assert rows["XP_BACKEND"] == "jax"
    assert 'pip install "xpconv[train]"' in rows["data cache"]


def test_info_shows_a_library_that_cannot_be_imported(monkeypatch, tmp_path):
    (tmp_path / "pooch.py").write_text("raise AttributeError('built for another version\\nof Python')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pooch", raising=False)
    rows = dict(line.split("\t") for line in succeed("info").splitlines())
    assert r"pooch, which cannot be imported (built for another version\nof Python): pip" in rows["data cache"]


def test_info_is_a_table_on_a_terminal(monkeypatch):
    monkeypatch.setattr(_tables, "rich_can_draw", lambda: True)
    shown = succeed("info")
    assert "\t" not in shown
    assert "backend numpy" in shown
    assert max(map(len, shown.splitlines())) == min(map(len, shown.splitlines()))


@pytest.mark.parametrize("broken", [False, True])
def test_without_rich_a_terminal_shows_plain_lines(monkeypatch, capsys, tmp_path, broken):
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    if broken:
        (tmp_path / "rich.py").write_text("raise AttributeError('it is for another version')")
        monkeypatch.delitem(sys.modules, "rich")
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _tables.print_table([("numpy", "1.5")], header=("backend", "step, ms"))
    with show_progress(1, 100, verbose=True) as progress:
        progress.line("hello")
        progress.advance()
    assert capsys.readouterr().out == "backend\tstep, ms\nnumpy\t1.5\nhello\n"


COMMANDS = [command.name or command.callback.__name__ for command in _app.app.registered_commands]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example(command):
    shown = succeed(command, "--help")
    assert f"Example: xpconv {command}" in shown
    assert not re.search(r"--\S+ <", shown)  # the type of an option instead of a word for it


def test_help_shows_an_example_and_every_command():
    shown = succeed("--help")
    assert "Example: xpconv train --out first && xpconv eval first/model.safetensors" in shown
    assert set(COMMANDS) <= set(shown.split())


# ---- completion by the shell


def completions(line, shell="zsh", **environment):
    """Return the completions of a line, and the standard error."""
    words = {"bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}}
    asked = words.get(shell, {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"})
    run = subprocess.run(
        [sys.executable, "-m", "xpconv"],
        capture_output=True,
        text=True,
        check=False,
        env={**plain_environment(), "_XPCONV_COMPLETE": f"complete_{shell}", **asked, **environment},
    )
    return run.stdout, run.stderr


@pytest.mark.parametrize(
    ("shell", "expected"),
    [
        ("bash", "sgd\nsgd_momentum\nsgd_nesterov\n"),
        ("fish", "sgd\nsgd_momentum\nsgd_nesterov\n"),
        ("zsh", '_arguments \'*: :(("sgd"\n"sgd_momentum"\n"sgd_nesterov"))\'\n'),
    ],
)
def test_each_shell_completes_words(shell, expected):
    assert completions("xpconv train --optimizer sg", shell) == (expected, "")


OFFERED = {
    ("--data", ""): ["digits", "cifar10"],
    ("--data", "c"): ["cifar10"],
    ("--data", "my_images"): [],
    ("--model", ""): list(NETS),
    ("--schedule", "co"): ["cosine", "constant"],
    ("--dtype", "f"): ["float32", "float64"],
    ("--backend", "a"): ["array_api_strict", "auto"],
    ("--augment", "f"): ["flip"],
    ("--sampling", "e"): ["epoch"],
    ("--class-weights", "b"): ["balanced"],
    ("--on-nonfinite", "s"): ["stop", "skip"],
}


@pytest.mark.parametrize(("option", "begun"), OFFERED)
def test_completion_offers_the_words_that_the_option_takes(option, begun):
    params = {name: param for param in get_command(_app.app).commands["train"].params for name in param.opts}
    context = SimpleNamespace(resilient_parsing=True)
    assert [item.value for item in params[option].shell_complete(context, begun)] == OFFERED[option, begun]


def test_completion_tries_no_backend():
    """A GPU takes seconds to try."""
    shown, imports = completions(
        "xpconv train --data d", "bash", XP_BACKEND="array_api_strict", PYTHONPROFILEIMPORTTIME="1"
    )
    assert shown == "digits\n"
    assert "array_api_compat" in imports
    assert "array_api_strict" not in imports


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_for_each_shell(shell, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # then the option takes the shell's name
    result = CliRunner().invoke(_app.app, ["--show-completion", shell], prog_name="xpconv")
    assert result.exit_code == 0, result.output
    assert f"_XPCONV_COMPLETE=complete_{shell}" in result.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_a_line_with_the_installed_script(tmp_path):
    environment = {
        **plain_environment(),
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    subprocess.run(["xpconv", "--install-completion", "bash"], env=environment, capture_output=True, check=True)
    press_tab = (
        "source ~/.bashrc; COMP_WORDS=(xpconv train --opt) COMP_CWORD=2; "
        "$(complete -p xpconv | sed 's/.*-F \\([^ ]*\\).*/\\1/') xpconv; echo ${COMPREPLY[@]}"
    )
    run = subprocess.run(
        ["bash", "--norc", "-c", press_tab], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout == "--optimizer\n"


def test_help_shows_the_defaults_of_each_data_set():
    assert "26 for digits; 3 for cifar10" in " ".join(succeed("train", "--help").split())


def plain_environment():
    """Return the environment without xpconv's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("XP_", "XPCONV_"))}


@pytest.mark.parametrize("program", [[sys.executable, "-m", "xpconv"], [str(Path(sys.executable).with_name("xpconv"))]])
def test_program_starts_as_a_module_and_as_a_command(program):
    run = subprocess.run([*program, "--version"], env=plain_environment(), capture_output=True, text=True, check=True)
    assert run.stdout == f"xpconv {xpconv.__version__}\n"


def test_program_without_typer_says_what_to_install():
    code = "import runpy, sys; sys.modules['typer'] = None; runpy.run_module('xpconv', run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = 'xpconv: error: the command line needs typer: pip install "xpconv[train]"\n'
    assert (run.returncode, run.stdout, run.stderr) == (1, "", message)


def test_program_with_an_unusable_typer_says_so_in_one_line(tmp_path):
    (tmp_path / "typer.py").write_text("raise AttributeError('it is for another version')")
    code = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_module('xpconv', run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = "xpconv: error: the command line needs typer, which cannot be imported (it is for another version): pip"
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith(message)
    assert run.stderr.count("\n") == 1


def test_starting_loads_nothing_that_only_training_needs():
    code = "import sys, xpconv.cli._app; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "sklearn", "PIL", "pooch", "torch", "cupy"} & set(run.stdout.split())


# ---- names and orders that users try


def test_the_fields_other_names_of_options_are_taken(tmp_path):
    succeed(*SHORT, "--lr", "0.01", "--epochs", 1, "--out", tmp_path / "run")
    assert config_of(tmp_path / "run")["settings"]["learning_rate"] == 0.01


def test_options_of_the_loss_are_saved_with_the_model(tmp_path):
    loss = ("--label-smoothing", 0.1, "--class-weights", "balanced")
    succeed(*SHORT, *loss, "--epochs", 1, "--out", tmp_path / "run")
    y, model = load_digits().y_train[:100], xpconv.load_model(tmp_path / "run" / "model.safetensors", "numpy")
    np.testing.assert_allclose(model.loss_options["class_weights"], len(y) / (10 * np.bincount(y)))
    assert model.loss_options["label_smoothing"] == 0.1
    settings = config_of(tmp_path / "run")["settings"]
    assert (settings["label_smoothing"], settings["class_weights"]) == (0.1, "balanced")
    weights = "1,2,3,4,5,6,7,8,9,0.5"
    succeed(*SHORT, "--class-weights", weights, "--label-smoothing", 0, "--epochs", 1, "--out", tmp_path / "other")
    model = xpconv.load_model(tmp_path / "other" / "model.safetensors", "numpy")
    assert model.loss_options == {"class_weights": [1, 2, 3, 4, 5, 6, 7, 8, 9, 0.5]}


def test_help_tells_integers_from_numbers():
    shown = succeed("train", "--help")
    kinds = dict(re.findall(r"--([a-z-]+)(?:, --[a-z-]+)* (INTEGER|NUMBER)", shown))
    assert (kinds["lookahead"], kinds["batch-size"], kinds["print-every"]) == ("INTEGER",) * 3
    assert (kinds["learning-rate"], kinds["weight-decay"], kinds["warmup"]) == ("NUMBER",) * 3


def test_the_folder_of_a_run_stands_for_its_model(tmp_path, bare):
    assert succeed("eval", bare.folder) == succeed("eval", bare.model)
    image = write_digit(tmp_path / "0.png", 0)
    assert succeed("predict", bare.folder, image) == succeed("predict", bare.model, image)
    assert "there is no file" in call("eval", tmp_path).stderr


def test_swapped_arguments_of_predict_are_told(tmp_path, bare):
    image = write_digit(tmp_path / "0.png", 0)
    for model in (bare.model, bare.folder):
        result = call("predict", image, model)
        assert result.exit_code == 1
        assert f"{image} is a PNG picture but {model} is a safetensors file, as models are: give the" in result.stderr
    result = call("eval", image)
    assert f"{image} is a PNG picture; expected a safetensors file that xpconv wrote" in result.stderr
    result = call("predict", bare.model, bare.model)
    assert "cannot read the image" in result.stderr
    assert "it is a safetensors file" in result.stderr


def test_predict_escapes_control_characters_in_names(tmp_path, bare):
    shown = succeed("predict", bare.model, write_digit(tmp_path / "\x1b[2J.png", 0))
    assert "\x1b" not in shown
    assert "\\x1b[2J.png\t" in shown


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path):
    command = [sys.executable, "-m", "xpconv", *map(str, SHORT), "--epochs", "1", "--out", str(tmp_path / "猫")]
    environment = plain_environment() | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert rb"\u732b" in done.stdout


# ---- folders of runs that somebody changed


def write_config(folder, **settings):
    config = {"settings": {**asdict(settings_for("digits")), **settings}, "finished": True}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": ["adam"]}, "optimizer is ['adam']; expected sgd or"),
        ({"learning_rate": 10**400}, "; expected a finite number, 0 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected a finite number, 0 or more"),
        ({"reg": float("inf")}, "reg is inf; expected a finite number, 0 or more"),
        ({"batch_size": 10**30}, "; expected an int, at most 2147483647"),
        ({"data": "a\0b"}, "data is 'a\\x00b'; expected a string without null characters"),
        ({"colour": 1}, "colour"),
    ],
)
def test_unusable_settings_are_refused_in_one_line(tmp_path, settings, message):
    write_config(tmp_path, **settings)
    result = call("train", "--resume", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert len(result.stderr) < 1000
    assert message in result.stderr


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", "{}", '{"settings": 3}', '{"settings": {"data": 3}}', "\xff"])
@pytest.mark.parametrize("words", [["train", "--resume", "run"], ["compare", "run"], ["bench", "run/config.json"]])
def test_a_damaged_config_is_refused_in_one_line(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.json").write_text(text, encoding="latin-1")
    Path("run/metrics.csv").write_text("iteration,epoch,loss,train_accuracy,val_accuracy\n")
    result = call(*words, **({"XP_BACKEND": "array_api_strict"} if words[0] == "bench" else {}))
    if (words[0], text) != ("compare", '{"settings": {"data": 3}}'):  # which needs no settings
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
        assert result.stderr.startswith("xpconv: error: ")


def test_eval_beside_a_damaged_config_takes_the_digits(tmp_path, bare):
    shutil.copy(bare.model, tmp_path)
    (tmp_path / "config.json").write_text("[" * 200_000)
    assert "test accuracy" in succeed("eval", tmp_path)


@pytest.mark.parametrize("shape", [[0, 8, 8], [-1, 8, 8], [1.0, 8, 8], ["1", 8, 8]])
def test_a_net_of_impossible_images_is_not_measured(tmp_path, bare, shape):
    config = config_of(bare.folder)
    config["model"]["input_shape"] = shape
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = call("bench", tmp_path / "config.json", "--backend", "array_api_strict")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "config.json describes no net" in result.stderr


def test_metrics_without_columns_are_refused(tmp_path):
    write_config(tmp_path)
    (tmp_path / "metrics.csv").touch()
    for command in ("compare", "watch"):
        result = call(command, tmp_path)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
        assert (
            "is not the folder of a run (metrics.csv has no column loss, train_accuracy, val_accuracy)" in result.stderr
        )


def test_metrics_with_a_huge_field_are_refused(tmp_path):
    write_config(tmp_path)
    (tmp_path / "metrics.csv").write_text("iteration,epoch,loss\n1,1," + "1" * 200_000 + "\n")
    result = call("compare", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "is not the folder of a run" in result.stderr


def test_runs_whose_accuracies_are_all_nan_have_no_best_one(tmp_path):
    write_config(tmp_path, model="\x1b[2J")
    header = "iteration,epoch,loss,train_accuracy,val_accuracy\n"
    (tmp_path / "metrics.csv").write_text(header + "1,1,2.5,nan,nan\n2,1,2.5,nan,nan\n")
    shown = succeed("compare", tmp_path, tmp_path, "--out", tmp_path / "comparison.png")
    assert shown.splitlines()[1].split("\t")[1:] == ["2", "2.5000", "-", "-"]


def test_scores_that_are_nan_are_an_error(tmp_path):
    net = xpconv.ThreeLayerConvNet(input_dim=(1, 8, 8), rng=0)
    net.params["W2"][...] = 3e38
    net.params["W2"][::2] *= -1
    xpconv.save_model(net, tmp_path / "net.safetensors")
    image = write_digit(tmp_path / "0.png", 0)
    for words in (["eval", tmp_path / "net.safetensors"], ["predict", tmp_path / "net.safetensors", image]):
        result = call(*words)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert result.stderr.startswith("xpconv: error: ")
        assert "NaN" in result.stderr

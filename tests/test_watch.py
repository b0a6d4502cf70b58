"""``xpconv watch``, and the metrics that a run writes while it trains."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tests.commands import SHORT, call
from xpconv.cli import _metrics, _watch
from xpconv.cli._compare import Run, read_run
from xpconv.cli._metrics import LiveMetrics, histories_by_epoch, metrics_table
from xpconv.cli._report import epoch_table
from xpconv.data import load_digits
from xpconv.errors import ArgumentError
from xpconv.io._lock import lock_folder
from xpconv.nn import TwoLayerNet
from xpconv.training.solver import Solver
from xpconv.viz._terminal import line_plot

HEADER = "iteration,epoch,loss,learning_rate,train_accuracy,val_accuracy,val_loss\n"
ROWS = ["1,1,2.5,0.1,0.1,0.125,2.25\n", "2,1,1.5,0.1,0.5,0.25,1.75\n", "3,2,1.25,0.1,,,\n4,2,1.0,0.1,0.75,0.5,1.5\n"]
LINES = [
    "epoch 0 of 2: validation loss 2.2500, accuracy 0.1000, validation 0.1250",
    "epoch 1 of 2: validation loss 1.7500, accuracy 0.5000, validation 0.2500",
    "epoch 2 of 2: validation loss 1.5000, accuracy 0.7500, validation 0.5000",
]


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has ended."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": {"epochs": 2}, "finished": True}))
    (folder / "metrics.csv").write_text(HEADER + "".join(ROWS))
    return folder


def text_of(rows):
    return ["".join(text for text, _ in row).rstrip() for row in rows]


# ---- the command


def test_in_a_pipe_a_finished_run_is_one_line_for_each_epoch(run):
    for given in (run, run / "metrics.csv"):
        result = call("watch", given)
        assert result.exit_code == 0
        assert result.stdout.splitlines() == [*LINES, f"{run} is finished: see {run / 'report.html'}"]


def test_a_run_is_watched_until_its_training_ends(run, monkeypatch, capsys):
    monkeypatch.setattr(_watch, "POLL_SECONDS", 0.01)
    (run / "metrics.csv").unlink()
    (run / "config.json").write_text(json.dumps({"settings": {"epochs": 2}, "finished": False}))
    shown = []

    def train():
        for count in range(1, 4):
            (run / "new").write_text(HEADER + "".join(ROWS[:count]))
            os.replace(run / "new", run / "metrics.csv")
            end = time.monotonic() + 30
            while len(shown) < count and time.monotonic() < end:
                time.sleep(0.01)
        (run / "config.json").write_text(json.dumps({"settings": {"epochs": 2}, "finished": True}))
        lock.__exit__(None, None, None)

    monkeypatch.setattr(_watch, "echo", shown.append)
    lock = lock_folder(run)
    lock.__enter__()
    thread = threading.Thread(target=train)
    thread.start()
    _watch.watch_run(run)
    thread.join()
    assert shown == [*LINES, f"{run} is finished: see {run / 'report.html'}"]


def test_watching_a_killed_run_ends_and_says_how_to_resume_it(run, monkeypatch):
    monkeypatch.setattr(_watch, "QUIET_SECONDS", 0.0)
    (run / "config.json").write_text(json.dumps({"settings": {"epochs": 2}}))
    (run / ".lock").touch()
    shown = call("watch", run).stdout
    assert shown.endswith(f"{run} has ended before it was finished: xpconv train --resume {run} continues it\n")


def test_watching_a_run_that_fails_before_its_first_check_ends(run, monkeypatch):
    monkeypatch.setattr(_watch, "QUIET_SECONDS", 0.0)
    (run / "metrics.csv").unlink()
    (run / "config.json").write_text(json.dumps({"settings": {"epochs": 2}}))
    assert call("watch", run).stdout.startswith(f"{run} has ended before it was finished")


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    result = call("watch", tmp_path)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"{tmp_path} is not the folder of a run (" in result.stderr
    assert "expected one that xpconv train writes, with config.json" in result.stderr


def test_metrics_that_are_damaged_are_refused(run):
    (run / "metrics.csv").write_text("iteration,loss\n1,2.3\n")
    result = call("watch", run)
    assert result.exit_code == 1
    assert "is not the folder of a run (metrics.csv has no column train_accuracy, val_accuracy)" in result.stderr


def test_without_a_folder_the_newest_run_is_watched(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("watch")
    assert result.exit_code == 1
    assert "there is no run in the folder runs: name the folder of a run, as in xpconv watch first" in result.stderr
    for name, seconds in (("new", 2000), ("old", 1000)):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.json").write_bytes((run / "config.json").read_bytes())
        os.utime(Path("runs", name, "config.json"), (seconds, seconds))
    assert _watch.newest_run() == Path("runs/new")


def test_the_commands_of_the_how_to_page_watch_a_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "runs/first")
    page = (Path(__file__).parents[1] / "docs/howto/follow.md").read_text(encoding="utf-8")
    commands = re.search(r"^```sh\n(.*?)^```", page, re.M | re.S)[1].splitlines()
    for command in commands:
        program, *words = shlex.split(command, comments=True)
        assert program == "xpconv"
        assert call(*words).stdout.splitlines()[:3] == LINES
    assert len(commands) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize("finished", [True, False])
def test_on_a_terminal_the_curves_are_drawn_until_the_run_or_ctrl_c_ends_it(run, finished):
    import pty

    config = {"settings": {"epochs": 2}, "finished": finished}
    (run / "config.json").write_text(json.dumps(config))
    main, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30", "PYTHONIOENCODING": "utf-8"}
    words = [sys.executable, "-m", "xpconv", "watch", str(run)]
    with lock_folder(run) if not finished else open(os.devnull):
        process = subprocess.Popen(words, stdout=terminal, stderr=subprocess.STDOUT, env=environment)
        os.close(terminal)
        shown = b""
        while b"accuracy by epoch" not in shown:
            shown += os.read(main, 4096)
        if not finished:
            process.send_signal(signal.SIGINT)
        try:
            while piece := os.read(main, 4096):
                shown += piece
        except OSError:  # the other end is closed
            pass
        assert process.wait() == (0 if finished else 130)
    os.close(main)
    text = " ".join(shown.decode(errors="replace").split())  # Ctrl-C may cut a character
    assert "iteration 4, epoch 2 of 2 complete; loss 1.0000; best validation accuracy 0.5000" in text
    assert ("is finished: see" in text) == finished
    assert "Traceback" not in text


# ---- the picture


@pytest.mark.parametrize(("width", "beside"), [(120, True), (60, False)])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_panels_fit_the_terminal_and_its_encoding(width, beside, encoding):
    console = pytest.importorskip("rich.console")
    losses = np.linspace(2, 1, 300)
    history = {"loss_history": losses, "train_acc_history": np.array([0.1, np.nan, 0.5]), "val_acc_history": losses[:3]}
    run = Run(Path("run"), {"epochs": 3}, history | {"val_loss_history": losses[:3]}, 100)
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    terminal = console.Console(file=file, width=width, height=30, force_terminal=True)
    terminal.print(_watch._panels(run, terminal))
    file.seek(0)
    lines = file.read().splitlines()
    assert len(lines) < 30
    assert any("loss by iteration" in line and "accuracy by epoch" in line for line in lines) == beside


def test_a_run_without_a_check_says_that_it_waits():
    empty = dict.fromkeys(("loss_history", "train_acc_history", "val_acc_history", "val_loss_history"), np.zeros(0))
    run = Run(Path("run"), {"epochs": 3}, empty)
    assert _watch._status(run) == "waiting for the first check"
    for _, lines, limits in (_watch._losses(run), _watch._accuracies(run)):
        assert len(line_plot(lines, 40, 5, limits=limits)) == 6


def test_a_line_plot_has_the_height_of_each_value_in_its_row():
    values = [0.0, 3, 1, 2]
    rows = text_of(line_plot({"a": (range(4), values)}, 13, 4, ascii_only=True))
    assert rows == ["      3 | *", "        | ***", "        | **", "      0 |*", "         0  3"]


def test_a_line_plot_leaves_out_what_is_not_finite_and_clips_to_its_limits():
    rows = text_of(line_plot({"a": ([0, 1, 2], [np.nan, 1.0, 9.0])}, 12, 2, limits=(0, 1), ascii_only=True))
    assert rows == ["      1 |***", "      0 |", "         1 2"]


def test_the_dots_of_braille_characters_are_numbered_as_unicode_does():
    ((_, (upper, line)), (_, (lower, _)), _) = line_plot({"a": ([0, 1], [1.0, 0.0])}, 10, 2)
    names = [unicodedata.name(character) for character in (upper, lower)]
    assert names == ["BRAILLE PATTERN DOTS-1568", "BRAILLE PATTERN DOTS-4568"]
    assert line == 0


# ---- metrics during the training


def test_the_metrics_of_a_running_training_are_a_beginning_of_its_last_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(_metrics, "SECONDS", 0.0)
    monkeypatch.setattr(_metrics, "MAX_LOAD", 1e9)
    solver = Solver(TwoLayerNet(input_dim=64, rng=0), load_digits(), num_epochs=2, print_every=5, verbose=False, rng=0)
    live, versions = LiveMetrics(tmp_path / "metrics.csv"), []

    def record(solver):
        live.update(solver)
        versions.append((tmp_path / "metrics.csv").read_text())

    solver.train(record)
    assert versions[0].count("\n") == 2
    last = metrics_table(solver)
    assert all(last.startswith(version) for version in versions)
    assert versions[-1] == last


def test_checks_that_are_several_epochs_apart_keep_their_epochs(tmp_path):
    solver = Solver(
        TwoLayerNet(input_dim=64, rng=0), load_digits(), num_epochs=5.5, check_every=2, verbose=False, rng=0
    )  # 12 iterations an epoch
    solver.train()
    (tmp_path / "metrics.csv").write_text(metrics_table(solver))
    (tmp_path / "config.json").write_text(json.dumps({"settings": {"epochs": 5.5}, "finished": True}))
    watched = read_run(tmp_path)
    (xs, ys), _ = _watch._accuracies(watched)[1].values()
    assert xs.tolist() == [0, 2, 4, 5.5]
    np.testing.assert_array_equal(ys, solver.train_acc_history)
    assert _watch._losses(watched)[1]["validation"][0].tolist() == [1, 24, 48, 66]
    assert _watch._status(watched, 3).startswith("epoch 5.5 of 5.5: validation loss ")
    assert "iteration 66, epoch 5.5 of 5.5 complete" in _watch._status(watched)
    rows = epoch_table(histories_by_epoch(solver))
    assert [row[0] for row in rows[1:]] == ["0", "2", "4", "5.5"]
    assert rows[-1][2] == f"{np.mean(solver.loss_history[48:]):.4f}"


def test_metrics_are_written_at_most_once_in_each_interval_and_not_twice_the_same(tmp_path, monkeypatch):
    clock, writes = [0.0], []
    monkeypatch.setattr(_metrics.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(_metrics, "write_bytes", lambda path, content: writes.append(clock[0]))
    solver = Solver(TwoLayerNet(input_dim=64, rng=0), load_digits(), num_epochs=1, verbose=False, rng=0)
    live = LiveMetrics(tmp_path / "metrics.csv")
    for now, losses in ((0, [2.0]), (0.5, [2.0, 1.0]), (1.5, [2.0, 1.0]), (9, [2.0, 1.0])):
        clock[0], solver.loss_history = now, losses
        live.update(solver)
    assert writes == [0, 1.5]


def test_a_training_survives_metrics_that_cannot_be_written(tmp_path):
    solver = Solver(TwoLayerNet(input_dim=64, rng=0), load_digits(), num_epochs=1, verbose=False, rng=0)
    solver.train(LiveMetrics(tmp_path / "missing" / "metrics.csv").update)
    assert solver.epoch == 1


def test_the_folder_of_a_new_run_that_fails_is_removed_with_its_metrics(tmp_path):
    result = call(*SHORT, "--learning-rate", 1e30, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert not (tmp_path / "run").exists()


def test_an_unreadable_run_is_an_argument_error(tmp_path):
    with pytest.raises(ArgumentError, match="is not the folder of a run"):
        _watch.watch_run(tmp_path / "missing")

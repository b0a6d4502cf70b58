"""`xpconv compare`: names, summaries and curves of several runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from xpconv.cli import _app
from xpconv.cli._compare import Run, differences, read_run, summary
from xpconv.errors import ArgumentError
from xpconv.viz import _curves as viz


def write_run(folder, losses, accuracies, per_epoch=2, **settings):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    checked = [1, *range(per_epoch, len(losses) + 1, per_epoch)]
    with (folder / "metrics.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["iteration", "epoch", "loss", "learning_rate", "train_accuracy", "val_accuracy"])
        for t, loss in enumerate(losses, start=1):
            accuracy = accuracies[checked.index(t)] if t in checked else ""
            table.writerow([t, (t - 1) // per_epoch + 1, loss, 0.1, accuracy, accuracy])
    return folder


def test_run_is_read_as_it_was_written(tmp_path):
    run = read_run(write_run(tmp_path / "a", [2.3, 2.0, 1.5, 1.0], [0.1, 0.4, 0.6], seed=3))
    assert run.settings == {"seed": 3}
    assert {name: values.tolist() for name, values in run.history.items()} == {
        "loss_history": [2.3, 2.0, 1.5, 1.0],
        "train_acc_history": [0.1, 0.4, 0.6],
        "val_acc_history": [0.1, 0.4, 0.6],
        "val_loss_history": [],
        "check_epochs": [0, 1, 2],
    }
    assert run.iterations_per_epoch == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "config.json").unlink(),
        lambda f: (f / "metrics.csv").unlink(),
        lambda f: (f / "config.json").write_text("{"),
        lambda f: (f / "config.json").write_text("[]"),
        lambda f: (f / "metrics.csv").write_text("iteration,loss\n1,2.3\n"),
        lambda f: (f / "metrics.csv").write_text("loss,train_accuracy,val_accuracy\nx,,\n"),
    ],
)
def test_folder_that_holds_no_run_is_named(tmp_path, damage):
    folder = write_run(tmp_path / "a", [1.0], [0.1])
    damage(folder)
    with pytest.raises(ArgumentError, match=r"a is not the folder of a run .* with config\.json and metrics\.csv"):
        read_run(folder)


def runs_of(*settings):
    return [Run(Path("runs", f"r{i}"), each, {}) for i, each in enumerate(settings)]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([{"a": 1, "b": 2}, {"a": 1, "b": 3}], ["b=2", "b=3"]),
        ([{"a": 1, "b": 2}, {"a": 2, "b": 3}], ["a=1, b=2", "a=2, b=3"]),
        ([{"a": 1}, {"a": 1}], ["r0", "r1"]),
        ([{"a": 1}], ["r0"]),
        ([{"a": 1}, {"a": 1}, {"a": 2}], ["r0: a=1", "r1: a=1", "r2: a=2"]),
        ([{"a": 1}, {"a": 1, "new": "x"}], ["new=None", "new=x"]),
    ],
)
def test_runs_are_named_by_differing_settings(settings, names):
    assert differences(runs_of(*settings)) == names


def test_summary_has_the_last_losses_and_the_best_accuracy():
    history = {"loss_history": np.arange(30.0, 0, -1), "val_acc_history": np.array([0.1, 0.7, 0.6])}
    empty = {"loss_history": np.array([]), "val_acc_history": np.array([])}
    table = summary([Run(Path("a"), {"x": 1}, history), Run(Path("b"), {"x": 2}, empty)])
    assert table[1:] == [("x=1", "30", "2.0000", "0.7000", "1"), ("x=2", "0", "-", "-", "-")]


def compare(*words):
    return CliRunner().invoke(_app.app, ["compare", *map(str, words)])


def test_command_draws_runs_of_different_lengths_and_prints_a_row_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, optimizer in enumerate(("sgd", "sgd_momentum", "rmsprop", "adam")):
        write_run(
            tmp_path / optimizer,
            np.linspace(2.3, 0.5, 4 + 2 * i),
            [0.1, *[0.5 + i / 10] * (2 + i)],
            optimizer=optimizer,
        )
    result = compare("sgd", "sgd_momentum", "rmsprop", "adam")
    assert result.exit_code == 0, result.output
    header, *rows, last = result.stdout.splitlines()
    assert header.split("\t")[0] == "run"
    assert [row.split("\t")[0] for row in rows] == [
        f"optimizer={name}" for name in ("sgd", "sgd_momentum", "rmsprop", "adam")
    ]
    assert last == "wrote comparison.png"
    with Image.open("comparison.png") as picture:
        assert picture.format == "PNG"
    assert compare("sgd/config.json", "adam/metrics.csv").exit_code == 0


def test_command_names_a_folder_that_holds_no_run(tmp_path):
    result = compare(tmp_path, "--out", tmp_path / "new.png")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"xpconv: error: {tmp_path} is not the folder of a run")
    assert not list(tmp_path.iterdir())


def test_a_run_of_one_iteration_that_is_an_epoch_is_at_epoch_1(tmp_path):
    folder = write_run(tmp_path / "a", [2.0], [0.4], per_epoch=1)
    (folder / "config.json").write_text(json.dumps({"settings": {}, "finished": True}))
    assert summary([read_run(folder)])[1][-2:] == ("0.4000", "1")


@pytest.mark.parametrize("name", ["_old", r"$\foo$"])
def test_every_name_is_in_the_legend(tmp_path, name, monkeypatch):
    drawn = []
    monkeypatch.setattr(viz, "write_figure", lambda figure, path: drawn.append(figure))
    history = {"loss_history": [2, 1], "train_acc_history": [0.1, 0.4], "val_acc_history": [0.1, 0.3]}
    viz.save_comparison({name: history, "new": history}, tmp_path / "c.png")
    (figure,) = drawn
    figure.canvas.draw()
    shown = [text.get_text().strip().replace(r"\$", "$") for text in figure.legends[0].get_texts()]
    assert shown == [name, "new"]

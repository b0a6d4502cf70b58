"""The report of a run: what it holds, that it loads nothing, and how a browser shows it."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from math import nan
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import SHORT, call
from xpconv.cli._compare import read_run
from xpconv.cli._report import epoch_table, saved_epoch
from xpconv.io import load_model
from xpconv.nn._summary import layer_rows

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "img"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "run"
    result = call(*SHORT, "--model", "resnet20", "--width", 4, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


class Page(HTMLParser):
    """The tables, addresses and text of a page, whose tags must be balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.tables, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def page(run):
    return Page((run / "report.html").read_text(encoding="utf-8"))


def test_a_report_holds_the_pictures_of_its_run_and_loads_nothing(run, page):
    names = ("curves", "confusion", "mistakes", "filters")
    assert page.addresses == [
        f"data:image/png;base64,{base64.b64encode((run / f'{name}.png').read_bytes()).decode()}" for name in names
    ]
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "url(" not in text
    assert "@import" not in text
    assert "<script" not in text


def test_a_report_has_the_metrics_of_each_epoch(run, page):
    history = read_run(run).history
    header, *rows = page.tables[0]
    assert header[-2:] == ["training accuracy", "validation accuracy"]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    for column, name in ((-2, "train_acc_history"), (-1, "val_acc_history")):
        np.testing.assert_allclose([float(row[column]) for row in rows], history[name], atol=5e-5)
    per_epoch = len(history["loss_history"]) // 2
    assert rows[2][2] == f"{history['loss_history'][per_epoch:].mean():.4f}"


def test_a_report_has_the_classes_the_net_the_settings_and_the_versions(run, page):
    _, classes, net, settings, versions = page.tables
    assert [row[0] for row in classes] == ["class", *"0123456789", "mean"]
    model = load_model(run / "model.safetensors", "numpy")
    assert [row[:2] for row in net[1:]] == [[name, text] for name, text, *_ in layer_rows(model)]
    assert ["width", "4"] in settings
    assert [row[0] for row in versions][:2] == ["xpconv", "numpy"]
    accuracy = call("eval", run).stdout.split()[-1]
    assert f"test accuracy{accuracy}" in page.text
    assert "training images100" in page.text  # SHORT trains on the first 100
    assert f"{sum(w.size for w in model.params.values()):,}" in page.text


def test_a_report_names_the_epoch_of_the_saved_model(run, page):
    losses = read_run(run).history["val_loss_history"]
    assert f"saved modelepoch {losses.argmin()}, lowest validation loss" in page.text
    assert f"best validation accuracy{read_run(run).history['val_acc_history'].max():.4f}, epoch " in page.text


def test_the_saved_epoch_is_the_best_and_the_last_iteration_if_the_first_epoch_was_interrupted():
    histories = {
        "loss_history": [2.0] * 6,
        "iterations_per_epoch": 2,
        "val_acc_history": [0.1, 0.5, 0.75, 0.75],
        "val_loss_history": [nan, 0.9, 0.75001, 0.75],
        "interrupted": True,
        "epoch": 3,
    }
    assert saved_epoch(histories, "accuracy") == "epoch 3, highest validation accuracy"
    assert saved_epoch(histories, "loss") == "epoch 3, lowest validation loss"
    assert saved_epoch(histories | {"epoch": 0}, "loss") == "the last iteration"


def test_names_of_classes_cannot_add_tags_to_a_report(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for name in ("<b>", "a&b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
                picture.save(tmp_path / "data" / split / name / f"{i}.png")
    words = ("--data", tmp_path / "data", "--image-size", 8, "--epochs", 1, "--batch-size", 4)
    result = call("train", *words, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert [row[0] for row in page.tables[1]] == ["class", "<b>", "a&b", "mean"]


def test_the_table_of_epochs_takes_the_mean_of_the_losses_and_leaves_out_what_was_not_measured():
    histories = {
        "iterations_per_epoch": 2,
        "loss_history": [4.0, 2.0, 1.0, 0.5, 0.25],  # interrupted within epoch 3
        "learning_rate_history": [0.1, 0.1, 0.05, 0.05, 0.01],
        "val_loss_history": [2.5, 1.5, nan],
        "train_acc_history": [0.1, 0.5, 0.75],
        "val_acc_history": [0.1, 0.25, 0.5],
    }
    assert epoch_table(histories)[1:] == [
        ("0", "0.1", "4.0000", "2.5000", "0.1000", "0.1000"),
        ("1", "0.1", "3.0000", "1.5000", "0.5000", "0.2500"),
        ("2", "0.05", "0.7500", "-", "0.7500", "0.5000"),
    ]
    assert len(epoch_table(histories | {name: [] for name in histories if name != "iterations_per_epoch"})) == 1


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1300, 500])
def test_a_browser_shows_the_pictures_of_a_report_within_the_width_of_its_window(run, tmp_path, width):
    measure = """<script>addEventListener("load", () => { document.title = JSON.stringify([
        [...document.images].map(image => image.naturalWidth > 0), innerWidth,
        document.documentElement.scrollWidth - document.documentElement.clientWidth])})
        </script>"""
    copy = tmp_path / "report.html"
    copy.write_text((run / "report.html").read_text(encoding="utf-8").replace("</body>", f"{measure}</body>"), "utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},800", "--dump-dom"]
    shown = subprocess.run(
        [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", Path(copy).as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert re.search(r"<title>(.*?)</title>", shown)[1] == f"[[true,true,true,true],{width},0]"

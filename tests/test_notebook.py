"""What Jupyter shows: the progress of a training, models and reports."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

from xpconv import Solver, TwoLayerNet
from xpconv.cs231n.solver import Solver as CourseSolver
from xpconv.data import load_digits
from xpconv.nn import Affine, Conv, Relu, Residual, Sequential
from xpconv.testing import LayerFinding, LayerReport, check_equivalence
from xpconv.training import _notebook
from xpconv.training._notebook import NotebookProgress
from xpconv.training._progress import in_notebook
from xpconv.training.metrics import classification_report
from xpconv.viz import _svg
from xpconv.viz._svg import svg_lines


class Cell:
    """The output of a cell: what is displayed, its updates, and what is printed."""

    def __init__(self):
        self.shown, self.stream = [], type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()

    def display(self, data, raw, display_id):
        assert (raw, display_id) == (True, True)
        assert not self.shown
        self.update(data, raw=True)
        return self

    def update(self, data, raw):
        assert raw
        self.shown.append(data)


@pytest.fixture
def cell(monkeypatch):
    cell = Cell()
    modules = {"IPython": ModuleType("IPython"), "IPython.display": ModuleType("IPython.display")}
    modules["IPython.display"].display = cell.display
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(_notebook, "SECONDS", 0.0)
    return cell


def train(solver_class=Solver, **options):
    net = TwoLayerNet(input_dim=64, rng=0)
    solver_class(net, load_digits(), num_epochs=2, batch_size=100, print_every=5, **options).train()


def test_a_cell_shows_one_output_with_a_bar_and_curves_that_is_updated(cell):
    with redirect_stdout(cell.stream):
        train()
    last = cell.shown[-1]["text/html"]
    assert "iteration 24 of 24, loss " in last
    assert re.search(r'<progress [^>]*max="24" value="24">', last)
    assert re.search(r", validation accuracy 0\.\d{4} \(best 0\.\d{4}\), [\d,]+ images/s, 0:00:00 left<", last)
    assert last.count("<svg") == 2
    assert last.count("<polyline") == 4
    assert len(cell.shown) > 24
    assert cell.stream.getvalue() == ""


def test_where_html_is_not_shown_the_output_is_the_log(cell):
    with redirect_stdout(cell.stream):
        train()
    lines = cell.shown[-1]["text/plain"].splitlines()
    assert [line.partition(")")[0] for line in lines][:3] == ["(Iteration 1 / 24", "(Epoch 0 / 2", "(Iteration 6 / 24"]
    assert lines[-1].startswith("(Epoch 2 / 2) train acc: ")


def test_a_cell_is_updated_a_few_times_a_second_and_at_the_end(cell, monkeypatch):
    monkeypatch.setattr(_notebook, "SECONDS", 3600.0)
    with redirect_stdout(cell.stream):
        train()
    assert len(cell.shown) == 2
    assert "iteration 24 of 24" in cell.shown[-1]["text/html"]


def test_redirected_output_the_courses_solver_and_verbose_false_have_no_bar(cell, capsys):
    with redirect_stdout(cell.stream):
        with redirect_stdout(io.StringIO()) as text:
            assert not in_notebook()
            train()
        assert "(Epoch 2 / 2)" in text.getvalue()
        train(verbose=False)
        train(CourseSolver)
    assert not cell.shown
    assert "(Epoch 2 / 2)" in cell.stream.getvalue()


def test_a_training_outlives_a_display_that_fails(cell, monkeypatch):
    monkeypatch.setattr(cell, "update", lambda *data, **options: 1 / 0)
    with redirect_stdout(cell.stream):
        train()


def test_other_lines_are_shown_below_the_curves_as_text(cell):
    progress = NotebookProgress(10, 100, 0)
    progress.line("steps are not captured: <reason>")
    assert cell.shown[-1]["text/html"].endswith("<div>steps are not captured: &lt;reason&gt;</div>")


def test_a_resumed_training_starts_its_bar_and_curves_where_it_was(cell):
    progress = NotebookProgress(10, 100, 4)
    progress.advance()
    progress.loss("", np.nan)
    progress.loss("", 0.5)
    assert 'max="10" value="5"' in cell.shown[-1]["text/html"]
    assert "<circle" in cell.shown[-1]["text/html"]  # one finite point is no line


REAL_KERNEL = """
import nbclient, nbformat
from jupyter_client import KernelManager

if hasattr(KernelManager, "transport_encryption"):
    KernelManager.transport_encryption.default_value = "auto"
cell = nbformat.v4.new_code_cell(
    "from xpconv import Solver, TwoLayerNet; from xpconv.data import load_digits;"
    "Solver(TwoLayerNet(input_dim=64, rng=0), load_digits(), num_epochs=1, rng=0).train()"
)
book = nbformat.v4.new_notebook(cells=[cell])
nbclient.NotebookClient(book, timeout=120).execute()
(output,) = (o for o in book.cells[0].outputs if o.output_type == "display_data")
print(output.data["text/html"])
"""


def test_a_real_kernel_shows_the_last_state():
    for name in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(name)
    shown = subprocess.run(  # the clients of kernels leave sockets open, which here would be errors
        [sys.executable, "-c", REAL_KERNEL], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    ).stdout
    assert "iteration 12 of 12, loss " in shown


# ---- models and reports


def cells_of(shown):
    root = ElementTree.fromstring(shown)
    return [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")], "".join(root.itertext())


def test_jupyter_shows_the_layers_of_a_model_as_a_table():
    body = [Conv(4, 3, padding=1), Relu()]
    net = Sequential([Conv(4, 3, padding=1), Residual(body), Affine(3)], input_shape=(1, 5, 5), rng=0, backend="numpy")
    rows, text = cells_of(net._repr_html_())
    assert rows[0] == ["name", "layer", "output", "parameters", "bytes"]
    names = [line.split("  ")[0] for line in net.summary().splitlines()[1:-1]]
    assert [row[0].strip().split(": ")[-1] for row in rows[1:]] == list(net.layer_names.values())
    assert len(names) == len(rows)
    lines = net.summary().splitlines()
    assert lines[0] in text
    assert lines[-1] in text


def test_jupyter_shows_reports_as_tables():
    report = classification_report([0, 0, 1, 1], [0, 1, 1, 1], ["<cat>", "dog"])
    rows, _ = cells_of(report._repr_html_())
    assert rows == [list(report.HEADER), *map(list, report.rows())]

    compared = check_equivalence(lambda x: 2 * x, np.ones(3), backends=["numpy"])
    rows, _ = cells_of(compared._repr_html_())
    assert [" ".join(row).split() for row in rows] == [line.split() for line in str(compared).splitlines()]

    checked = LayerReport("affine", (LayerFinding("ok", "runs"), LayerFinding("FAIL", "gradient of w", "has a sign")))
    rows, text = cells_of(checked._repr_html_())
    assert rows[1:] == [["ok", "runs", ""], ["FAIL", "gradient of w", "has a sign"]]
    assert text.strip().endswith("verdict: affine has problems: gradient of w")


# ---- curves as SVG


def points_of(svg):
    root = ElementTree.fromstring(svg)
    return [[tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in root.iter("polyline")]


def test_curves_are_valid_svg_whose_points_follow_the_values():
    svg = svg_lines("a < b", {"one": ([1, 2, 3], [0.0, 1.0, 5.0]), "two": ([1, 3], [np.nan, 0.5])}, (0.0, 2.0))
    (line,) = points_of(svg)
    middle = (_svg.LEFT + _svg.RIGHT) / 2
    assert line == [(_svg.LEFT, _svg.BOTTOM), (middle, (_svg.TOP + _svg.BOTTOM) / 2), (_svg.RIGHT, _svg.TOP)]
    assert ElementTree.fromstring(svg)[0].text == "a < b"
    assert svg.count("<circle") == 1


def test_long_curves_are_thinned_out_but_keep_their_last_point():
    (line,) = points_of(svg_lines("loss", {"training": (range(10_001), np.linspace(1, 0, 10_001))}))
    assert len(line) <= _svg.MAX_POINTS
    assert line[-1] == (_svg.RIGHT, _svg.BOTTOM)


def test_curves_without_values_are_empty_axes():
    assert points_of(svg_lines("loss", {"training": ([], [])})) == [[]]

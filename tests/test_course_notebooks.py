"""The course's notebooks run on the package, and every figure in them is the expected one.

The notebooks are pages of the documentation. They train on scikit-learn's digits; the slow tests also run them on
CIFAR-10, if ``XPCONV_DATA`` is set to a folder that holds it, and with nets that compute on another array library.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import find_backend
from xpconv.cs231n.classifiers import cnn, fc_net

COURSE = Path(__file__).parents[1] / "docs" / "course"
PAGES = {"classifiers": 40, "fully_connected": 120, "convolutional": 40}  # and the number of figures in each, at least


def cells(page):
    """Return the code of a notebook, cell by cell."""
    text = (COURSE / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^```\{code-cell\}\n(.*?)^```", text, re.M | re.S)


def run(*codes, names):
    for code in codes:
        exec(compile(code, "notebook", "exec"), names)
    return names


def figures(output):
    """Return the lines that hold an error and what it has to stay below."""
    return [line for line in output.splitlines() if "   expected below " in line]


def computing_on(backend, kind):
    """Return the net, its losses and gradients computed by a twin on another backend.

    Its parameters stay NumPy arrays, as the cells expect, and so do the results.
    """

    class Twin(kind):
        def __init__(self, *args, **options):
            before = np.random.get_state()
            self.twin = kind(*args, **options, backend=backend)
            np.random.set_state(before)
            super().__init__(*args, **options)

        def loss(self, X, y=None):
            self.twin.params, self.twin.reg = dict(self.params), self.reg
            self.twin.state = {name: backend.asarray(value) for name, value in self.state.items()}
            result = self.twin.loss(X, y)
            if y is None:
                return backend.to_host(result)
            self.state.update({name: backend.to_host(value) for name, value in self.twin.state.items()})
            loss, grads = result
            return float(loss), {name: backend.to_host(grad) for name, grad in grads.items()}

    return Twin


@pytest.fixture(autouse=True)
def _notebook(monkeypatch):
    """Draw figures into memory, and leave NumPy's global state as it was."""
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    state = np.random.get_state()
    with matplotlib.rc_context({"backend": "agg"}):
        yield
        import matplotlib.pyplot as plt

        plt.close("all")
    np.random.set_state(state)


def assert_page_holds(page, capsys):
    run(*cells(page), names={})
    shown = figures(capsys.readouterr().out)
    assert len(shown) >= PAGES[page]
    assert [line for line in shown if "WRONG" in line] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_is_the_expected_one(page, monkeypatch, capsys):
    monkeypatch.delenv("XPCONV_DATA", raising=False)
    assert_page_holds(page, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_figure_is_the_expected_one_on_cifar10(page, capsys):
    if not os.environ.get("XPCONV_DATA"):
        pytest.skip("XPCONV_DATA is not set to a folder that holds CIFAR-10")
    assert_page_holds(page, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_figure_is_the_expected_one_with_nets_on_another_library(page, monkeypatch, capsys):
    monkeypatch.delenv("XPCONV_DATA", raising=False)
    backend = find_backend("array_api_strict:device1")
    for module in (cnn, fc_net):
        for name in {"TwoLayerNet", "FullyConnectedNet", "ThreeLayerConvNet"} & set(module.__all__):
            monkeypatch.setattr(module, name, computing_on(backend, getattr(module, name)))
    assert_page_holds(page, capsys)


def test_a_wrong_layer_of_ones_own_is_shown(monkeypatch, capsys):
    """The page says: define functions of the same names after the imports."""
    monkeypatch.delenv("XPCONV_DATA", raising=False)
    imports, _, affine, relu, *_ = cells("fully_connected")
    names = run(imports, names={})
    right = names["affine_backward"]

    def affine_backward(dout, cache):
        dx, dw, db = right(dout, cache)
        return dx, dw, 2 * db

    names |= {"affine_backward": affine_backward, "relu_backward": lambda dout, cache: dout}
    run(affine, relu, names=names)
    wrong = [line.split("  ")[0] for line in figures(capsys.readouterr().out) if line.endswith("WRONG")]
    assert wrong == ["affine_backward db", "relu_forward dx"]

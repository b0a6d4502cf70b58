"""The documentation covers every public name, lists every page, and its code runs."""

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import xpconv
import xpconv.io.onnx
import xpconv.io.torch
from xpconv.nn import Relu

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = re.findall(r"^   (xpconv[\w.]*)$", (DOCS / "reference" / "index.md").read_text(encoding="utf-8"), re.M)
INSTALLS = re.compile(r"(pip install [^\n]*\n)+")


def exports(module):
    """Return the functions and classes of xpconv that a module exports, by name."""
    found = {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: thing for name, thing in found.items() if getattr(thing, "__module__", "").startswith("xpconv")}


PUBLIC = {
    thing: f"{module}.{name}"
    for module in REFERENCE
    for name, thing in exports(importlib.import_module(module)).items()
}
MODULES = [info.name for info in pkgutil.walk_packages(xpconv.__path__, "xpconv.") if "._" not in info.name]


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_on_a_page_of_the_reference(name):
    missing = [name for name, thing in exports(importlib.import_module(name)).items() if thing not in PUBLIC]
    assert not missing, f"{missing}: list the module {name} in docs/reference/index.md, or start its name with _"


@pytest.mark.parametrize("thing", PUBLIC, ids=PUBLIC.values())
def test_every_public_name_has_an_example(thing):
    """Pytest runs these examples as doctests."""
    if inspect.isclass(thing) and issubclass(thing, tuple):
        return  # the example belongs to the function that returns the tuple
    assert re.search(r"^Examples\n-+\n(.*\n)*?>>> ", inspect.cleandoc(thing.__doc__ or ""), re.M)


def test_the_architecture_drawing_describes_every_floor_of_the_import_contract(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(DOCS)
    drawings = importlib.import_module("drawings")
    floors = [name for row in drawings.floors() for name in row]
    assert sorted(floors) == sorted(drawings.FLOORS)
    assert floors[-1] == "cli"


def test_every_page_is_in_the_table_of_contents():
    listed = {DOCS / "index.md"}
    for page in DOCS.rglob("*.md"):
        for entries in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
            for entry in entries.splitlines():
                name = re.sub(r".*<(.*)>", r"\1", entry)  # an entry is `name` or `Title <name>`
                listed |= set((DOCS if name.startswith("/") else page.parent).glob(f"{name.lstrip('/')}.md"))
    pages = {page for page in DOCS.rglob("*.md") if not {"_build", "generated"} & set(page.relative_to(DOCS).parts)}
    assert pages == {page for page in listed if "_build" not in page.parts}


def blocks(page):
    """Return the language and text of the plain code blocks of a page, which the build does not run."""
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [(language, code) for language, code in fenced if not language.startswith("{")]


@pytest.mark.parametrize("page", sorted(DOCS.glob("howto/*.md")), ids=lambda page: page.stem)
def test_all_code_of_the_how_to_pages_is_run(page):
    """The build runs code cells if the page has the mystnb header; a test must run all other code but installations."""
    if "{code-cell}" in page.read_text(encoding="utf-8"):
        assert page.read_text(encoding="utf-8").startswith("---\nfile_format: mystnb\n")
    shown = [code for language, code in blocks(page) if language != "text" and not INSTALLS.fullmatch(code)]
    tests = [test.read_text(encoding="utf-8") for test in Path(__file__).parent.glob("*.py")]
    assert not shown or any(page.name in test for test in tests)


def run_page(name, tmp_path, monkeypatch, names, wanted):
    """Run the blocks of a page that `wanted` selects, in order, with `names` as globals and on less training data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for language, code in blocks(DOCS / "howto" / name):
        if language == "python" and wanted(code):
            exec(compile(code, name, "exec"), names)
        elif language == "sh" and wanted(code):
            commands = INSTALLS.sub("", code).replace("--epochs 2", "--epochs 1 --num-train 100")
            subprocess.run(["bash", "-euc", commands], check=True, stdout=subprocess.DEVNULL)


class Negate(Relu):
    """The custom layer of the page on export."""


def test_code_of_the_onnx_export_page_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(xpconv.io.onnx, "CONVERTERS", dict(xpconv.io.onnx.CONVERTERS))
    names = {"net": xpconv.TwoLayerNet(input_dim=4, rng=0), "Negate": Negate}
    run_page("export.md", tmp_path, monkeypatch, names, lambda code: "torch" not in code)
    guesses, labels = capsys.readouterr().out.split("] [")
    assert len(guesses.split()) == len(labels.split()) == 5
    assert {"digits.onnx", "net.onnx"} <= {path.name for path in tmp_path.iterdir()}
    assert Negate in xpconv.io.onnx.CONVERTERS


@pytest.mark.torch
def test_code_of_the_pytorch_exchange_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    net = xpconv.ThreeLayerConvNet(rng=1)
    state_dict = xpconv.io.torch.to_torch_state_dict(net, names=["features.0", "hidden", "out"])
    names = {"state_dict": state_dict, "Negate": Negate}
    run_page("export.md", tmp_path, monkeypatch, names, lambda code: "state_dict" in code)
    assert np.array_equal(names["net"].params["W3"], net.params["W3"])


def test_python_code_of_the_layer_check_page_runs(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    names = {"x": rng.standard_normal((4, 6)), "w": rng.standard_normal((6, 3)), "b": rng.standard_normal(3)}
    with pytest.raises(AssertionError):  # the page's layer is wrong on purpose
        run_page("check_a_layer.md", tmp_path, monkeypatch, names, lambda code: "xpconv check" not in code)
    assert "gradient of w" in str(names["report"])
    assert names["conv_inputs"]()["x"].shape == (4, 3, 8, 7)


def test_each_name_of_the_reference_has_one_subject(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    subjects = importlib.import_module("subjects")
    assert subjects.SUBJECTS.keys() <= set(REFERENCE)
    for module in REFERENCE:
        names = importlib.import_module(module).__all__
        found = subjects.subjects_of(module, names)
        assert sorted(name for chosen in found.values() for name in chosen) == sorted(names)
        assert subjects.SUBJECTS.get(module, {}).keys() <= found.keys(), "a subject without names"


PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("howto/*.md"), *DOCS.glob("course/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_on_a_page_is_at_most_85_columns_wide(page):
    blocks = re.findall(r"^```(\S*)[^\n]*\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    long = [line for _, code in blocks for line in code.splitlines() if len(line) > 85]
    assert not long

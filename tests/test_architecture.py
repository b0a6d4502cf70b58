"""Rules for the source tree: imports, docstrings, and the consistency of project files."""

import ast
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import xpconv
from xpconv import layers

ROOT = Path(__file__).parents[1]
PACKAGE = Path(xpconv.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
LIBRARIES = {"numpy", "cupy", "cupyx", "torch", "array_api_strict", "scipy"}
NEED_TYPER = {"xpconv.cli._app", "xpconv.cli._options", "xpconv.cli._train"}
HEAVY = {"cupy", "torch", "matplotlib", "sklearn", "pooch", "PIL", "typer", "rich", "onnx", "mpi4py"}


def imported(path):
    """Return the top-level packages that a module imports, also inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [
        node.args[0].value
        for node in nodes
        if isinstance(node, ast.Call)
        and "import_module" in ast.unparse(node.func)
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]
    return {name.partition(".")[0] for name in names}


NEUTRAL = [
    path
    for path in MODULES
    if (path.parent.name in ("layers", "nn") and path.name != "reference.py")
    or path == PACKAGE / "training" / "optim.py"
]


@pytest.mark.parametrize("path", NEUTRAL, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_layers_nets_and_update_rules_import_no_array_library(path):
    assert not imported(path) & LIBRARIES


def test_layers_use_the_array_namespace_of_their_inputs():
    assert len(NEUTRAL) >= 9
    assert "array_api_compat" in imported(PACKAGE / "layers" / "pool.py")


def test_importing_the_package_imports_no_heavy_library():
    """Without CuPy, PyTorch or Matplotlib, every module but the command line can be imported."""
    names = [
        name
        for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "xpconv.")
        if name not in NEED_TYPER and not name.endswith("__main__") and not name.startswith("xpconv.ops.cupy._")
    ]  # xpconv.ops.cupy._* are loaded only for CuPy arrays
    code = (
        f"import importlib, sys\nfor name in {['xpconv', *names]!r}: importlib.import_module(name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} | {'xpconv.ops.cupy._launch'} "
        "& set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert "xpconv" in loaded
    assert not loaded & (HEAVY | {"xpconv.ops.cupy._launch"})


@pytest.mark.parametrize("name", layers.__all__)
def test_every_public_layer_documents_its_parameters_with_an_example(name):
    thing = getattr(layers, name)
    text = inspect.getdoc(thing) or ""
    assert text.split("\n")[0].endswith((".", "``", "`")), "the docstring must start with a one-line summary"
    if inspect.isclass(thing):
        return
    assert "\nParameters\n----------\n" in text
    assert "\nExamples\n--------\n>>> " in text


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if path.name not in ("__init__.py", "__main__.py")],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_every_module_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_no_file_names_a_home_directory():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so the files of the project are unknown")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    home = re.compile(rb"(?<![\w.])/(?:root|home|Users)/\w")
    found = [
        name
        for name in files.split("\0")
        if name and (ROOT / name).is_file() and home.search((ROOT / name).read_bytes())
    ]
    assert not found


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_no_test_depends_on_speed():
    """Only conftest.py sets Hypothesis's deadline: it turns it off for all tests."""
    files = [ROOT / "conftest.py", *(ROOT / "tests").rglob("*.py")]
    named = [path.name for path in files if re.search(r"\bdeadline\s*=", path.read_text())]
    assert named == ["conftest.py"]


def test_hosted_and_local_checks_run_the_same_sessions():
    """``nox`` without arguments runs the same sessions; smoke is a part of tests."""
    sessions = re.search(r"nox.options.sessions = \[(.*)\]", (ROOT / "noxfile.py").read_text())[1]
    local = re.findall(r" -s ([\w ]+)", (ROOT / ".ci" / "run").read_text())
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    hosted = re.findall(r"nox -s (\w+)", workflow) + re.search(r"session: \[(.*)\]", workflow)[1].split(", ")
    assert set(re.findall(r"\w+", sessions)) == set(" ".join(local).split()) - {"smoke"} == set(hosted)


def test_files_named_in_the_noxfile_and_documentation_exist():
    texts = [ROOT / "noxfile.py", ROOT / "CONTRIBUTING.md", ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        name
        for text in texts
        for name in re.findall(r"(?<![\w/])(?:tests|xpconv)/[\w/]+\.\w+", text.read_text("utf-8"))
    }
    assert not {name for name in named if not (ROOT / name).is_file()}


def test_tests_named_in_the_noxfile_exist():
    named = re.findall(r'"(tests/\w+\.py)::(\w+)"', (ROOT / "noxfile.py").read_text())
    assert named
    assert not [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text("utf-8")]


def test_citation_has_the_version_of_the_package():
    assert f"\nversion: {xpconv.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_errors_name_extras_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    texts = [path.read_text("utf-8") for path in MODULES]
    named = {name for text in texts for name in re.findall(r'(?:xpconv\[|extra(?:: str)? ?= ?")(\w+)', text)}
    assert named == {"train", "onnx", "mpi"}
    assert named <= extras.keys()

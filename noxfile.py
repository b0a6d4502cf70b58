"""The project's checks: ``nox`` runs them all, ``nox -s tests`` the tests alone."""

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["tests", "kernels", "lint", "types", "torch", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")
TEST = nox.project.dependency_groups(PROJECT, "test")
LINT = nox.project.dependency_groups(PROJECT, "lint")
DOCS = nox.project.dependency_groups(PROJECT, "docs")
PARALLEL = ("-n", "logical", "--dist", "loadfile")  # one process a core, each with whole files


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite with its coverage; further arguments go to pytest (``-- -m slow`` runs the slow tests)."""
    session.install(".[train,onnx]", *TEST)
    session.run("pytest", *PARALLEL, "--cov", "--cov-report=term", "-m", "not slow and not torch", *session.posargs)


@nox.session
def kill(session: nox.Session) -> None:
    """Kill a hundred training runs at random moments and resume them."""
    session.install(".[train]", *TEST)
    session.run("pytest", "-m", "slow", "tests/test_kill.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Call layers ten thousand times at random, disturb trainings, and read hostile files: other ones each time."""
    session.install(".[train]", *TEST)
    fuzzed = ("tests/test_fuzz_layers.py", "tests/test_fuzz_files.py", "tests/test_state_machine.py")
    session.run("pytest", "-m", "slow", *fuzzed, *session.posargs)


@nox.session
def torch(session: nox.Session) -> None:
    """Compare with PyTorch: its autograd is an oracle, and it is one more array library to run on."""
    session.install("torch==2.13.0", ".[train,onnx]", *TEST)
    session.run("pytest", *PARALLEL, "-m", "torch", *session.posargs, env={"XPCONV_REQUIRE": "torch"})


@nox.session
def kernels(session: nox.Session) -> None:
    """Run the CUDA kernels on the CPU, compiled by g++, and watch each access to memory: no GPU is needed."""
    session.install(".", *TEST)
    session.run("pytest", "-n", "logical", "tests/emulated", *session.posargs, env={"PYTHONPATH": "tests/emulated"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, and that each floor of the package imports from floors below it."""
    session.install("-e", ".", *LINT)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.install(".[train,onnx]", *LINT)
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build/html, which runs every code cell in it; a warning is an error."""
    session.install(".[train,onnx]", *DOCS)
    options = ("-W", "--keep-going", "-E", "-q", "-j", "auto", *session.posargs)
    session.run("sphinx-build", *options, "docs", "docs/_build/html")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure speed against PyTorch and the loop versions; further arguments go to the command."""
    session.install("torch==2.13.0", ".[train]")
    session.run("python", "-m", "benchmarks", *session.posargs)

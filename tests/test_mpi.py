"""Workers that are processes of MPI: the same files for any number of them, and faults of real processes."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import find_backend
from xpconv.errors import BackendUnavailableError
from xpconv.parallel import Communicator, Nccl
from xpconv.parallel._nccl import nccl_available

ROOT = Path(__file__).parents[1]
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or find_spec("mpi4py") is None or not Path("/proc").exists(),
    reason="needs mpi4py and its mpiexec on Linux: pip install mpi4py mpich",
)
NETS = {
    "convnet": ["--model", "convnet", "--layers", "8,pool,16", "--augment", "crop-flip"],
    "ghost": ["--model", "convnet", "--layers", "8,pool,16", "--norm-sync", "ghost", "--sampling", "epoch"],
}
SHORT = [
    "--num-train",
    "96",
    "--batch-size",
    "16",
    "--epochs",
    "1",
    "--microbatches",
    "4",
    "--print-every",
    "1",
    "--augment",
    "none",
]


def start(workers, *words, timeout=30):
    """Start a Python program on a number of workers; 0 starts it without a launcher."""
    launcher = [MPIEXEC, "-n", str(workers)] if workers else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XP_", "XPCONV_"))}
    return subprocess.Popen(
        [*launcher, sys.executable, *map(str, words)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**environment, "XPCONV_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "XPCONV_WORKER_TIMEOUT": str(timeout)},
    )


def run(workers, *words, code=0):
    process = start(workers, *words)
    output, _ = process.communicate(timeout=120)
    assert (process.returncode == 0) is (code == 0), output
    return output


def read_until(process, text):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            break
    assert text in lines[-1], "".join(lines)


def ranks_of(process):
    """Return the process of each rank."""
    found, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    for pid in parents:
        ancestor = pid
        while ancestor in parents and ancestor != process.pid:
            ancestor = parents[ancestor]
        if ancestor == process.pid:
            try:
                rank = re.search(rb"(?:PMI_RANK|PMIX_RANK)=(\d+)", Path(f"/proc/{pid}/environ").read_bytes())
                if rank and rank[1] and b"python" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                    found[int(rank[1])] = pid
            except OSError:  # the process has ended in the meantime
                continue
    return found


def assert_ended(pids):
    """Check that no process is left, a few seconds after the launcher has ended."""
    latest = time.monotonic() + 5
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < latest, left
        time.sleep(0.05)


def train(folder, *words):
    return ["-m", "xpconv", "train", *SHORT, *words, "--out", folder]


@needs_mpi
@pytest.mark.parametrize("name", NETS)
def test_any_number_of_workers_writes_the_same_files(name, tmp_path):
    numbers = (0, 2, 4) if name == "convnet" else (0, 4)
    for workers in numbers:
        output = run(workers, *train(tmp_path / f"{workers}", *NETS[name]))
        assert output.count("(Iteration 1 / 6)") == 1
    for file in ("model.safetensors", "metrics.csv"):
        assert len({(tmp_path / f"{workers}" / file).read_bytes() for workers in numbers}) == 1


@needs_mpi
@pytest.mark.gpu
def test_two_workers_on_one_gpu_write_the_files_of_one(tmp_path):
    for workers in (0, 2):
        run(workers, *train(tmp_path / f"{workers}", *NETS["convnet"], "--backend", "cupy"))
    for file in ("model.safetensors", "metrics.csv"):
        assert (tmp_path / "2" / file).read_bytes() == (tmp_path / "0" / file).read_bytes()


@pytest.mark.gpu
def test_nccl_moves_arrays_on_the_device():
    if not nccl_available():
        pytest.skip("CuPy has no NCCL here")
    array = find_backend("cupy").asarray(np.arange(6.0).reshape(2, 3))
    (received,) = Nccl(Communicator()).exchange([array])
    assert received.shape == (2, 3)
    np.testing.assert_array_equal(received.get(), array.get())


@needs_mpi
def test_a_run_without_a_number_of_micro_batches_has_one_for_each_worker(tmp_path):
    output = run(
        2, "-m", "xpconv", "train", "--num-train", "40", "--epochs", "1", "--batch-size", "8", "--out", tmp_path
    )
    assert (
        "2 workers, one micro-batch each: to resume this run on more workers, start it with more micro-batches"
        in output
    )
    output = run(4, "-m", "xpconv", "train", "--resume", tmp_path)
    assert "is finished: nothing is left to train" in output


@needs_mpi
@pytest.mark.parametrize("after", [0, 2])
def test_a_signal_to_one_worker_stops_all_and_the_run_goes_on_with_another_number(after, tmp_path):
    run(0, *train(tmp_path / "whole", "--epochs", "3"))
    process = start(4, *train(tmp_path / "run", "--epochs", "3"))
    read_until(process, "(Iteration 4 / ")
    pids = ranks_of(process)
    os.kill(pids[3], signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert output.count("interrupted after iteration") == 1
    assert "to resume: xpconv train --resume" in output
    assert_ended(pids.values())
    run(after, "-m", "xpconv", "train", "--resume", tmp_path / "run")
    for file in ("model.safetensors", "metrics.csv"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@needs_mpi
def test_ctrl_c_on_the_launcher_stops_all_workers_and_saves(tmp_path):
    process = start(2, *train(tmp_path / "run", "--epochs", "50"))
    read_until(process, "(Iteration 4 / ")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "to resume: xpconv train --resume" in output


@needs_mpi
@pytest.mark.parametrize(("fault", "text"), [("raise", "a broken disk"), ("memory", "no memory left")])
def test_an_error_on_one_worker_ends_all(fault, text, tmp_path):
    process = start(2, "-m", "tests.mpi_training", tmp_path, fault)
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert f"WorkerError: rank 1 failed at iteration 5: {text}" in output
    assert not (tmp_path / "results.npz").exists()


@needs_mpi
def test_a_worker_that_is_stopped_ends_all_and_is_named(tmp_path):
    process = start(2, "-m", "tests.mpi_training", tmp_path, timeout=2)
    read_until(process, "iteration 3")
    pids = ranks_of(process)
    os.kill(pids[1], signal.SIGSTOP)
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert re.search(r"WorkerError: rank 1 sent nothing for 2 s at iteration \d+: it was stopped or killed", output)
    assert_ended(pids.values())


def kill_and_resume(folder, kills, seed):
    """Kill a random worker at random moments, and resume with a random number of workers until the end."""
    moments = random.Random(seed)
    whole = folder / "whole"
    whole.mkdir()
    run(2, "-m", "tests.mpi_training", whole)
    finished = 0
    while kills > 0:
        run_folder = folder / f"run{finished}"
        run_folder.mkdir()
        while not (run_folder / "results.npz").exists():
            workers = moments.choice([1, 2, 4])
            process = start(workers, "-m", "tests.mpi_training", run_folder)
            if kills > 0:
                time.sleep(moments.uniform(0.3, 3))
                pids = ranks_of(process)
                if pids:
                    os.kill(moments.choice([*pids.values()]), signal.SIGKILL)
                    kills -= 1
            output, _ = process.communicate(timeout=60)
            assert process.returncode != 0 or (run_folder / "results.npz").exists(), output
        finished += 1
        with np.load(run_folder / "results.npz") as actual, np.load(whole / "results.npz") as expected:
            assert {*actual} == {*expected}
            for name in expected:
                np.testing.assert_array_equal(actual[name], expected[name], strict=True)


@needs_mpi
def test_runs_of_killed_workers_end_with_the_same_bits(tmp_path):
    kill_and_resume(tmp_path, 20, seed=0)


@needs_mpi
@pytest.mark.slow
def test_runs_of_a_hundred_killed_workers_end_with_the_same_bits(tmp_path):
    kill_and_resume(tmp_path, 100, seed=1)


def test_workers_that_do_not_know_of_each_other_are_refused(tmp_path):
    """The launcher of another MPI would start the same training several times."""
    done = subprocess.run(
        [sys.executable, "-m", "xpconv", "train", "--out", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMPI_COMM_WORLD_SIZE": "4"},
        check=False,
    )
    assert done.returncode == 1
    assert re.search(
        r"the launcher started 4 workers \(OMPI_COMM_WORLD_SIZE\), but|pip install \"xpconv\[mpi\]\"", done.stderr
    )


def test_nccl_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("xpconv.parallel._nccl.nccl_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="CuPy has no NCCL here: pip install nvidia-nccl"):
        Nccl(Communicator())

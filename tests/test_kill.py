"""A run that is killed at any moment and resumed leaves the same files as one that never stopped.

Real processes get a real SIGKILL at random moments over the whole duration of a run: while it loads, computes, and
writes checkpoints and results. ``nox -s kill`` kills a hundred times.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from xpconv.cli._run_folder import FILES
from xpconv.errors import FolderInUseError
from xpconv.io._lock import lock_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes to kill are forked")
ROOT = Path(__file__).parents[1]
ITERATIONS = 40
RUN = (
    "--model",
    "fc",
    "--num-train",
    "100",
    "--augment",
    "crop-flip",
    "--batch-size",
    "10",
    "--epochs",
    "4",
    "--print-every",
    "1",
    "--checkpoint-every",
    "3",
)
RESUME = ("--print-every", "1", "--resume")


@pytest.fixture(scope="module")
def server():
    """Start runs: ``server(words, log, when)`` kills one after `when` seconds or at that text, and returns its code."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XP_", "XPCONV_"))}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kill_server"],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**environment, "XPCONV_NUM_THREADS": "2"},
    ) as process:
        assert process.stdout.readline() == "ready\n"

        def run(words, log, when=None, number=signal.SIGKILL):
            order = {"words": list(map(str, words)), "log": str(log), "when": when, "signal": number}
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """Return the folder and the duration of an undisturbed run, for each dtype."""
    runs = {}
    for dtype in ("float32", "float64"):
        folder = tmp_path_factory.mktemp(dtype) / "whole"
        start = time.perf_counter()
        assert server([*RUN, "--dtype", dtype, "--out", folder], folder.with_suffix(".log")) == 0
        runs[dtype] = SimpleNamespace(dtype=dtype, folder=folder, seconds=time.perf_counter() - start)
    return runs


def iterations_of(log):
    return [int(number) for number in re.findall(r"\(Iteration (\d+) / 40\)", log.read_text())]


def kill_and_resume(server, whole, folder, kills, seed):
    """Kill and resume runs, and compare each finished one with the undisturbed run."""
    moments, finished = random.Random(seed), 0
    while kills > 0:
        run = folder / f"run{finished}"
        while True:  # until this run is finished
            begun = (run / "config.json").exists()
            words = [*RESUME, run] if begun else [*RUN, "--dtype", whole.dtype, "--out", run]
            checkpoints = sorted((run / "checkpoints").glob("iteration-*"))
            when = moments.uniform(0, 1.1 * whole.seconds) if kills > 0 else None
            log = folder / "log"
            code = server(words, log, when)
            resumed = re.search(r"resumed at iteration (\d+)\n", log.read_text())
            if resumed:
                start = int(resumed[1])
                assert start == int(checkpoints[-1].stem.partition("-")[2])
            else:
                start = 0
                assert not checkpoints or not iterations_of(log), log.read_text()
            ran = iterations_of(log)
            assert ran == list(range(start + 1, start + 1 + len(ran)))
            if code == 0:
                assert len(ran) == ITERATIONS - start or f"{run} is finished: " in log.read_text()
                break
            assert code == -signal.SIGKILL, log.read_text()
            kills -= 1
        finished += 1
        assert sorted(path.name for path in run.iterdir()) == sorted([*FILES, "checkpoints"])
        assert len(list((run / "checkpoints").iterdir())) == 2
        for name in ("model.safetensors", "metrics.csv", "config.json"):
            assert (run / name).read_bytes() == (whole.folder / name).read_bytes(), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(server, whole, tmp_path, dtype):
    kill_and_resume(server, whole[dtype], tmp_path, kills=5, seed=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_hundred_kills_at_random_moments_change_no_bit(server, whole, tmp_path, dtype):
    kill_and_resume(server, whole[dtype], tmp_path, kills=50, seed=f"hundred {dtype}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_save_a_checkpoint_and_exit_by_convention(server, whole, tmp_path, number, code):
    run, log = tmp_path / "run", tmp_path / "log"
    words = [*RUN[:-2], "--dtype", "float32", "--out", run]  # no periodic checkpoints
    assert server(words, log, "(Iteration 5 /", number) == code
    assert "interrupted after iteration 5;" in log.read_text()
    assert iterations_of(log)[-1] == 5
    assert "test accuracy: " in log.read_text()
    assert sorted(path.name for path in run.iterdir()) == sorted([*FILES, "checkpoints"])
    assert [path.stem for path in (run / "checkpoints").iterdir()] == ["iteration-000000005"]
    assert server([*RESUME, run], log) == 0
    assert "resumed at iteration 5\n" in log.read_text()
    assert iterations_of(log) == list(range(6, ITERATIONS + 1))
    for name in ("model.safetensors", "metrics.csv"):
        assert (run / name).read_bytes() == (whole["float32"].folder / name).read_bytes()


def test_a_folder_in_use_is_refused_but_not_that_of_a_killed_run(server, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    assert server([*RUN, "--out", run], log, "(Iteration 5 /") == -signal.SIGKILL
    with lock_folder(run):
        for words in (["--resume", run], ["--out", run]):
            assert server(words, log) == 1
            assert f"{run} is in use by another run: wait for that run to end" in log.read_text()
    assert server(["--out", run], log) == 1
    assert "which already holds metrics.csv, config.json, checkpoints: choose another folder" in log.read_text()
    assert server(["--resume", run], log) == 0


def test_a_damaged_checkpoint_is_skipped_with_a_note(server, whole, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    assert server([*RUN, "--dtype", "float32", "--out", run], log) == 0
    (run / "model.safetensors").unlink()  # as if it had been killed before it wrote its results
    older, newest = sorted((run / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    assert server([*RESUME, run], log) == 0
    assert f"xpconv: skipping a checkpoint: {newest} is damaged" in log.read_text()
    assert iterations_of(log) == [40]
    assert [path.name for path in (older, newest)] == [f"iteration-0000000{n}.safetensors" for n in (39, 40)]
    for name in ("model.safetensors", "metrics.csv"):
        assert (run / name).read_bytes() == (whole["float32"].folder / name).read_bytes()


def test_without_a_checkpoint_a_run_starts_over(server, whole, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    run.mkdir()
    (run / "config.json").write_bytes((whole["float32"].folder / "config.json").read_bytes())
    (run / f".{'0' * 16}.tmp").write_text("a temporary file of a killed run")
    assert server([*RESUME, run], log) == 0
    assert f"no checkpoint in {run / 'checkpoints'}: starting over\n" in log.read_text()
    assert iterations_of(log) == list(range(1, 41))
    assert (run / "model.safetensors").read_bytes() == (whole["float32"].folder / "model.safetensors").read_bytes()
    assert not list(run.glob(".*"))


def test_the_lock_file_is_removed_with_the_lock(tmp_path):
    with lock_folder(tmp_path):
        assert os.listdir(tmp_path) == [".lock"]
        with (
            pytest.raises(FolderInUseError, match="is in use by another run: wait for that run to end"),
            lock_folder(tmp_path),
        ):
            pytest.fail("held twice")
    assert not os.listdir(tmp_path)
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / ".lock").open("ab") as left:  # left by a killed process, so that no process holds the lock
        with lock_folder(tmp_path):
            pass
        fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)

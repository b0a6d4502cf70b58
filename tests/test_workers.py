"""Worker threads: their number, which error is raised, and that they change nothing else in the user's process."""

import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.helpers import draw
from xpconv import layers
from xpconv.errors import ArgumentError
from xpconv.ops.numpy import _workers as workers
from xpconv.ops.numpy._workers import num_threads, run_parallel


def on_a_worker():
    return threading.current_thread().name.startswith("xpconv")


# ---- tasks and their errors


def test_all_tasks_have_ended_before_the_error_of_one_is_raised(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    begun, ended = threading.Barrier(3, timeout=30), []

    def task(k):
        begun.wait()
        if k == 1:
            raise ZeroDivisionError
        time.sleep(0.1)
        ended.append(k)

    with pytest.raises(ZeroDivisionError):
        run_parallel(task, 3)
    assert sorted(ended) == [0, 2]


def test_the_error_of_the_calling_thread_comes_before_that_of_a_worker(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    begun = threading.Barrier(2, timeout=30)

    def task(k):
        begun.wait()
        raise ValueError if on_a_worker() else KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_parallel(task, 2)


def test_ctrl_c_while_workers_are_waited_for_is_raised_when_they_have_ended(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    begun, ended = threading.Barrier(2, timeout=30), []

    def task(k):
        begun.wait()
        if on_a_worker():
            time.sleep(0.2)
            ended.append(k)

    class InterruptedLock:
        interrupts = 0

        def __init__(self):
            self.lock = threading.Lock()
            self.release = self.lock.release

        def acquire(self, blocking=True):
            if blocking and self.lock.locked() and not InterruptedLock.interrupts:
                InterruptedLock.interrupts += 1
                raise KeyboardInterrupt
            return self.lock.acquire(blocking)

    monkeypatch.setattr(workers, "Lock", InterruptedLock)
    with pytest.raises(KeyboardInterrupt):
        run_parallel(task, 2)
    assert len(ended) == 1


def test_what_a_failed_task_used_is_freed_without_the_garbage_collector(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    begun, used = threading.Barrier(2, timeout=30), {1, 2}  # a type that weakref accepts
    freed = weakref.ref(used)

    def task(k, used=used):
        begun.wait()
        if on_a_worker():
            raise ZeroDivisionError

    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError) as raised:
            run_parallel(task, 2)
        del task, used, raised
        run_parallel(lambda k: begun.wait(), 2)  # The worker has let go of the job before.
        assert freed() is None
    finally:
        gc.enable()


def test_workers_handle_floating_point_errors_as_the_caller_does(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    begun, seen = threading.Barrier(2, timeout=30), []
    with np.errstate(over="raise"):
        run_parallel(lambda k: (begun.wait(), seen.append(np.geterr()["over"])), 2)
    assert seen == ["raise"] * 2


def test_the_caller_does_all_the_work_if_no_thread_can_be_started(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(workers, "_workers", [])
    done = []
    run_parallel(done.append, 4)
    assert sorted(done) == [0, 1, 2, 3]


def test_the_caller_waits_for_no_worker_that_has_not_begun(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    busy, done = threading.Event(), threading.Event()

    def occupy(k):
        if on_a_worker():
            busy.set()
            done.wait(30)
        else:
            busy.wait(30)

    other = threading.Thread(target=run_parallel, args=(occupy, 2))
    other.start()
    busy.wait(30)
    names = []
    run_parallel(lambda k: names.append(threading.current_thread().name), 4)
    done.set()
    other.join()
    assert names == [threading.current_thread().name] * 4


def test_a_task_may_run_tasks_of_its_own(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    done = []
    run_parallel(lambda k: run_parallel(lambda j: done.append((k, j)), 3), 3)
    assert sorted(done) == [(k, j) for k in range(3) for j in range(3)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_child_has_workers_of_its_own():
    program = """
import os, sys, threading
from xpconv.ops.numpy._workers import run_parallel

def meet():
    both = threading.Barrier(2, timeout=30)
    run_parallel(lambda k: both.wait(), 2)

meet()
child = os.fork()
meet()
if child:
    sys.exit(os.waitpid(child, 0)[1] != 0)
os._exit(0)
"""
    environment = {**os.environ, "XPCONV_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


def test_layers_work_while_the_interpreter_shuts_down():
    program = """
import atexit, numpy as np
from xpconv.layers import conv_forward
x, w = np.ones((64, 3, 16, 16)), np.ones((4, 3, 3, 3))
conv_forward(x, w, None)
atexit.register(lambda: print(conv_forward(x, w, None)[0].sum()))
"""
    environment = {**os.environ, "XPCONV_NUM_THREADS": "2"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True, text=True)
    assert float(done.stdout) == 64 * 4 * 14 * 14 * 27


# ---- how many threads


def threads_used(count=8):
    """Return the number of threads that run tasks of one call; the tasks wait briefly for one another."""
    names = set()
    run_parallel(lambda k: (names.add(threading.current_thread().name), time.sleep(0.02)), count)
    return len(names)


def test_the_number_of_threads_is_that_of_the_variable_else_of_the_cpus(monkeypatch):
    assert num_threads() >= 1
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    assert num_threads() == 3


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_bad_number_of_threads_is_refused_by_name_when_work_is_shared(text, monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", text)
    with pytest.raises(ArgumentError, match=f"XPCONV_NUM_THREADS is '{text}'; expected a number of threads, 1 or more"):
        layers.conv_forward(draw(64, 16, 32, 32), draw(16, 16, 3, 3), None)


def test_a_limit_around_a_call_limits_its_threads(monkeypatch):
    monkeypatch.delenv("XPCONV_NUM_THREADS", raising=False)
    monkeypatch.setattr(workers, "_usable_cpus", lambda: 8)
    with threadpool_limits(2):
        assert threads_used() == 2
        with threadpool_limits(1):
            assert threads_used() == 1
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    with threadpool_limits(1):
        assert threads_used() == 3  # the variable is the user's word on xpconv itself


def count_in_a_new_process(**variables):
    program = "from xpconv.ops.numpy._workers import num_threads; print(num_threads())"
    unset = ("XPCONV_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | variables
    command = [sys.executable, "-c", program]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])  # joblib sets both in its workers
def test_the_variables_that_limit_blas_limit_the_workers_too(variable):
    assert count_in_a_new_process(**{variable: "1"}) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")
def test_a_process_that_may_use_one_cpu_has_one_thread(monkeypatch):
    monkeypatch.delenv("XPCONV_NUM_THREADS", raising=False)
    cpus = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cpus)})
        assert num_threads() == 1
    finally:
        os.sched_setaffinity(0, cpus)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"sys/fs/cgroup/cpu.max": "1000 100000"}, 1),
        ({"proc/self/cgroup": "0::/jobs/a", "sys/fs/cgroup/jobs/a/cpu.max": "300000 100000"}, 3),
        (
            {
                "proc/self/cgroup": "0::/jobs/a",
                "sys/fs/cgroup/jobs/cpu.max": "200000 100000",
                "sys/fs/cgroup/jobs/a/cpu.max": "800000 100000",
            },
            2,
        ),
        ({"proc/self/cgroup": "1:cpu:/x", "sys/fs/cgroup/cpu.max": "nonsense"}, None),
    ],
)
def test_a_containers_quota_counts_as_cpus(files, cpus, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert workers._cgroup_cpus(tmp_path) == cpus


def test_a_containers_quota_limits_the_threads(monkeypatch):
    monkeypatch.delenv("XPCONV_NUM_THREADS", raising=False)
    monkeypatch.setattr(workers, "_usable_cpus", lambda: 8)
    monkeypatch.setattr(workers, "blas_threads", lambda: 8)
    monkeypatch.setattr(workers, "_cgroup_cpus", lambda: 3)
    assert num_threads() == 3


# ---- settings of the process


def train_a_little():
    """Use convolutions (both algorithms), norms, pools, products and an update, each large enough for workers."""
    x, w = draw(64, 32, 16, 16).astype("float32"), draw(32, 32, 3, 3).astype("float32")
    out, conv = layers.conv_forward(x, w, None, padding=1)
    out, norm = layers.batchnorm_forward(out, np.ones(32, "float32"), np.zeros(32, "float32"), train=True)
    out, pool = layers.max_pool_forward(out, kernel_size=2)
    dout = layers.max_pool_backward(out, pool)
    layers.conv_backward(layers.batchnorm_backward(dout, norm)[0], conv)
    layers.affine_forward(draw(512, 512), draw(512, 512), None)


def settings_of_the_process():
    settings = {"switch interval": sys.getswitchinterval(), "buffer": np.getbufsize()}
    if hasattr(os, "sched_getaffinity"):
        settings["CPUs"] = os.sched_getaffinity(0)
    return settings


def test_calls_change_no_setting_of_the_process_even_while_they_run(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    before, changed, ended = settings_of_the_process(), [], threading.Event()

    def watch():
        looks = 0
        while not ended.is_set():
            looks += 1
            if (settings := settings_of_the_process()) != before:
                changed.append(settings)
        return looks

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            for _ in range(3):
                train_a_little()
        finally:
            ended.set()
        assert watching.result() > 0
    assert changed == []
    assert settings_of_the_process() == before


def test_an_error_in_the_middle_of_a_call_changes_no_setting():
    x, gamma = draw(600, 64).astype("float32"), np.full(64, 3e38, np.float32)
    before = settings_of_the_process()
    with np.errstate(over="raise"):  # which restores the buffer size when it ends
        with pytest.raises(FloatingPointError):
            layers.batchnorm_forward(x, gamma, 0 * gamma, train=True)
        assert settings_of_the_process() == before


def test_tasks_see_the_callers_settings(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    both, seen = threading.Barrier(2, timeout=30), []
    run_parallel(lambda k: (both.wait(), seen.append(settings_of_the_process())), 2)
    assert seen == [settings_of_the_process()] * 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no process to CPUs")
def test_no_call_binds_a_thread_or_sets_how_memory_is_freed(monkeypatch):
    called = []
    for name in ("sched_setaffinity", "sched_setscheduler"):
        monkeypatch.setattr(os, name, lambda *arguments, name=name: called.append(name), raising=False)
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: called.append("setswitchinterval"))
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments: called.append("CDLL"))
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    monkeypatch.setattr(workers, "_workers", [])
    train_a_little()
    assert called == []


def test_freed_memory_goes_back_to_the_system():
    """Raised thresholds of malloc would keep 849 MB here instead of 24 MB."""
    program = """
import numpy as np, pathlib
from xpconv.layers import affine_forward

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

affine_forward(np.ones((64, 64)), np.ones((64, 64)), None)
arrays = [np.ones(1 << 21) for _ in range(20)]
full = resident()
del arrays
print(full - resident())
"""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("this system does not tell how much memory a process has")
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 0.9 * 20 * (8 << 21)

"""Worker threads, and the number of threads that BLAS has meanwhile."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.helpers import draw
from xpconv import layers
from xpconv.errors import ArgumentError
from xpconv.ops.numpy import _workers as threads
from xpconv.ops.numpy._workers import num_threads


def blas_threads():
    return [library.num_threads for library in threads._blas_libraries()]


@pytest.fixture
def two_blas_threads():
    """BLAS has one thread in these tests, which would hide that it is left so."""
    with threadpool_limits(2, user_api="blas"):
        assert set(blas_threads()) <= {2}
        yield


def with_blas_held(task):
    threads.run_products(lambda k: task(), 1, np.zeros(1))


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_is_held_to_one_thread_inside_and_gets_its_threads_back():
    before, seen = blas_threads(), []
    with_blas_held(lambda: (with_blas_held(lambda: seen.extend(blas_threads())), seen.extend(blas_threads())))
    assert set(seen) <= {1}
    assert blas_threads() == before

    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        with_blas_held(fail)
    assert blas_threads() == before


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_gets_its_threads_back_where_uses_overlap():
    before, inside, leave = blas_threads(), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: with_blas_held(lambda: (inside.set(), leave.wait(30))))
    with_blas_held(lambda: (thread.start(), inside.wait(30)))
    assert set(blas_threads()) <= {1}  # the other still holds it
    leave.set()
    thread.join()
    assert blas_threads() == before


@pytest.mark.usefixtures("two_blas_threads")
@pytest.mark.parametrize("call", [1, 2])
def test_blas_gets_its_threads_back_whenever_ctrl_c_comes(call, monkeypatch):
    before, real, calls = blas_threads(), threads._set_threads, []

    def interrupted(library, number):
        calls.append(number)
        if len(calls) == call:
            raise KeyboardInterrupt
        real(library, number)

    monkeypatch.setattr(threads, "_set_threads", interrupted)
    with pytest.raises(KeyboardInterrupt):
        with_blas_held(lambda: None)
    assert blas_threads() == before
    assert not threads._blas._users


@pytest.fixture
def slow_turns():
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.25)
    yield 0.25
    sys.setswitchinterval(before)


def test_threads_take_short_turns_until_the_last_call_ends(monkeypatch, slow_turns):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    seen, inside, leave = [], threading.Event(), threading.Event()

    def run(task):
        threads.run(lambda k: (task(), seen.append(sys.getswitchinterval())), 2, np.zeros(1))

    other = threading.Thread(target=run, args=[lambda: (inside.set(), leave.wait(30))])
    run(lambda: None)
    assert sys.getswitchinterval() == slow_turns
    other.start()
    inside.wait(30)
    with pytest.raises(KeyError):
        run({}.popitem)
    assert sys.getswitchinterval() == pytest.approx(threads._TURN)  # the other goes on
    leave.set()
    other.join()
    assert (sys.getswitchinterval(), seen) == (slow_turns, [pytest.approx(threads._TURN)] * 4)


@pytest.mark.parametrize("call", [1, 2])
def test_turns_are_as_before_whenever_ctrl_c_comes(call, monkeypatch, slow_turns):
    calls = []

    def interrupted(seconds):
        calls.append(seconds)
        if len(calls) == call:
            raise KeyboardInterrupt
        sys.setswitchinterval(seconds)

    monkeypatch.setattr(threads._turns, "_write", interrupted)
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    with pytest.raises(KeyboardInterrupt):
        threads.run(lambda k: None, 2, np.zeros(1))
    assert sys.getswitchinterval() == slow_turns


def test_one_thread_changes_nobodys_turns(monkeypatch, slow_turns):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "1")
    seen = []
    threads.run(lambda k: seen.append(sys.getswitchinterval()), 2, np.zeros(1))
    assert seen == [slow_turns] * 2


def test_all_helpers_have_ended_before_the_error_of_one_is_raised(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    begun, ended = threading.Barrier(3, timeout=30), []

    def task(k):
        begun.wait()
        if k == 1:
            raise ZeroDivisionError
        time.sleep(0.1)
        ended.append(k)

    with pytest.raises(ZeroDivisionError):
        threads.run(task, 3, np.zeros(1))
    assert sorted(ended) == [0, 2]


def test_the_callers_error_is_not_replaced_by_a_helpers(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    begun = threading.Barrier(2, timeout=30)

    def task(k):
        begun.wait()
        raise ValueError if threading.current_thread().name == "xpconv" else KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.run(task, 2, np.zeros(1))


def test_helpers_handle_floating_point_errors_as_the_caller_does(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    begun, seen = threading.Barrier(2, timeout=30), []
    with np.errstate(over="raise"):
        threads.run(lambda k: (begun.wait(), seen.append(np.geterr()["over"])), 2, np.zeros(1))
    assert seen == ["raise"] * 2


def test_number_of_threads_is_the_variable_else_the_cpus(monkeypatch):
    assert num_threads() >= 1
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    assert num_threads() == 3


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_bad_number_of_threads_is_refused_by_name(text, monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", text)
    with pytest.raises(ArgumentError, match=f"XPCONV_NUM_THREADS is '{text}'; expected a number of threads, 1 or more"):
        layers.conv_forward(draw(1, 1, 2, 2), draw(1, 1, 1, 1), None)


needs_two_cpus = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs a system that binds threads to CPUs, and two of them",
)


@needs_two_cpus
def test_this_thread_keeps_its_cpu_for_a_call_and_helpers_have_the_others(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    threads._crew.cache_clear()
    cpus, all_here, seen = os.sched_getaffinity(0), threading.Barrier(3, timeout=30), {}

    def task(k):
        all_here.wait()
        seen[threading.current_thread()] = os.sched_getaffinity(0)

    threads.run(task, 3, np.zeros(1))
    mine = seen.pop(threading.current_thread())
    assert (len(mine), list(seen.values())) == (1, [cpus - mine] * 2)
    assert os.sched_getaffinity(0) == cpus


@needs_two_cpus
def test_helpers_of_a_thread_that_has_one_cpu_keep_theirs(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    cpus, both = os.sched_getaffinity(0), threading.Barrier(2, timeout=30)
    threads.run(lambda k: both.wait(), 2, np.zeros(1))
    helpers = [os.sched_getaffinity(thread.native_id) for thread in threads._crew()._threads]
    try:
        os.sched_setaffinity(0, {min(cpus)})
        threads.run(lambda k: both.wait(), 2, np.zeros(1))
        assert os.sched_getaffinity(0) == {min(cpus)}
    finally:
        os.sched_setaffinity(0, cpus)
    assert [os.sched_getaffinity(thread.native_id) for thread in threads._crew()._threads] == helpers


@pytest.mark.usefixtures("two_blas_threads")
@needs_two_cpus
def test_ctrl_c_before_the_helpers_begin_leaves_everything_as_it_was(monkeypatch):
    x, w = draw(64, 16, 8, 8), draw(16, 16, 3, 3)
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    before, buffers, cpus, take = blas_threads(), np.getbufsize(), os.sched_getaffinity(0), threads._Crew.take
    expected = layers.conv_forward(x, w, None)[0]

    def interrupted(self, jobs, others):
        take(self, jobs, others)
        raise KeyboardInterrupt

    monkeypatch.setattr(threads._Crew, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        layers.conv_forward(x, w, None)
    monkeypatch.setattr(threads._Crew, "take", take)
    assert (blas_threads(), np.getbufsize(), os.sched_getaffinity(0)) == (before, buffers, cpus)
    assert layers.conv_forward(x, w, None)[0].tobytes() == expected.tobytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_child_has_helpers_of_its_own():
    program = """
import os, sys, threading, numpy as np
from xpconv.ops.numpy._workers import run

def meet():
    both = threading.Barrier(2, timeout=30)
    run(lambda k: both.wait(), 2, np.zeros(1))

meet()
child = os.fork()
meet()
if child:
    sys.exit(os.waitpid(child, 0)[1] != 0)
os._exit(0)
"""
    environment = {**os.environ, "XPCONV_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_child_forked_while_blas_is_held_has_all_its_threads():
    program = """
import os, sys, threading, numpy as np
from threadpoolctl import threadpool_info
from xpconv.ops.numpy._workers import run_products

def threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

before, inside, leave = threads(), threading.Event(), threading.Event()
holder = threading.Thread(target=run_products, args=(lambda k: (inside.set(), leave.wait(30)), 1, np.zeros(1)))
holder.start()
inside.wait(30)
child = os.fork()
if not child:
    run_products(lambda k: None, 1, np.zeros(1))
    os._exit(threads() != before)
leave.set()
holder.join()
sys.exit(os.waitpid(child, 0)[1] != 0)
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


def test_layers_work_where_threads_may_not_be_bound_to_cpus(monkeypatch):
    def refuse(thread, cpus):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    threads._crew.cache_clear()
    done = []
    threads.run(done.append, 4, np.zeros(1))
    assert sorted(done) == [0, 1, 2, 3]


def test_the_caller_does_all_the_work_where_no_thread_can_be_started(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    monkeypatch.setattr(threads.Thread, "start", refuse)
    threads._crew.cache_clear()
    done = []
    threads.run(done.append, 4, np.zeros(1))
    assert sorted(done) == [0, 1, 2, 3]
    assert threads._crew()._jobs.empty()  # nothing waits for a helper that is not there


def test_work_that_no_helper_had_time_for_is_called_off(monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    threads._crew.cache_clear()
    busy, done = threading.Event(), threading.Event()

    def occupy(k):
        if threading.current_thread().name == "xpconv":
            busy.set()
            done.wait(30)
        else:
            busy.wait(30)

    other = threading.Thread(target=lambda: threads.run(occupy, 2, np.zeros(1)))
    other.start()
    busy.wait(30)
    names = []
    threads.run(lambda k: names.append(threading.current_thread().name), 4, np.zeros(1))
    done.set()
    other.join()
    assert names == [threading.current_thread().name] * 4

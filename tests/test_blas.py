"""BLAS is limited to one thread during calls of xpconv; then the user's limit returns, in any order of events."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.helpers import draw
from xpconv import layers
from xpconv.ops.numpy import _blas
from xpconv.ops.numpy._blas import single_threaded_blas
from xpconv.ops.numpy._workers import run_products


def blas_threads():
    return [library.num_threads for library in _blas._libraries()]


@pytest.fixture(autouse=True)
def three_threads():
    """Give BLAS three threads, a number that nothing else here sets."""
    before = blas_threads()
    with threadpool_limits(3, user_api="blas"):
        if not set(blas_threads()) <= {3}:
            pytest.skip("this BLAS has a fixed number of threads")
    # Restore three threads, now without a controlling thread.
    for library in _blas._libraries():
        getattr(library, "_real_set_num_threads", library.set_num_threads)(3)
    yield
    assert blas_threads() == [3] * len(before)
    for library, number in zip(_blas._libraries(), before, strict=True):
        getattr(library, "_real_set_num_threads", library.set_num_threads)(number)


class Elsewhere:
    """Another thread, which enters a context on `enter` and leaves it on `leave`."""

    def __init__(self, context):
        self._context, self._enter, self._leave = context, threading.Event(), threading.Event()
        self._entered = threading.Event()
        self.seen = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        self._enter.wait(30)
        with self._context():
            self.seen = blas_threads()
            self._entered.set()
            self._leave.wait(30)

    def enter(self):
        self._enter.set()
        assert self._entered.wait(30)

    def leave(self):
        self._leave.set()
        self._thread.join(30)


@contextmanager
def in_a_call():
    """Limit BLAS as a call of xpconv does."""
    with single_threaded_blas():
        yield


def limited(number):
    return lambda: threadpool_limits(number, user_api="blas")


def test_blas_has_one_thread_during_a_call_and_its_previous_number_afterwards():
    with in_a_call():
        with in_a_call():
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}
    assert set(blas_threads()) == {3}


@pytest.mark.parametrize(("architecture", "small"), [("SkylakeX", True), ("Haswell", False), (None, False)])
def test_only_openblas_with_avx512_has_small_products(monkeypatch, architecture, small):
    library = SimpleNamespace() if architecture is None else SimpleNamespace(architecture=architecture)
    monkeypatch.setattr(_blas, "_libraries", lambda: [library])
    assert _blas.has_small_products.__wrapped__() is small


def test_an_error_restores_the_number_of_blas_threads():
    with pytest.raises(ZeroDivisionError):
        run_products(lambda k: 1 / 0, 3)
    assert set(blas_threads()) == {3}


@pytest.mark.parametrize("first_out", ["first in", "last in"])
def test_overlapping_calls_restore_the_number_of_blas_threads_when_the_last_one_ends(first_out):
    one, other = Elsewhere(in_a_call), Elsewhere(in_a_call)
    one.enter()
    other.enter()
    early, late = (one, other) if first_out == "first in" else (other, one)
    early.leave()
    assert set(blas_threads()) == {1}
    late.leave()
    assert set(blas_threads()) == {3}


@pytest.mark.parametrize("moment", [1, 2])
def test_ctrl_c_at_any_moment_restores_the_number_of_blas_threads(moment, monkeypatch):
    real, calls = _blas._SharedLimit._set, []

    def interrupted(self, numbers):
        calls.append(numbers)
        if len(calls) == moment:
            raise KeyboardInterrupt
        real(self, numbers)

    monkeypatch.setattr(_blas._SharedLimit, "_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_products(lambda k: None, 1)
    assert set(blas_threads()) == {3}
    assert not _blas._shared_limit.calls


# ---- limits that the user sets


def test_a_call_leaves_other_threads_free_to_set_limits():
    layers.affine_forward(np.ones((2, 3)), np.ones((3, 4)), None)
    other = Elsewhere(limited(1))
    other.enter()
    assert set(other.seen) == {1}
    other.leave()


def test_a_call_leaves_its_own_thread_free_to_set_limits():
    layers.affine_forward(np.ones((2, 3)), np.ones((3, 4)), None)
    with threadpool_limits(1, user_api="blas"):
        assert set(blas_threads()) == {1}
        layers.affine_forward(np.ones((2, 3)), np.ones((3, 4)), None)
        assert set(blas_threads()) == {1}
    other = Elsewhere(limited(2))
    other.enter()
    assert set(other.seen) == {2}
    other.leave()


@pytest.mark.parametrize("number", [1, 2])
def test_the_limit_of_another_live_thread_stays_in_force(number):
    other = Elsewhere(limited(number))
    other.enter()
    with in_a_call():
        assert set(blas_threads()) == {number}
    assert set(blas_threads()) == {number}
    other.leave()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("user_enters", ["first", "last"])
@pytest.mark.parametrize("user_leaves", ["first", "last"])
def test_after_a_limit_and_an_overlapping_call_blas_has_its_previous_number_of_threads(
    number, user_enters, user_leaves
):
    user, call = Elsewhere(limited(number)), Elsewhere(in_a_call)
    for event in (user.enter, call.enter) if user_enters == "first" else (call.enter, user.enter):
        event()
    for event in (user.leave, call.leave) if user_leaves == "first" else (call.leave, user.leave):
        event()
    assert set(blas_threads()) == {3}


@pytest.mark.parametrize("user_leaves", ["first", "last"])
def test_after_nested_limits_and_an_overlapping_call_blas_has_its_previous_number_of_threads(user_leaves):
    @contextmanager
    def nested():
        with threadpool_limits(2, user_api="blas"), threadpool_limits(1):
            yield

    user, call = Elsewhere(nested), Elsewhere(in_a_call)
    call.enter()
    user.enter()
    for event in (user.leave, call.leave) if user_leaves == "first" else (call.leave, user.leave):
        event()
    assert set(blas_threads()) == {3}
    later = Elsewhere(limited(2))
    later.enter()
    assert set(later.seen) == {2}
    later.leave()


def test_a_thread_that_was_refused_may_set_limits_after_it_left_its_block():
    entered, again, leave = threading.Event(), threading.Event(), threading.Event()
    seen = []

    def use_limits():
        with threadpool_limits(1, user_api="blas"):
            entered.set()
            again.wait(30)
        with threadpool_limits(2, user_api="blas"):
            seen.extend(blas_threads())
            leave.wait(30)

    user = threading.Thread(target=use_limits)
    with in_a_call():
        user.start()
        assert entered.wait(30)
    again.set()
    leave.set()
    user.join(30)
    assert set(seen) == {2}


@pytest.mark.parametrize("call_ends", ["inside", "last"])
def test_a_threads_limit_returns_after_its_own_calls_and_those_of_other_threads(call_ends):
    other = Elsewhere(in_a_call)
    with threadpool_limits(2, user_api="blas"):
        with in_a_call():
            assert set(blas_threads()) == {1}
            other.enter()
        assert set(blas_threads()) == {2}
        if call_ends == "inside":
            other.leave()
            assert set(blas_threads()) == {2}
    assert set(blas_threads()) == {3}
    other.leave()


@pytest.mark.parametrize("number", [1, 2])
def test_the_limit_of_another_thread_changes_results_by_rounding_at_most(number, monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "2")
    x, w = draw(64, 16, 12, 12), draw(24, 16, 3, 3)
    expected, cache = layers.conv_forward(x, w, None, padding=1)
    gradients = layers.conv_backward(expected, cache)
    other = Elsewhere(limited(number))
    other.enter()
    out, cache = layers.conv_forward(x, w, None, padding=1)
    found = layers.conv_backward(expected, cache)
    other.leave()
    for one, another in zip((out, *found[:2]), (expected, *gradients[:2]), strict=True):
        np.testing.assert_allclose(one, another, rtol=1e-10, atol=1e-10)
        if number == 1:
            assert one.tobytes() == another.tobytes()


# ---- fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.parametrize("limit", ["", "with threadpool_limits(1): pass"])
def test_a_child_forked_during_a_call_has_all_blas_threads(limit):
    program = f"""
import os, sys, threading
from threadpoolctl import threadpool_info, threadpool_limits
from xpconv.ops.numpy._workers import run_products

def threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

before, inside, leave = threads(), threading.Event(), threading.Event()
holder = threading.Thread(target=run_products, args=(lambda k: (inside.set(), leave.wait(30)), 1))
holder.start()
inside.wait(30)
{limit}
child = os.fork()
if not child:
    first = threads()
    run_products(lambda k: None, 1)
    with threadpool_limits(1):
        limited = threads()
    os._exit((first, limited, threads()) != (before, [1] * len(before), before))
leave.set()
holder.join()
sys.exit(os.waitpid(child, 0)[1] != 0 or threads() != before)
"""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)

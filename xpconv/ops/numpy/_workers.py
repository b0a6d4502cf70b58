"""The threads that share the work on NumPy arrays, and what the system is told of them.

A call keeps its threads busy for a millisecond or less, with the caches full of data: whatever it takes to start and
to end one counts.
"""

import ctypes
import itertools
import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from xpconv.backend import Array, library_of
from xpconv.errors import ArgumentError

__all__ = ["num_threads", "run", "run_products"]

_NUMPY_BUFFER = 1024  # elements: rows that are shorter than a buffer are copied to it, which takes as long as the work
_TURN = 1e-5  # seconds for which one thread keeps Python's lock while another waits: by default 5 ms, a whole call
_backwards = itertools.cycle((False, True))  # begin where the last call ended: the caches hold that part of its arrays
_Value = TypeVar("_Value")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def num_threads() -> int:
    """Return ``XPCONV_NUM_THREADS``, else the number of CPUs this process may use."""
    text = os.environ.get("XPCONV_NUM_THREADS")
    if text is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentError(f"XPCONV_NUM_THREADS is {text!r}; expected a number of threads, 1 or more")
    return int(text)


def run(task: Callable[[int], object], count: int, like: Array) -> None:
    """Call ``task(0)`` to ``task(count - 1)``: on all threads where `like` is a NumPy array, else in order.

    Tasks that leave work to BLAS need `run_products`.
    """
    if library_of(like) != "numpy":
        for k in range(count):
            task(k)
        return
    _keep_freed_memory()
    helpers = min(num_threads(), count) - 1
    if helpers > 0:
        _turns.during(lambda: _share_out(task, count, helpers))
    else:
        _share_out(task, count, 0)


def run_products(task: Callable[[int], object], count: int, like: Array) -> None:
    """Run tasks that call BLAS, each on one thread; BLAS gets its threads back when the last such call ends.

    BLAS's own threads would go on spinning for a while, which taxes whatever comes next, and they cut by their number,
    which changes the bits.
    """
    if library_of(like) != "numpy":
        run(task, count, like)
    else:
        _blas.during(lambda: run(task, count, like))


def _share_out(task: Callable[[int], object], count: int, helpers: int) -> None:
    """Work on the tasks with so many helpers: each thread takes the next one when it is free."""
    numbers = itertools.count()  # shared by the threads
    last = count - 1 if next(_backwards) else 0

    def work() -> None:
        while (k := next(numbers)) < count:
            task(abs(last - k))

    buffer, cpus, jobs = np.getbufsize(), _cpus() if helpers else set(), []
    try:
        np.setbufsize(_NUMPY_BUFFER)
        jobs = [_Job(work) for _ in range(helpers)]
        if helpers:
            _part_ways(cpus, jobs)
        work()
    finally:
        try:
            np.setbufsize(buffer)
            _keep_to(cpus)
        except BaseException:  # Ctrl-C, which may come here, too
            np.setbufsize(buffer)
            _keep_to(cpus)
            raise
        finally:
            numbers = itertools.count(count)  # after an error the others need not go on
            errors = [error for job in jobs if (error := job.end()) is not None]
    if errors:
        raise errors[0]


class _Job:
    """Work for a helper, unless whoever asked for it is done before one has the time."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._context = work, copy_context()  # which has np.errstate and the size of NumPy's buffers
        self._begun, self._ended = Lock(), SimpleQueue[BaseException | None]()

    def begin(self) -> None:
        """Do it, unless it was called off."""
        if not self._begun.acquire(blocking=False):
            return
        error = None
        try:
            self._context.run(self._work)
        except BaseException as raised:  # it belongs to the thread that waits for the end
            error = raised
        self._ended.put(error)

    def end(self) -> BaseException | None:
        """Call it off; if it has begun, wait for its end and return its error."""
        return None if self._begun.acquire(blocking=False) else self._ended.get()


class _Crew:
    """Helper threads, as many as were ever needed at once; they wait for jobs as long as the process lives."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._threads: list[Thread] = []
        self._cpus: set[int] = set()

    def take(self, jobs: list[_Job], cpus: set[int]) -> None:
        """Let helpers begin with the jobs, on these CPUs; no CPUs are those they may use now."""
        with suppress(RuntimeError):  # the system gives no more threads: the jobs are done without
            while len(self._threads) < len(jobs):
                helper = Thread(target=self._help, name="xpconv", daemon=True)
                helper.start()
                self._threads.append(helper)
                self._cpus = set()
        if cpus and cpus != self._cpus:
            self._cpus = cpus
            for helper in self._threads:
                _keep_to(cpus, helper)
        for job in jobs[: len(self._threads)]:
            self._jobs.put(job)

    def _help(self) -> None:
        while True:
            self._jobs.get().begin()


@lru_cache
def _crew() -> _Crew:
    return _Crew()


def _part_ways(cpus: set[int], jobs: list[_Job]) -> None:
    """Give the jobs to helpers on all CPUs but the one of this thread, which stays there.

    Threads that take turns at Python's lock look to the system as if they never ran at once: it puts them on one.
    """
    others: set[int] = set()
    if len(cpus) > 1 and hasattr(_libc(), "sched_getcpu"):
        here = {_libc().sched_getcpu()}
        others = cpus - here
        _keep_to(here)
    _crew().take(jobs, others)


def _cpus() -> set[int]:
    """Return the CPUs that this thread may use, where the system tells."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _keep_to(cpus: set[int], thread: Thread | None = None) -> None:
    """Let a thread, or this one, use these CPUs only."""
    if cpus:
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setaffinity((thread.native_id or 0) if thread else 0, cpus)


@lru_cache
def _keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next arrays instead of handing it back to the system.

    A training step allocates the same arrays as the one before it. By default glibc returns them in between, and the
    system zeroes every page anew: a tenth of a step.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most it takes; it is fixed once the other is set
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)


@lru_cache
def _libc() -> Any:
    """Return glibc, or None where Python runs without it."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


class _Setting(Generic[_Value]):
    """A setting of the whole process: whoever comes first changes it, whoever leaves last puts it back."""

    def __init__(
        self, read: Callable[[], _Value], write: Callable[[_Value], None], change: Callable[[_Value], _Value]
    ) -> None:
        self._read, self._write, self._change = read, write, change
        self._lock = Lock()
        self._users: set[object] = set()
        self._before: list[_Value] = []  # what it was, while it is changed

    def during(self, call: Callable[[], None]) -> None:
        """Call with the setting changed."""
        user = object()
        try:
            self._hold(user)
            call()
        finally:
            try:
                self._release(user)
            except BaseException:  # Ctrl-C, which may come here, too
                self._release(user)
                raise

    def _hold(self, user: object) -> None:
        with self._lock:
            if not self._users:
                self._before = [self._read()]
                self._write(self._change(self._before[0]))
            self._users.add(user)

    def _release(self, user: object) -> None:
        with self._lock:
            self._users.discard(user)
            if not self._users and self._before:
                self._write(self._before[0])
                self._before = []

    def start_anew(self) -> None:
        """Put it back in a forked child, where no user is left."""
        self._lock = Lock()
        self._users.clear()
        self._release(None)


def _read_threads() -> list[int]:
    return [library.num_threads for library in _blas_libraries()]


def _write_threads(numbers: list[int]) -> None:
    for library, number in zip(_blas_libraries(), numbers, strict=True):
        _set_threads(library, number)


def _set_threads(library: Any, threads: int) -> None:
    """Since 3.8 threadpoolctl ignores all threads but the first that sets a limit; here the lock keeps order."""
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)
    library.set_num_threads(threads)


@lru_cache
def _blas_libraries() -> list[Any]:
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


_blas = _Setting(_read_threads, _write_threads, lambda before: [1] * len(before))
_turns = _Setting(sys.getswitchinterval, sys.setswitchinterval, lambda before: min(before, _TURN))


def _start_anew() -> None:
    """In a forked child: none of the parent's other threads is here, and what they held is free."""
    _crew.cache_clear()
    for setting in (_blas, _turns):
        setting.start_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)

"""The threads that share the work on NumPy arrays, and what the system is told of them.

A call keeps its threads busy for a millisecond or less, with the caches full of data: whatever it takes to start and
to end one counts.
"""

import ctypes
import itertools
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from xpconv.backend import Array, library_of
from xpconv.errors import ArgumentError

__all__ = ["num_threads", "run", "run_products"]

_NUMPY_BUFFER = 1024  # elements: rows that are shorter than a buffer are copied to it, which takes as long as the work
_backwards = itertools.cycle((False, True))  # begin where the last call ended: the caches hold that part of its arrays
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
    numbers = itertools.count()  # shared by the threads: each takes the next number when it is free
    last = count - 1 if next(_backwards) else 0

    def work() -> None:
        while (k := next(numbers)) < count:
            task(abs(last - k))

    _keep_freed_memory()
    buffer, jobs = np.getbufsize(), []
    try:
        np.setbufsize(_NUMPY_BUFFER)
        jobs = [_Job(work) for _ in range(min(num_threads(), count) - 1)]
        if jobs:
            _crew().take(jobs)
        work()
    finally:
        try:
            np.setbufsize(buffer)
        except BaseException:  # Ctrl-C, which may come here, too
            np.setbufsize(buffer)
            raise
        finally:
            numbers = itertools.count(count)  # after an error the others need not go on
            errors = [error for job in jobs if (error := job.end()) is not None]
    if errors:
        raise errors[0]


def run_products(task: Callable[[int], object], count: int, like: Array) -> None:
    """Run tasks that call BLAS, each on one thread; BLAS gets its threads back when the last such call ends.

    BLAS's own threads would go on spinning for a while, which taxes whatever comes next, and they cut by their number,
    which changes the bits.
    """
    if library_of(like) != "numpy":
        run(task, count, like)
        return
    user = object()
    try:
        _hold_blas(user)
        run(task, count, like)
    finally:
        try:
            _release_blas(user)
        except BaseException:  # Ctrl-C, which may come here, too
            _release_blas(user)
            raise


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

    def take(self, jobs: list[_Job]) -> None:
        """Let helpers begin with the jobs."""
        while len(self._threads) < len(jobs):
            helper = Thread(target=self._help, name="xpconv", daemon=True)
            helper.start()
            self._threads.append(helper)
            self._cpus = set()
        self._keep_off_this_cpu()
        for job in jobs:
            self._jobs.put(job)

    def _help(self) -> None:
        while True:
            self._jobs.get().begin()

    def _keep_off_this_cpu(self) -> None:
        """Leave the helpers all CPUs but the one of this thread.

        Threads that take turns at Python's lock look to the system as if they never ran at once: it leaves them on one.
        """
        if not hasattr(os, "sched_setaffinity") or not hasattr(_libc(), "sched_getcpu"):
            return
        cpus = os.sched_getaffinity(0)
        cpus = cpus - {_libc().sched_getcpu()} or cpus
        if cpus != self._cpus:
            self._cpus = cpus
            with suppress(OSError):  # a sandbox may forbid it
                for helper in self._threads:
                    os.sched_setaffinity(helper.native_id or 0, cpus)


@lru_cache
def _crew() -> _Crew:
    return _Crew()


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


_blas_lock = Lock()
_blas_users: set[object] = set()
_blas_threads: list[tuple[Any, int]] = []  # the libraries that are held, and the threads they had


def _hold_blas(user: object) -> None:
    with _blas_lock:
        if not _blas_users:
            _blas_threads[:] = [(library, library.num_threads) for library in _blas_libraries()]
            for library, _ in _blas_threads:
                _set_threads(library, 1)
        _blas_users.add(user)


def _release_blas(user: object) -> None:
    with _blas_lock:
        _blas_users.discard(user)
        if not _blas_users:
            for library, threads in _blas_threads:
                _set_threads(library, threads)
            _blas_threads.clear()


def _set_threads(library: Any, threads: int) -> None:
    """Since 3.8 threadpoolctl ignores all threads but the first that sets a limit; here the lock keeps order."""
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)
    library.set_num_threads(threads)


@lru_cache
def _blas_libraries() -> list[Any]:
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def _start_anew() -> None:
    """In a forked child: none of the parent's other threads is here, and what they held is free."""
    global _blas_lock
    _crew.cache_clear()
    _blas_lock = Lock()
    _blas_users.clear()
    _release_blas(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)

"""The threads that share the work on NumPy arrays."""

import itertools
import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache
from pathlib import Path

from xpconv.errors import ArgumentError
from xpconv.ops.numpy._blas import blas_threads, single_threaded_blas

__all__ = ["num_threads", "run_parallel", "run_products"]

_directions = itertools.cycle((1, -1))


def num_threads() -> int:
    """Return the number of threads that share work: ``XPCONV_NUM_THREADS``, else the CPUs that this process may use.

    That number of CPUs is the least of the process's affinity, its cgroup's quota and the limit on BLAS's threads
    (``OMP_NUM_THREADS`` or a similar variable, or a `threadpoolctl.threadpool_limits` around the call).
    """
    text = os.environ.get("XPCONV_NUM_THREADS")
    if text is None:
        return min(filter(None, (_usable_cpus(), _cgroup_cpus(), blas_threads())))
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentError(f"XPCONV_NUM_THREADS is {text!r}; expected a number of threads, 1 or more")
    return int(text)


def run_products(task: Callable[[int], object], count: int) -> None:
    """Run tasks as `run_parallel` does, with BLAS limited to one thread in each."""
    with single_threaded_blas():
        run_parallel(task, count)


def run_parallel(task: Callable[[int], object], count: int) -> None:
    """Call ``task(0)`` to ``task(count - 1)`` on this thread and on workers; each takes the next task when it is free.

    Every other call runs the tasks in reverse: if it uses the arrays of the call before, the ends of those are still in
    the cache. After an error no more tasks begin; those that have begun are finished, and the first error is raised.
    """
    if count == 1:
        task(0)
        return
    order = range(count)[:: next(_directions)]
    numbers = itertools.count()  # Shared by all threads: next() is atomic.

    def work() -> None:
        while (k := next(numbers)) < count:
            task(order[k])

    helpers: list[Future[None]] = []
    threads = num_threads()
    try:
        with suppress(RuntimeError):  # If the system starts no more threads, this one does the work.
            for _ in range(min(threads, count) - 1):
                helpers.append(_workers(threads - 1).submit(copy_context().run, work))  # np.errstate is in the context
        work()
    finally:
        numbers = itertools.count(count)
        errors = _finish(helpers)
    if errors:
        raise errors[0]


def _finish(helpers: list[Future[None]]) -> list[BaseException]:
    """Cancel the helpers that have not begun, wait for the others and return their errors."""
    begun = [helper for helper in helpers if not helper.cancel()]
    interrupt: BaseException | None = None
    errors = []
    for helper in begun:
        while True:
            try:
                error = helper.exception()
                break
            except KeyboardInterrupt as caught:  # Keep waiting: running tasks still write to the arrays.
                interrupt = caught
        if error is not None:
            errors.append(error)
    if interrupt is not None:
        raise interrupt
    return errors


@lru_cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Return a pool of `count` worker threads, which overlapping calls share."""
    return ThreadPoolExecutor(count, "xpconv")


def _usable_cpus() -> int | None:
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return int(os.process_cpu_count() or 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@lru_cache
def _cgroup_cpus(root: Path = Path("/")) -> int | None:
    """Return the CPU quota of this process's cgroup and its parents, rounded up to whole CPUs; None without a quota.

    A container's quota is in ``cpu.max`` ("quota period" or "max period", in microseconds).
    """
    try:
        lines = (root / "proc/self/cgroup").read_text("ascii").splitlines()
        own = Path(next(line.removeprefix("0::/") for line in lines if line.startswith("0::/")))
    except (OSError, StopIteration, ValueError):
        own = Path()
    cpus = []
    for group in (own, *own.parents):
        with suppress(OSError, ValueError):
            quota, period = (root / "sys/fs/cgroup" / group / "cpu.max").read_text("ascii").split()
            cpus.append(max(1, math.ceil(int(quota) / int(period))))
    return min(cpus, default=None)


def _forget_workers() -> None:
    """Make a forked child, which has none of the parent's threads, start workers of its own."""
    _workers.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)

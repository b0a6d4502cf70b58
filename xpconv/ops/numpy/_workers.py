"""The threads that share the work on NumPy arrays."""

import itertools
import math
import os
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

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

    jobs: list[_Job] = []
    try:
        for _ in range(_start_workers(min(num_threads(), count) - 1)):
            jobs.append(_Job(work))
            _queue.put(jobs[-1])
        work()
    finally:
        numbers = itertools.count(count)
        errors = _finish(jobs)
    if errors:
        raise errors.pop(0)  # Without references from here, the error's frames and their arrays can be freed.


class _Job:
    """One worker's share in the work of a call, which the call takes back if no worker has begun it.

    The Future of a ThreadPoolExecutor does the same, but its locks and conditions take longer.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.work, self.context = work, copy_context()  # np.errstate is in the context
        self.taken, self.ending, self.ended = Lock(), Lock(), False
        self.error: BaseException | None = None
        self.ending.acquire()

    def run(self) -> None:
        """Do the work, unless the call has taken it back."""
        if self.taken.acquire(blocking=False):
            try:
                self.context.run(self.work)
            except BaseException as error:
                self.error = error
            finally:
                self.ended = True
                self.ending.release()


def _finish(jobs: list[_Job]) -> list[BaseException]:
    """Take back the jobs that have not begun, wait for the others and return their errors."""
    begun = [job for job in jobs if not job.taken.acquire(blocking=False)]
    interrupt: BaseException | None = None
    for job in begun:
        while not job.ended:
            try:
                job.ending.acquire()
            except KeyboardInterrupt as caught:  # Keep waiting: running tasks still write to the arrays.
                interrupt = caught
    if interrupt is not None:
        raise interrupt
    errors = [job.error for job in begun if job.error is not None]
    for job in begun:
        job.error = None
    return errors


_queue: SimpleQueue[_Job] = SimpleQueue()
_workers: list[Thread] = []  # They serve the queue, and overlapping calls share them.


def _start_workers(count: int) -> int:
    """Start workers until there are `count`, or as many as the system allows; return how many a call may use."""
    with suppress(RuntimeError):
        while len(_workers) < count:
            worker = Thread(target=_serve, args=(_queue,), name=f"xpconv_{len(_workers)}", daemon=True)
            worker.start()
            _workers.append(worker)
    return min(count, len(_workers))


def _serve(queue: SimpleQueue[_Job]) -> None:
    while True:
        queue.get().run()  # A variable would keep the job's arrays until the next one.


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
    global _queue
    _queue = SimpleQueue()
    _workers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)

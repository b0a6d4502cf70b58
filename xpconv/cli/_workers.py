"""Workers that a launcher started: their output, CPUs, devices and failures."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout

from xpconv.backend import get_backend
from xpconv.parallel import Communicator, Nccl, find_communicator
from xpconv.parallel._nccl import nccl_available

__all__ = ["backend_of_worker", "device_of_worker", "join_workers"]


@contextmanager
def join_workers() -> Iterator[Communicator]:
    """Yield a communicator of all workers; if the block fails on one worker, all of them end.

    Only rank 0 writes to standard output. The CPUs of a machine are shared among its workers, unless
    ``XPCONV_NUM_THREADS`` is set or the launcher has bound each worker to some of them.
    """
    communicator = find_communicator()
    if communicator.size == 1:
        yield communicator
        return
    _share_cpus(communicator.local_size)
    with ExitStack() as stack:
        if communicator.rank > 0:
            stack.enter_context(redirect_stdout(None))
        try:
            yield communicator
        except BaseException as error:
            error.add_note(f"on rank {communicator.rank} of {communicator.size}")
            communicator.abort(error)
            raise
    communicator.wait_for_all()


def _share_cpus(workers: int) -> None:
    cpus = os.cpu_count() or 1
    bound = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < cpus
    if workers > 1 and not bound:
        os.environ.setdefault("XPCONV_NUM_THREADS", str(max(cpus // workers, 1)))


def device_of_worker(spec: str, communicator: Communicator) -> str:
    """Return the backend on this worker's device: worker r of a machine uses CUDA device r, or shares one."""
    if communicator.size == 1 or not spec.startswith("cupy"):
        return spec
    return f"cupy:{communicator.local_rank % _count_devices()}"


def backend_of_worker(spec: str, communicator: Communicator) -> tuple[str, Communicator]:
    """Return the backend on this worker's device, and the fastest communicator for it.

    If there are fewer devices than workers, arrays pass through host memory. Otherwise NCCL moves arrays, if CuPy has
    it.
    """
    if communicator.size == 1 or not spec.startswith("cupy"):
        return spec, communicator
    spec = device_of_worker(spec, communicator)
    own_device = all(communicator.gather_objects(communicator.local_size <= _count_devices()))
    if not (own_device and all(communicator.gather_objects(nccl_available()))):
        return spec, communicator
    with get_backend(spec).current():
        return spec, Nccl(communicator)


def _count_devices() -> int:
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())

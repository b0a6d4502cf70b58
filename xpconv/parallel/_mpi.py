"""Workers that are MPI processes, on one machine or several.

Messages go from worker to worker, since MPI's collective operations have no timeout and do not tell which worker is
missing.
"""

import atexit
import sys
import time
from contextlib import suppress
from typing import Any

import numpy as np

from xpconv.errors import BackendUnavailableError, WorkerError, import_failure
from xpconv.parallel._communicator import Communicator

__all__ = ["Mpi"]

_DATA, _FAILURE = 1, 2  # tags of messages
_SPIN_SECONDS = 1e-3  # Poll without sleeping for this time, in which most messages arrive.
_SLEEP_SECONDS = 2e-4
_NOTICE_SECONDS = 1.0  # Time for the other workers to learn of a failure before MPI ends them.


class Mpi(Communicator):
    """Workers that a launcher such as ``mpiexec`` or ``srun`` started; needs mpi4py.

    If a method raises an error, the process must end: MPI then ends the other workers, too.

    Raises
    ------
    BackendUnavailableError
        If mpi4py cannot be imported.

    Examples
    --------
    >>> communicator = Mpi()  # doctest: +SKIP
    >>> solver = Solver(
    ...     model, data, microbatches=4, communicator=communicator
    ... )  # doctest: +SKIP
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from mpi4py import MPI
        except Exception as error:  # without an MPI library, the import raises a RuntimeError
            raise BackendUnavailableError(import_failure("several workers need mpi4py", error, extra="mpi")) from error
        self._mpi: Any = MPI
        self._world: Any = MPI.COMM_WORLD
        self.rank, self.size = int(self._world.rank), int(self._world.size)
        node = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = int(node.rank), int(node.size)
        self._aborting = False

    def _exchange(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        received = [np.empty_like(a) for a in arrays]
        received[self.rank][...] = arrays[self.rank]
        peers = [rank for rank in range(self.size) if rank != self.rank]
        receives = {peer: self._world.Irecv(_bytes(received[peer]), source=peer, tag=_DATA) for peer in peers}
        sends = {peer: self._world.Isend(_bytes(arrays[peer]), dest=peer, tag=_DATA) for peer in peers}
        self._wait(receives)
        self._wait(sends)
        return received

    def _wait(self, requests: dict[int, Any]) -> None:
        """Wait for messages; raise a WorkerError if a worker has failed or is silent."""
        start = time.monotonic()
        while True:
            requests = {peer: request for peer, request in requests.items() if not request.Test()}
            if not requests:
                return
            waited = time.monotonic() - start
            if waited < _SPIN_SECONDS:
                continue
            self.check_failures()
            if waited > self.timeout:
                raise WorkerError(self._describe_silence(requests))
            time.sleep(_SLEEP_SECONDS)

    def check_failures(self) -> None:
        """Raise a WorkerError if another worker has told of a failure, without waiting."""
        if self._world.Iprobe(source=self._mpi.ANY_SOURCE, tag=_FAILURE):
            raise WorkerError(self._world.recv(source=self._mpi.ANY_SOURCE, tag=_FAILURE))

    def abort(self, error: BaseException) -> None:
        """Tell the other workers that this one has failed, and make MPI end them when this process ends."""
        if self._aborting:
            return
        self._aborting = True
        atexit.register(self._end_all)
        with suppress(Exception):  # the other workers may have ended
            text = self._describe_failure(error)
            peers = (rank for rank in range(self.size) if rank != self.rank)
            notices = [self._world.isend(text, dest=peer, tag=_FAILURE) for peer in peers]
            start = time.monotonic()
            while not all(notice.Test() for notice in notices) and time.monotonic() < start + _NOTICE_SECONDS:
                time.sleep(_SLEEP_SECONDS)

    def _end_all(self) -> None:
        time.sleep(_NOTICE_SECONDS)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # the stream may be closed
                stream.flush()
        self._world.Abort(1)


def _bytes(a: np.ndarray) -> np.ndarray:
    return a.reshape(-1).view(np.uint8)

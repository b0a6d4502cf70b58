"""Workers with a CUDA device each, which exchange arrays by NCCL."""

import importlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from xpconv.backend import Array, backend_of, library_of
from xpconv.errors import BackendUnavailableError, WorkerError
from xpconv.parallel._communicator import Communicator

__all__ = ["Nccl", "nccl_available"]

_SLEEP_SECONDS = 1e-4


def nccl_available() -> bool:
    """Return whether CuPy can be imported and has NCCL."""
    try:
        return bool(getattr(importlib.import_module("cupy.cuda.nccl"), "available", False))
    except ImportError:
        return False


class Nccl(Communicator):
    """Workers with a CUDA device each; needs CuPy with NCCL. Arrays on the devices do not pass through host memory.

    Parameters
    ----------
    host : Communicator
        Connects the same workers; used to start NCCL, and for objects and failures.

    Raises
    ------
    BackendUnavailableError
        If CuPy cannot use NCCL.

    Examples
    --------
    >>> communicator = Nccl(Mpi())  # doctest: +SKIP
    """

    def __init__(self, host: Communicator) -> None:
        super().__init__()
        self.rank, self.size, self._host = host.rank, host.size, host
        self.local_rank, self.local_size = host.local_rank, host.local_size
        if not nccl_available():
            raise BackendUnavailableError(
                "CuPy has no NCCL here: pip install nvidia-nccl-cu12 (or -cu13), or exchange through host memory"
            )
        self._cupy: Any = importlib.import_module("cupy")
        self._library: Any = importlib.import_module("cupy.cuda.nccl")
        identifier = host.broadcast(self._library.get_unique_id() if self.rank == 0 else None)
        self._nccl = self._library.NcclCommunicator(self.size, identifier, self.rank)

    def exchange(self, arrays: Sequence[Array]) -> list[Array]:
        """Do what `Communicator.exchange` does; CuPy arrays go directly from device to device."""
        if library_of(arrays[0]) != "cupy":
            return super().exchange(arrays)
        cupy, nccl, stream = self._cupy, self._library, self._cupy.cuda.get_current_stream()
        sent: list[Any] = [cupy.ascontiguousarray(a) for a in arrays]
        received = [cupy.empty_like(a) for a in sent]
        nccl.groupStart()
        for peer in range(self.size):
            self._nccl.send(sent[peer].data.ptr, sent[peer].nbytes, nccl.NCCL_UINT8, peer, stream.ptr)
            self._nccl.recv(received[peer].data.ptr, received[peer].nbytes, nccl.NCCL_UINT8, peer, stream.ptr)
        nccl.groupEnd()
        self._wait(stream.record())
        backend = backend_of(arrays[0])
        return [backend.xp.reshape(a, tuple(arrays[0].shape)) for a in received]

    def _wait(self, event: Any) -> None:
        """Wait for the device; raise a WorkerError if a worker has failed or is silent."""
        start = time.monotonic()
        while not event.done:
            self._host.check_failures()
            if time.monotonic() > start + self.timeout:
                self._nccl.abort()
                others = (rank for rank in range(self.size) if rank != self.rank)
                raise WorkerError(f"one of {self._describe_silence(others)}")
            time.sleep(_SLEEP_SECONDS)

    def _exchange(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        self._host.activity, self._host.timeout = self.activity, self.timeout
        return self._host._exchange(arrays)

    def check_failures(self) -> None:
        """Raise a WorkerError if another worker has told of a failure, without waiting."""
        self._host.check_failures()

    def abort(self, error: BaseException) -> None:
        """Tell the other workers that this one has failed."""
        self._host.activity = self.activity
        self._host.abort(error)
        self._nccl.abort()

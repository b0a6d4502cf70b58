"""The base class of communicators, which move arrays between workers but never add them."""

import os
import pickle
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

import numpy as np

from xpconv.backend import Array, backend_of
from xpconv.errors import ArgumentError, WorkerError, printable

__all__ = ["Communicator", "worker_timeout"]


def worker_timeout() -> float:
    """Return the seconds after which a silent worker counts as lost: ``XPCONV_WORKER_TIMEOUT``, by default 30.

    Raises
    ------
    ArgumentError
        If the variable is not a number above 0.

    Examples
    --------
    >>> worker_timeout()
    30.0
    """
    text = os.environ.get("XPCONV_WORKER_TIMEOUT", "30")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ArgumentError(f"XPCONV_WORKER_TIMEOUT is {printable(text)!r}; expected a number of seconds above 0")
    return seconds


class Communicator:
    """One worker's connection to the other workers. This base class serves a single worker.

    Every worker must call the same methods in the same order.

    Attributes
    ----------
    rank : int
        The worker's number, 0 to `size` - 1.
    size : int
        Number of workers.
    local_rank, local_size : int
        The worker's number among the workers of its machine, and how many those are.
    activity : str
        What the worker does, such as "at iteration 7", for errors.
    timeout : float
        Seconds after which a worker that sends nothing counts as lost; see ``XPCONV_WORKER_TIMEOUT``.

    Examples
    --------
    >>> alone = Communicator()
    >>> alone.rank, alone.size, alone.gather_all(np.arange(3))
    (0, 1, [array([0, 1, 2])])
    """

    rank = local_rank = 0
    size = local_size = 1

    def __init__(self) -> None:
        self.activity = "before the first iteration"
        self.timeout = worker_timeout()

    def exchange(self, arrays: Sequence[Array]) -> list[Array]:
        """Send an array to each worker, and return the arrays received from each; both in the order of the ranks.

        Parameters
        ----------
        arrays : sequence of `size` arrays
            All of one shape and dtype, also on the other workers. Arrays on a device pass through host memory.

        Raises
        ------
        WorkerError
            If a worker has failed, or sends nothing for `timeout` seconds; the message names its rank.
        """
        if self.size == 1:
            return list(arrays)
        backend = backend_of(arrays[0])
        return [backend.asarray(a) for a in self._exchange([np.asarray(backend.to_host(a), order="C") for a in arrays])]

    def _exchange(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        raise NotImplementedError

    def gather_all(self, array: Array) -> list[Array]:
        """Return the arrays of all workers; errors are those of `exchange`."""
        return self.exchange([array] * self.size)

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the objects of all workers, which are pickled; errors are those of `exchange`."""
        if self.size == 1:
            return [value]
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = [int(a[0]) for a in self._exchange([np.array([data.size])] * self.size)]
        padded = np.zeros(max(sizes), np.uint8)
        padded[: data.size] = data
        received = self._exchange([padded] * self.size)
        return [pickle.loads(a[:size].tobytes()) for a, size in zip(received, sizes, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Return the object of rank 0; errors are those of `exchange`."""
        return self.gather_objects(value if self.rank == 0 else None)[0]

    def wait_for_all(self) -> None:
        """Wait, without a time limit, until all workers have called this method; errors are those of `exchange`."""
        before, self.timeout = self.timeout, inf
        try:
            self.gather_objects(None)
        finally:
            self.timeout = before

    def check_failures(self) -> None:
        """Raise a WorkerError if another worker has told of a failure, without waiting."""

    def abort(self, error: BaseException) -> None:
        """Tell the other workers that this one has failed, so that they raise a WorkerError that names it."""

    def _describe_failure(self, error: BaseException) -> str:
        if isinstance(error, WorkerError):
            return str(error)
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        return f"rank {self.rank} failed {self.activity}: {str(error) or type(error).__name__}{notes}"

    def _describe_silence(self, ranks: Iterable[int]) -> str:
        names = ", ".join(map(str, ranks))
        return (
            f"rank {names} sent nothing for {self.timeout:g} s {self.activity}: it was stopped or killed, or "
            "it is slow: XPCONV_WORKER_TIMEOUT sets a longer time"
        )

"""Checks that all workers train the same model, and signals and failures that stop all of them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from xpconv._version import __version__
from xpconv.backend import Array, to_host
from xpconv.errors import WorkerError, printable
from xpconv.parallel import Communicator
from xpconv.training._signals import PostponedSignal
from xpconv.training._state import first_difference

__all__ = ["Workers", "digest"]


def digest(arrays: Mapping[str, Array]) -> str:
    """Return a hash of the names and bits of arrays.

    Examples
    --------
    >>> (
    ...     digest({"W1": np.zeros(2)}) == digest({"W1": np.zeros(2)}),
    ...     digest({"W1": np.ones(2)})[:8],
    ... )
    (True, 'bbab1287')
    """
    total = hashlib.blake2b(digest_size=16)
    for name, a in arrays.items():
        total.update(name.encode())
        total.update(np.ascontiguousarray(to_host(a)).view(np.uint8).data)
    return total.hexdigest()


class Workers:
    """The workers that train a model together; for one worker, every method does nothing."""

    def __init__(self, communicator: Communicator) -> None:
        self.communicator, self.several = communicator, communicator.size > 1
        self._stopping = False

    def compare(self, description: Mapping[str, Any]) -> None:
        """Raise a WorkerError on all workers unless their descriptions, which JSON can hold, are equal."""
        if not self.several:
            return
        first, *others = self.communicator.gather_objects(json.dumps(description, default=str))
        for rank, other in enumerate(others, start=1):
            difference = first_difference(json.loads(first), json.loads(other))
            if difference is not None:
                where, ours, theirs = map(printable, difference)
                raise WorkerError(
                    f"rank {rank} differs from rank 0 in {where} {self.communicator.activity}: it has {theirs}, not "
                    f"{ours}: start all workers with the same program, versions, data, settings and rng"
                )

    def compare_start(self, library: str, configuration: Mapping[str, Any], model: Any, **more: Any) -> None:
        """Raise a WorkerError unless all workers start with the same versions, settings, data and parameters."""
        if self.several:
            versions = {"xpconv version": __version__} | {
                f"{name} version": _version(name) for name in ("numpy", library)
            }
            settings = {"XPCONV_WORKSPACE": os.environ.get("XPCONV_WORKSPACE"), **configuration, **more}
            self.compare({**versions, **settings, "parameters": digest(model.params)})

    def compare_models(self, model: Any) -> None:
        """Raise a WorkerError if the workers' models differ."""
        if self.several:
            self.compare({"parameters": digest(model.params), "state": digest(model.state)})

    def begin(self, iteration: int) -> None:
        """Let errors name this iteration from now on."""
        self.communicator.activity = f"at iteration {iteration}"

    def deliver(self, signals: PostponedSignal) -> None:
        """If any worker has received a signal, deliver it on all workers."""
        if not self.several:
            signals.deliver()
            return
        number = max(int(a[0]) for a in self.communicator.gather_all(np.array([signals.number or 0])))
        if number:
            self._stopping = True
            if number in signals.handlers:
                signals.deliver(number)
            raise KeyboardInterrupt

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Tell the other workers of an error in this context, unless a signal stops all workers."""
        self._stopping = False
        try:
            yield
        except BaseException as error:
            if not self._stopping:
                self.communicator.abort(error)
            raise


def _version(name: str) -> str:
    try:
        return version(name.replace("_", "-"))
    except PackageNotFoundError:  # cupy-cuda12x and cupy-cuda13x are packages of cupy
        return "unknown"

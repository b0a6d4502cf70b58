"""Measure a training step on several workers, and estimate its time on more."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpconv.backend import Array, to_host
from xpconv.nn import BatchNorm, Sequential
from xpconv.nn._chain import nodes
from xpconv.parallel import Communicator
from xpconv.training._microbatches import MicroBatches
from xpconv.training.optim import UPDATE_RULES

__all__ = ["CostModel", "cost_table", "measure_workers"]

_REPEATS = 9
_LARGE = 1 << 23  # bytes of the arrays that measure the bandwidth
BANDWIDTHS = (25e9, 100e9, 450e9)
"""Bytes per second: a network card of 200 Gbit/s, four of them, and NVLink between eight GPUs."""


@dataclass(frozen=True)
class CostModel:
    """Time of a step on N workers: ``compute + 2 * (N - 1) / N * gradient_bytes / bandwidth + exchanges * latency``.

    Parameters
    ----------
    compute : float
        Seconds of a step of one worker on its part of the minibatch, without exchanges.
    gradient_bytes : int
    exchanges : int
        Number of exchanges in a step.
    latency : float
        Seconds of an exchange of a small array.

    Examples
    --------
    >>> model = CostModel(
    ...     compute=0.1, gradient_bytes=100_000_000, exchanges=3, latency=1e-5
    ... )
    >>> (
    ...     round(model.step(8, bandwidth=25e9), 4),
    ...     round(model.efficiency(8, bandwidth=25e9), 2),
    ... )
    (0.107, 0.93)
    """

    compute: float
    gradient_bytes: int
    exchanges: int
    latency: float

    def step(self, workers: int, bandwidth: float) -> float:
        """Return the seconds of a step; nothing is sent while gradients are computed."""
        sent = 2 * (workers - 1) / workers * self.gradient_bytes
        return self.compute + sent / bandwidth + self.exchanges * self.latency

    def efficiency(self, workers: int, bandwidth: float) -> float:
        """Return the speed per worker as a fraction of the speed of a single worker."""
        return self.compute / self.step(workers, bandwidth)


def cost_table(model: CostModel, bandwidths: Sequence[float] = BANDWIDTHS) -> list[tuple[str, ...]]:
    """Return a header and a row for each number of workers, with efficiencies in percent.

    Examples
    --------
    >>> cost_table(CostModel(0.1, 100_000_000, 3, 1e-5))[:2]
    [('workers', '25 GB/s', '100 GB/s', '450 GB/s'), ('2', '96%', '99%', '100%')]
    """
    rows = [
        (f"{workers:,}", *(f"{model.efficiency(workers, bandwidth):.0%}" for bandwidth in bandwidths))
        for workers in (2**k for k in range(1, 11))
    ]
    return [("workers", *(f"{bandwidth / 1e9:g} GB/s" for bandwidth in bandwidths)), *rows]


def measure_workers(net: Sequential, batch_size: int, communicator: Communicator) -> tuple[list[str], CostModel]:
    """Measure steps of all workers together, steps of rank 0 alone, and exchanges.

    Parameters
    ----------
    net : Sequential
        The same on all workers.
    batch_size : int
        Images of all workers together.
    communicator : Communicator

    Returns
    -------
    lines : list of str
        The measurements, as text.
    model : CostModel

    Raises
    ------
    ArgumentError
        If the workers cannot share the minibatch.
    """
    workers = communicator.size
    rng = np.random.default_rng(0)
    X = rng.standard_normal((batch_size, *net.input_shape)).astype(net.dtype)
    y = rng.integers(0, net.num_classes, batch_size)
    together = MicroBatches(net, workers, "whole", batch_size, communicator)
    alone = MicroBatches(net, workers, "whole", batch_size)
    part = MicroBatches(net, 1, "whole", batch_size // workers)
    own, only_rank_0 = together.own_rows, communicator.rank == 0
    all_seconds, one_seconds, part_seconds = _fastest(
        communicator,
        lambda: _step(net, together, X[own], y[own]),
        lambda: _step(net, alone, X, y) if only_rank_0 else None,
        lambda: _step(net, part, X[own], y[own]) if only_rank_0 else None,
    )
    small, large = np.zeros(1), np.zeros(_LARGE // 8)
    latency, of_large = _fastest(
        communicator, lambda: communicator.gather_all(small), lambda: communicator.gather_all(large)
    )
    transfer = max(of_large - latency, 1e-9)
    norms = sum(isinstance(layer, BatchNorm) for _, layer in nodes(net.layers))
    model = CostModel(part_seconds, sum(to_host(w).nbytes for w in net.params.values()), 3 + 2 * norms, latency)
    speedup = one_seconds / all_seconds
    return [
        f"a step of {batch_size} images: {1e3 * one_seconds:.3f} ms on one worker, {1e3 * all_seconds:.3f} ms on "
        f"{workers}: {speedup:.2f} times as fast, {speedup / workers:.0%} of the ideal",
        f"an exchange among {workers} workers: {1e6 * latency:.0f} us, and "
        f"{(workers - 1) * _LARGE / transfer / 1e9:.2f} GB/s to each worker",
        f"{model.gradient_bytes:,} bytes of gradients and {model.exchanges} exchanges in a step",
    ], model


def _step(net: Sequential, microbatches: MicroBatches, X: Array, y: Array) -> None:
    configs: dict[str, dict[str, Any]] = {name: {"learning_rate": 1e-6} for name in net.params}
    _, grads = microbatches.loss(net, net.backend.asarray(X), net.backend.asarray(y))
    for name, grad in grads.items():
        UPDATE_RULES["sgd"](net.params[name], grad, configs[name], in_place=True)
    net.backend.synchronize()


def _fastest(communicator: Communicator, *calls: Callable[[], object]) -> list[float]:
    """Return the seconds of the fastest of several calls of each function, which take turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(_REPEATS):
        for measured, call in zip(seconds, calls, strict=True):
            communicator.wait_for_all()
            start = time.perf_counter()
            call()
            measured.append(time.perf_counter() - start)
    communicator.wait_for_all()
    return [min(measured) for measured in seconds]

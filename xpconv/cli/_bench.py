"""Whether it pays to move a net to another backend: its training step, timed and weighed on both."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, isclose
from pathlib import Path
from typing import Any

import numpy as np

from xpconv.backend import Backend, to_host
from xpconv.backend._memory import peak_bytes
from xpconv.errors import ArgumentError, CheckpointError, XpconvError
from xpconv.io.model import load_model
from xpconv.nn import Sequential
from xpconv.training.optim import UPDATE_RULES

__all__ = ["Step", "load_net", "measure_step", "table", "verdict"]

_GROUP_SECONDS = 0.3  # steps follow each other for so long before anyone waits for the device
_GROUPS = 3
_CLEAR = 1.1  # how many times as fast counts as faster
_AGREE = {"float32": 1e-3, "float64": 1e-9}


@dataclass(frozen=True)
class Step:
    """What one training step takes on a backend.

    Parameters
    ----------
    backend : str
    images : int
        Samples in the minibatch.
    first, seconds : float
        The very first step with all that it prepares, and the best of the later ones, in seconds.
    move : float
        Seconds to bring a minibatch from host memory to the device.
    memory : int or None
        Bytes that a step takes at most beyond parameters and minibatch.

    Examples
    --------
    >>> Step("numpy", images=50, first=0.3, seconds=0.1, move=0.0, memory=1 << 20).rate
    500.0
    """

    backend: str
    images: int
    first: float
    seconds: float
    move: float
    memory: int | None

    @property
    def rate(self) -> float:
        """Samples per second, where moving a minibatch overlaps with computing on the one before."""
        return self.images / max(self.seconds, self.move)


def load_net(path: Path, backend: str | Backend) -> Sequential:
    """Read a net from a model's file, or from the ``config.json`` of a run with new parameters.

    Raises
    ------
    CheckpointError
        If it is neither.
    """
    if path.suffix != ".json":
        return load_model(path, backend)
    try:
        return Sequential.from_config(json.loads(path.read_text(encoding="utf-8"))["model"], backend)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} describes no net ({error!r}): give a model.safetensors or a config.json that xpconv train left"
        ) from error


def measure_step(nets: Sequence[Sequential], batch_size: int) -> list[Step]:
    """Time training steps of the same net on several backends, on the same random minibatch.

    Raises
    ------
    ArgumentError
        If the batch size is not 1 or more.
    XpconvError
        If the backends' losses differ.

    Examples
    --------
    >>> from xpconv import TwoLayerNet
    >>> step, = measure_step([TwoLayerNet(input_dim=4, num_classes=3, rng=0)], batch_size=10)
    >>> step.images, step.seconds > 0
    (10, True)
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size is {batch_size}; expected 1 or more")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((batch_size, *nets[0].input_shape)).astype(nets[0].dtype)
    y = rng.integers(0, nets[0].num_classes, batch_size)
    measured = []
    for net in nets:
        with net.backend.current():
            measured.append(_measure(net, X, y))
    steps, losses = zip(*measured, strict=True)
    for step, loss in zip(steps, losses, strict=True):
        if not isclose(loss, losses[0], rel_tol=_AGREE[nets[0].dtype]):
            raise XpconvError(
                f"the loss is {loss!r} on {step.backend} but {losses[0]!r} on {steps[0].backend}: one "
                "of them computes wrong results; xpconv info tells their versions"
            )
    return list(steps)


def _measure(net: Sequential, X: np.ndarray, y: np.ndarray) -> tuple[Step, float]:
    backend, losses = net.backend, []
    configs: dict[str, dict[str, Any]] = {name: {"learning_rate": 1e-6} for name in net.params}
    batch = backend.asarray(X), backend.asarray(y)

    def step() -> None:
        loss, grads = net.loss(*batch)
        losses.append(loss)
        for name, w in net.params.items():
            UPDATE_RULES["adam"](w, grads[name], configs[name], in_place=True)

    first = _seconds(backend, step)
    once = _seconds(backend, step)
    calls = max(1, min(100, int(_GROUP_SECONDS / once)))
    best = min(_seconds(backend, step, calls) for _ in range(_GROUPS))
    move = min(_seconds(backend, lambda: backend.asarray(X)) for _ in range(_GROUPS))
    return (
        Step(str(backend), len(X), first, best, 0.0 if backend.library == "numpy" else move, peak_bytes(backend, step)),
        float(to_host(losses[0])),
    )


def _seconds(backend: Backend, call: Callable[[], Any], calls: int = 1) -> float:
    backend.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    backend.synchronize()
    return (time.perf_counter() - start) / calls


def table(steps: Sequence[Step]) -> list[tuple[str, ...]]:
    """Return a header and one row a backend.

    Examples
    --------
    >>> table([Step("numpy", images=50, first=0.3, seconds=0.1, move=0.0, memory=1 << 20)])[1]
    ('numpy', '100.000', '500', '0.000', '1.0')
    """
    return [
        ("backend", "step, ms", "images/s", "moving a minibatch, ms", "memory, MiB"),
        *(
            (
                step.backend,
                f"{1e3 * step.seconds:.3f}",
                f"{step.rate:.0f}",
                f"{1e3 * step.move:.3f}",
                "not known" if step.memory is None else f"{step.memory / 2**20:.1f}",
            )
            for step in steps
        ),
    ]


def verdict(here: Step, there: Step) -> str:
    """Say in a sentence whether training should move.

    Examples
    --------
    >>> slow = Step("numpy", images=50, first=0.1, seconds=0.1, move=0.0, memory=0)
    >>> print(verdict(slow, Step("cupy:0", images=50, first=5.01, seconds=0.01, move=0.0, memory=0)))
    The move pays: cupy:0 trains 10.0 times as fast as numpy, and after 56 steps has made up for the 5.0 s of its start.
    """
    ratio = there.rate / here.rate
    if ratio < 1 / _CLEAR:
        return (
            f"The move does not pay: {there.backend} trains {1 / ratio:.1f} times as slowly as {here.backend}; "
            "larger minibatches or nets suit a GPU better."
        )
    if ratio < _CLEAR:
        return f"The move does not pay: {there.backend} trains as fast as {here.backend}."
    start, gain = there.first - there.seconds, here.images / here.rate - there.images / there.rate
    return (
        f"The move pays: {there.backend} trains {ratio:.1f} times as fast as {here.backend}, and after "
        f"{max(1, ceil(start / gain))} steps has made up for the {start:.1f} s of its start."
    )

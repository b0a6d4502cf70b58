"""Time and memory of a net's training step on two backends, and whether it pays to move."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, isclose
from pathlib import Path
from typing import Any

import numpy as np

from xpconv._validation import check_count
from xpconv.backend import Backend, to_host
from xpconv.backend._memory import peak_bytes
from xpconv.cli._evaluate import read_model
from xpconv.cli._run_folder import read_config, reason_of
from xpconv.errors import CheckpointError, XpconvError
from xpconv.io._safetensors import DESCRIPTION_ERRORS
from xpconv.nn import Sequential
from xpconv.training.optim import UPDATE_RULES

__all__ = ["Step", "load_net", "measure_step", "table", "verdict"]

_GROUP_SECONDS = 0.3  # duration of a group of steps, after which the host waits for the device
_GROUPS = 3
_CLEARLY_FASTER = 1.1  # smaller ratios count as equal speed
_LOSS_RTOL = {"float32": 1e-3, "float64": 1e-9}


@dataclass(frozen=True)
class Step:
    """Time and memory of one training step on a backend.

    Parameters
    ----------
    backend : str
    images : int
        Samples in the minibatch.
    first, seconds : float
        Seconds of the first step, including its preparations, and of the fastest later one.
    move : float
        Seconds to move a minibatch from host memory to the device.
    memory : int or None
        Peak memory of a step in bytes, without parameters and minibatch; None if unknown.

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
        """Samples per second if the next minibatch is moved while one is computed."""
        return self.images / max(self.seconds, self.move)


def load_net(path: Path, backend: str | Backend) -> Sequential:
    """Read a net from a model file, or build it with new parameters from the ``config.json`` of a run.

    Raises
    ------
    CheckpointError
        If the file is neither.
    """
    if path.suffix != ".json":
        return read_model(path, backend)
    try:
        return Sequential.from_config(_checked(read_config(path)["model"]), backend)
    except (OSError, *DESCRIPTION_ERRORS) as error:
        raise CheckpointError(
            f"{path} describes no net ({reason_of(error)}): give a model.safetensors or a config.json that "
            "xpconv train wrote"
        ) from error


def _checked(description: dict[str, Any]) -> dict[str, Any]:
    shape = description["input_shape"]
    if not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"input_shape is {shape}; expected ints, 1 or more")
    return description


def measure_step(nets: Sequence[Sequential], batch_size: int) -> list[Step]:
    """Time training steps of the same net on several backends with the same random minibatch.

    Raises
    ------
    ArgumentError
        If the batch size is not 1 or more.
    XpconvError
        If the backends' losses differ.

    Examples
    --------
    >>> from xpconv import TwoLayerNet
    >>> (step,) = measure_step(
    ...     [TwoLayerNet(input_dim=4, num_classes=3, rng=0)], batch_size=10
    ... )
    >>> step.images, step.seconds > 0
    (10, True)
    """
    check_count("batch_size", batch_size)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((batch_size, *nets[0].input_shape)).astype(nets[0].dtype)
    y = rng.integers(0, nets[0].num_classes, batch_size)
    measured = []
    for net in nets:
        with net.backend.current():
            measured.append(_measure(net, X, y))
    steps, losses = zip(*measured, strict=True)
    for step, loss in zip(steps, losses, strict=True):
        if not isclose(loss, losses[0], rel_tol=_LOSS_RTOL[nets[0].dtype]):
            raise XpconvError(
                f"the loss is {loss!r} on {step.backend} but {losses[0]!r} on {steps[0].backend}: one "
                "of them computes wrong results; xpconv info shows their versions"
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
    second = _seconds(backend, step)
    calls = max(1, min(100, int(_GROUP_SECONDS / second)))
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
    """Return a header and one row per backend.

    Examples
    --------
    >>> table(
    ...     [Step("numpy", images=50, first=0.3, seconds=0.1, move=0.0, memory=1 << 20)]
    ... )[1]
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
    """Say in one sentence whether it pays to move the training from one backend to the other.

    Examples
    --------
    >>> slow = Step("numpy", images=50, first=0.1, seconds=0.1, move=0.0, memory=0)
    >>> print(
    ...     verdict(
    ...         slow,
    ...         Step("cupy:0", images=50, first=5.01, seconds=0.01, move=0.0, memory=0),
    ...     )
    ... )
    The move pays: cupy:0 trains 10.0 times as fast as numpy, and after 56 steps has made up for the 5.0 s of its start.
    """
    ratio = there.rate / here.rate
    if ratio < 1 / _CLEARLY_FASTER:
        return (
            f"The move does not pay: {there.backend} trains {1 / ratio:.1f} times as slowly as {here.backend}; "
            "larger minibatches or nets suit a GPU better."
        )
    if ratio < _CLEARLY_FASTER:
        return f"The move does not pay: {there.backend} trains as fast as {here.backend}."
    start, saved_per_step = there.first - there.seconds, here.images / here.rate - there.images / there.rate
    return (
        f"The move pays: {there.backend} trains {ratio:.1f} times as fast as {here.backend}, and after "
        f"{max(1, ceil(start / saved_per_step))} steps has made up for the {start:.1f} s of its start."
    )

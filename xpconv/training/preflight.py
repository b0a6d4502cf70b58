"""Checks before a training, on copies of the model: what would spoil it is found in seconds, with a likely cause."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

import numpy as np

from xpconv._validation import check_count
from xpconv.backend import Array, Backend, backend_of, to_host
from xpconv.backend._memory import free_bytes, peak_bytes
from xpconv.errors import ArgumentError, PreflightError
from xpconv.nn import Sequential
from xpconv.random import as_random_stream, restore, state_of
from xpconv.testing import check_gradient
from xpconv.training._monitor import copy_arrays
from xpconv.training.metrics import accuracy, take_rows
from xpconv.training.optim import UPDATE_RULES, check_rule
from xpconv.training.schedules import Schedule, constant

__all__ = ["PreflightFinding", "check_training"]

OVERFIT_IMAGES = 20
OVERFIT_STEPS = 1000
GRADIENT_IMAGES = 4
GRADIENT_TOLERANCE = 1e-5
MEMORY_BATCHES = 32, 64  # the memory of larger batches is extrapolated from these two sizes
MEMORY_PASSES = 3  # of each size, since some of them also allocate scratch memory that stays
FIRST_STEPS = 20
MAX_LOSS_GROWTH = 10.0  # A loss may grow to this multiple of the first one,
RECOVERED_LOSS = 0.9  # or to any value if it ends below this multiple.


@dataclass(frozen=True)
class PreflightFinding:
    """What one check found.

    Parameters
    ----------
    name : str
    passed : bool
    text : str
        The figure, what was expected, and a likely cause if that is not what was found.

    Examples
    --------
    >>> print(PreflightFinding("initial loss", True, "2.303; expected about 2.303"))
    passed  initial loss: 2.303; expected about 2.303
    """

    name: str
    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'}  {self.name}: {self.text}"


def check_training(
    model: Any,
    X: Array,
    y: Array,
    *,
    batch_size: int = 100,
    update_rule: str | Callable[..., Any] | None = None,
    optim_config: Mapping[str, Any] | None = None,
    schedule: Schedule | None = None,
    on_finding: Callable[[PreflightFinding], object] | None = None,
) -> list[PreflightFinding]:
    """Check that a model which is about to be trained can be.

    Its first loss is near ``ln C`` (softmax) or ``C - 1`` (SVM) plus the L2 term; a copy of it overfits 20
    images; its gradients agree with differences, for the first and the last parameter of each kind, in float64; a step
    has enough memory, as two small steps let expect; and the first steps do not throw the loss off. The model and
    all random streams are as before afterwards.

    Parameters
    ----------
    model : Sequential, or any object with ``params`` and ``loss`` that `copy.deepcopy` can copy
        As for `xpconv.Solver`.
    X : array (N, ...)
        Training images; rows at equal distances are taken.
    y : array (N,) of integers
    batch_size : int
        Images in a minibatch of the training.
    update_rule, optim_config, schedule : optional
        Those of the training, as for `xpconv.Solver`; without a rule the first steps are not checked.
    on_finding : callable, optional
        Called with each finding as soon as it is there.

    Returns
    -------
    list of PreflightFinding
        One for each check.

    Raises
    ------
    PreflightError
        If a check failed; the text has a line for each that did.
    ArgumentError
        If the model cannot be copied or there are no images.

    Examples
    --------
    >>> from xpconv import TwoLayerNet
    >>> from xpconv.data import load_digits
    >>> digits = load_digits()
    >>> net = TwoLayerNet(input_dim=64, rng=0)
    >>> findings = check_training(net, digits.X_train, digits.y_train)
    >>> print(findings[0])
    passed  initial loss: 2.303; expected about 2.303, which is ln 10, and at most 17.2
    """
    check_count("batch_size", batch_size)
    check_count("images", X.shape[0])
    place = getattr(model, "backend", None) or backend_of(next(iter(model.params.values())))
    subject = _Subject(model, X, y, place)
    findings = []
    checks: list[Callable[[_Subject], PreflightFinding]] = [
        _initial_loss,
        _overfitting,
        _gradients,
        lambda subject: _memory(subject, batch_size),
    ]
    if update_rule is not None:
        check_rule(update_rule, optim_config or {})
        rule = UPDATE_RULES[update_rule] if isinstance(update_rule, str) else update_rule
        checks.append(lambda subject: _first_steps(subject, batch_size, rule, optim_config or {}, schedule or constant))
    for check in checks:
        with place.current(), _same_global_draws():
            findings.append(check(subject))
        if on_finding is not None:
            on_finding(findings[-1])
    failed = [finding for finding in findings if not finding.passed]
    if failed:
        raise PreflightError(
            "\n".join(
                [
                    f"{len(failed)} of {len(findings)} checks before training failed:",
                    *(f"{finding.name}: {finding.text}" for finding in failed),
                ]
            )
        )
    return findings


@dataclass(frozen=True)
class _Subject:
    """A model and its training images."""

    model: Any
    X: Array
    y: Array
    backend: Backend

    def replica(self, dtype: str | None = None, seed: int | None = None) -> Any:
        """Return a copy of the model with parameters, statistics and streams of its own; `seed` fixes its masks."""
        if isinstance(self.model, Sequential):
            net = copy(self.model)
            net.dtype, net.seed, net.mask_stream = dtype or net.dtype, seed, np.random.default_rng(0)
            net.preprocessing = net.preprocessing  # in its dtype
            net.state = self._copies(net.state, dtype)
        else:
            try:
                net = deepcopy(self.model, {id(self.backend): self.backend})
            except TypeError as error:
                raise ArgumentError(
                    f"model is {self.model!r}, which cannot be copied ({error}); expected one that "
                    "copy.deepcopy takes: leave the checks before training out"
                ) from error
        net.params = self._copies(self.model.params, dtype)
        return net

    def _copies(self, arrays: Any, dtype: str | None) -> dict[str, Array]:
        return copy_arrays({name: self.backend.asarray(a, dtype) for name, a in arrays.items()})

    def some(self, count: int) -> tuple[Array, Array]:
        """Return so many images at equal distances, and their labels; images come again where there are fewer."""
        rows = np.arange(count) * max(self.X.shape[0] // count, 1) % self.X.shape[0]
        return self.backend.asarray(take_rows(self.X, rows)), self.backend.asarray(take_rows(self.y, rows))


@contextmanager
def _same_global_draws() -> Iterator[None]:
    """Leave NumPy's global state, from which a model may draw, as it was."""
    stream = as_random_stream(None)
    state = state_of(stream)
    try:
        yield
    finally:
        restore(stream, state)


def _initial_loss(subject: _Subject) -> PreflightFinding:
    net = subject.replica()
    X, y = subject.some(100)
    scores = to_host(net.loss(X))
    found, classes = float(to_host(net.loss(X, y)[0])), scores.shape[1]
    weights = [to_host(w).astype(np.float64) for name, w in subject.model.params.items() if name.startswith("W")]
    penalty = 0.5 * float(getattr(net, "reg", 0.0)) * sum(float(np.sum(w * w)) for w in weights)
    # Scores of an untrained net are not 0: weights by He's rule let them differ by several units.
    expected, formula, limit = (
        (classes - 1, f"{classes} - 1", 4 * (classes - 1))
        if getattr(net, "loss_name", "") == "svm"
        else (log(classes), f"ln {classes}", 4 * log(classes) + 8)
    )
    text = (
        f"{found:.4g}; expected about {expected + penalty:.4g}, which is {formula}"
        + (f" and {penalty:.2g} of the L2 term" if penalty else "")
        + f", and at most {limit + penalty:.3g}"
    )
    if not isfinite(found) or found - penalty > limit:
        size = float(np.max(np.abs(scores)))
        return PreflightFinding(
            "initial loss",
            False,
            f"{text}. Scores are as large as {size:.3g}: the images are not "
            "normalised, weight_scale is too large, or the loss is no mean",
        )
    if found - penalty < expected / 2:
        return PreflightFinding(
            "initial loss",
            False,
            f"{text}. The loss leaves something out, or the parameters are trained "
            "already: a trained model needs no such check",
        )
    return PreflightFinding("initial loss", True, text)


def _overfitting(subject: _Subject) -> PreflightFinding:
    net, memory = subject.replica(), {name: {"learning_rate": 3e-3} for name in subject.model.params}
    if hasattr(net, "reg"):
        net.reg = 0.0
    count = min(OVERFIT_IMAGES, subject.X.shape[0])
    X, y = subject.some(count)
    fraction, steps = 0.0, 0
    while fraction < 1 and steps < OVERFIT_STEPS:
        for _ in range(10):
            _, grads = net.loss(X, y)
            for name, w in net.params.items():
                UPDATE_RULES["adam"](w, grads[name], memory[name], in_place=True)
        steps += 10
        fraction = accuracy(net, X, y, subject.backend)
    text = f"{round(fraction * count)} of {count} images are right after {steps} steps of Adam; expected all of them"
    return PreflightFinding(
        "overfitting a small batch",
        fraction == 1,
        text
        if fraction == 1
        else (
            f"{text}. The gradients are wrong (see their check), every unit is dead, the images are not normalised, or "
            "images that are alike have different labels"
        ),
    )


def _gradients(subject: _Subject) -> PreflightFinding:
    """Check single parameters, so that it shows from which layer on gradients are right."""
    net, (X, y) = subject.replica("float64", seed=0), subject.some(GRADIENT_IMAGES)
    draws, backend = np.random.default_rng(0), subject.backend
    point = {}
    for name, w in net.params.items():  # parameters of 0 may put units exactly at the kink of a ReLU
        host = to_host(w)
        point[name] = backend.asarray(host + (host == 0) * 0.01 * draws.standard_normal(host.shape))

    def forward(*values: Array) -> tuple[Array, Any]:
        np.random.seed(0)  # for dropout of a model of another kind
        net.params = dict(zip(point, values, strict=True))
        loss, grads = net.loss(X, y)
        return backend.asarray(loss, "float64"), grads

    def backward(dout: Array, grads: Any) -> list[Array]:
        return [dout * grads[name] for name in point]

    kinds: dict[str, list[str]] = {}
    for name in point:
        kinds.setdefault(re.split(r"\d", name)[0], []).append(name)
    wanted = {name for names in kinds.values() for name in (names[0], names[-1])}
    checked = [name for name in point if name in wanted]
    if float(to_host(forward(*point.values())[0])) != float(to_host(forward(*point.values())[0])):
        return PreflightFinding(
            "gradients", True, "not checked, since two passes over the same images give different losses"
        )
    right, wrong, unknown, worst = list[str](), dict[str, str](), list[str](), 0.0
    for name in checked:
        try:
            worst = max(worst, check_gradient(forward, backward, point, tolerance=GRADIENT_TOLERANCE, wrt=[name]))
            right.append(name)
        except AssertionError as error:
            if "cannot be checked" in str(error):
                unknown.append(name)
            else:
                wrong[name] = str(error)
    note = f" ({', '.join(unknown)} could not be checked: the loss has kinks there)" if unknown else ""
    if wrong:
        *_, last = wrong
        return PreflightFinding(
            "gradients",
            False,
            f"{wrong[last]}. Wrong are those of {', '.join(wrong)}, right those of "
            f"{', '.join(right) or 'none'}{note}: look for the mistake in the backward "
            f"passes from the layer of {last} on",
        )
    return PreflightFinding(
        "gradients",
        True,
        f"relative error {worst:.1e} at most, for {', '.join(right) or 'none'}; "
        f"expected {GRADIENT_TOLERANCE:.0e} or less{note}",
    )


def _memory(subject: _Subject, batch_size: int) -> PreflightFinding:
    """Take the peak as a constant and a share of each image, since workspaces do not grow with the batch."""
    net = subject.replica()

    def peak(count: int) -> int | None:
        X, y = subject.some(count)
        peaks = [peak_bytes(subject.backend, lambda: net.loss(X, y)) for _ in range(MEMORY_PASSES)]
        return min((peak for peak in peaks if peak is not None), default=None)

    small, large = (peak(count) for count in MEMORY_BATCHES)
    free = free_bytes(subject.backend)
    if small is None or large is None or free is None:
        return PreflightFinding("memory", True, f"not measured: {subject.backend.library} does not tell here")
    each = max((large - small) / (MEMORY_BATCHES[1] - MEMORY_BATCHES[0]), 1.0)
    remembered = 2 * sum(to_host(w).nbytes for w in net.params.values())  # by Adam
    constant = max(large - each * MEMORY_BATCHES[1], 0.0) + remembered
    needed, most, images = constant + each * batch_size, int(max(free - constant, 0.0) / each), subject.X.shape[0]
    text = (
        f"a step of {batch_size} images takes about {_bytes(needed)}; expected at most the {_bytes(free)} that are free"
    )
    if needed > free:
        return PreflightFinding(
            "memory",
            False,
            f"{text}. The largest batch that fits has about {most} images: take such a batch_size, or a smaller net",
        )
    return PreflightFinding(
        "memory",
        True,
        f"{text} (the largest batch that fits: {f'about {most} images' if most < images else f'all {images} images'})",
    )


def _first_steps(
    subject: _Subject, batch_size: int, rule: Callable[..., Any], config: Mapping[str, Any], schedule: Schedule
) -> PreflightFinding:
    """Take the same images each time, on which a step size that is not too large lowers the loss."""
    net, losses = subject.replica(), list[float]()
    X, y = subject.some(min(batch_size, 100))  # whatever the minibatch, this needs little memory
    configs = {name: dict(config) for name in net.params}
    with np.errstate(all="ignore"):
        for step in range(FIRST_STEPS):
            loss, grads = net.loss(X, y)
            losses.append(float(to_host(loss)))
            for name, w in net.params.items():
                if "learning_rate" in config:
                    configs[name]["learning_rate"] = config["learning_rate"] * schedule(step)
                net.params[name], configs[name] = rule(w, grads[name], configs[name])
    first, last, largest = losses[0], losses[-1], max(losses)
    text = (
        f"{FIRST_STEPS} steps on the same images bring the loss from {first:.4g} to {last:.4g} by way of {largest:.4g}"
        f"; expected at most {MAX_LOSS_GROWTH * first:.3g} on the way, or less than {RECOVERED_LOSS * first:.3g} in "
        "the end"
    )
    if isfinite(sum(losses)) and (largest <= MAX_LOSS_GROWTH * first or last < RECOVERED_LOSS * first):
        return PreflightFinding("first steps", True, text)
    return PreflightFinding(
        "first steps", False, f"{text}. The step size is too large: take a tenth of the learning rate"
    )


def _bytes(count: float) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"

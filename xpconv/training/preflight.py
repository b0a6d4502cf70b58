"""Checks before training, on copies of the model; a failed check names a likely cause."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from xpconv._validation import check_count
from xpconv.backend import Array, Backend, backend_of, copy_arrays, to_host
from xpconv.backend._memory import free_bytes, peak_bytes
from xpconv.errors import ArgumentError, PreflightError
from xpconv.nn import Sequential
from xpconv.random import as_random_stream, restore, state_of
from xpconv.testing import check_gradient
from xpconv.training._clip import clip_gradients
from xpconv.training.metrics import accuracy, l2_penalty, loss_of_equal_scores, take_rows
from xpconv.training.optim import UPDATE_RULES, check_rule, options_by_parameter
from xpconv.training.schedules import Schedule, constant

__all__ = ["PreflightFinding", "check_training"]

OVERFIT_IMAGES = 20
OVERFIT_STEPS = 1000
GRADIENT_IMAGES = 4
GRADIENT_TOLERANCE = 1e-5
MEMORY_BATCHES = 32, 64  # The memory of larger batches is extrapolated from these two sizes.
MEMORY_PASSES = 3  # For each size; the least peak counts, since some passes also allocate workspaces that are kept.
FIRST_STEPS = 20
MAX_LOSS_GROWTH = 10.0  # The loss may grow to this multiple of the first loss,
RECOVERED_LOSS = 0.9  # or, if the last loss is below this multiple,
MAX_PASSING_GROWTH = 100.0  # to this one.


@dataclass(frozen=True)
class PreflightFinding:
    """The result of one check.

    Parameters
    ----------
    name : str
    passed : bool
    text : str
        What was measured and, if the check failed, a likely cause or what to do.

    Examples
    --------
    >>> print(
    ...     PreflightFinding(
    ...         "first steps", True, "the loss goes from 2.303 to 1.2 in 20 steps"
    ...     )
    ... )
    passed  first steps: the loss goes from 2.303 to 1.2 in 20 steps
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
    param_options: Mapping[str, Mapping[str, Any]] | None = None,
    clip_norm: float | None = None,
    schedule: Schedule | None = None,
    num_steps: int = FIRST_STEPS,
    on_finding: Callable[[PreflightFinding], object] | None = None,
) -> list[PreflightFinding]:
    """Check before training that a model can be trained.

    - Its initial loss is near ``ln C`` (softmax) or ``C - 1`` (SVM) plus the L2 term.
    - A copy of it overfits 20 images.
    - Its gradients agree with finite differences in float64, for the first and the last parameter of each kind.
    - A step fits in memory, extrapolated from two small batches.
    - The loss does not diverge in the first steps. If the schedule warms up, these steps warm up faster, to the largest
      learning rate of the training.

    The model and all random streams are unchanged afterwards.

    Parameters
    ----------
    model : Sequential, or any object with ``params`` and ``loss`` that `copy.deepcopy` can copy
        As for `xpconv.Solver`.
    X : array (N, ...)
        Training images; the checks use evenly spaced ones.
    y : array (N,) of integers
    batch_size : int
        Images in a minibatch of the training.
    update_rule, optim_config, param_options, clip_norm, schedule : optional
        As for `xpconv.Solver`; without an update rule, the first steps are not checked.
    num_steps : int
        Steps of the training, over which the schedule is searched for its largest factor.
    on_finding : callable, optional
        Called with each finding as soon as its check ends.

    Returns
    -------
    list of PreflightFinding
        One for each check.

    Raises
    ------
    PreflightError
        If a check failed; the text has a line for each failed check.
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
    passed  initial loss: 2.303; expected about 2.303 (ln 10), at most 17.2
    """
    check_count("batch_size", batch_size)
    if X.shape[0] == 0:
        raise ArgumentError(f"X has shape {tuple(X.shape)}; expected (N, ...) with N at least 1")
    backend = getattr(model, "backend", None) or backend_of(next(iter(model.params.values())))
    subject = _Subject(model, X, y, backend)
    findings = []
    checks: list[Callable[[_Subject], PreflightFinding]] = [
        _initial_loss,
        _overfitting,
        _gradients,
        lambda subject: _memory(subject, batch_size),
    ]
    if update_rule is not None:
        check_rule(update_rule, optim_config or {})
        own_options = options_by_parameter(model.params, update_rule, param_options)
        configs = {name: {**(optim_config or {}), **own} for name, own in own_options.items()}
        rule = UPDATE_RULES[update_rule] if isinstance(update_rule, str) else update_rule
        factors = _factors(schedule or constant, check_count("num_steps", num_steps))
        checks.append(lambda subject: _first_steps(subject, batch_size, rule, configs, clip_norm, factors))
    for check in checks:
        with backend.current(), _unchanged_global_state():
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
        """Return a copy of the model with its own arrays and streams; `seed` fixes its stochastic layers."""
        if isinstance(self.model, Sequential):
            net = copy(self.model)
            net.dtype, net.seed, net.seed_stream = dtype or net.dtype, seed, np.random.default_rng(0)
            net.preprocessing = net.preprocessing  # the setters cast them to the net's new dtype
            net.loss_options = net.loss_options
            net.state = self._copies(net.state, dtype)
        else:
            try:
                net = deepcopy(self.model, {id(self.backend): self.backend})
            except TypeError as error:
                raise ArgumentError(
                    f"model is {self.model!r}, which cannot be copied ({error}); expected one that "
                    "copy.deepcopy takes: leave out the checks before training"
                ) from error
        net.params = self._copies(self.model.params, dtype)
        return net

    def _copies(self, arrays: Any, dtype: str | None) -> dict[str, Array]:
        return copy_arrays({name: self.backend.asarray(a, dtype) for name, a in arrays.items()})

    def images(self, count: int) -> tuple[Array, Array]:
        """Return `count` evenly spaced images and their labels. Images repeat if there are fewer than `count`."""
        rows = np.arange(count) * max(self.X.shape[0] // count, 1) % self.X.shape[0]
        return self.backend.asarray(take_rows(self.X, rows)[:count, ...]), self.backend.asarray(take_rows(self.y, rows))


@contextmanager
def _unchanged_global_state() -> Iterator[None]:
    """Restore NumPy's global random state at the end, since a model may draw from it."""
    stream = as_random_stream(None)
    state = state_of(stream)
    try:
        yield
    finally:
        restore(stream, state)


def _initial_loss(subject: _Subject) -> PreflightFinding:
    net = subject.replica()
    X, y = subject.images(100)
    scores = to_host(net.loss(X))
    found, classes = float(to_host(net.loss(X, y)[0])), scores.shape[1]
    penalty = l2_penalty(subject.model)
    # The limit is generous: with He initialisation the scores of an untrained net differ by several units.
    loss_name = getattr(net, "loss_name", "softmax")
    summed = X.shape[0] if getattr(net, "loss_options", {}).get("reduction") == "sum" else 1
    expected, formula = loss_of_equal_scores(loss_name, classes, summed)
    limit = 4 * expected + (0 if loss_name == "svm" else 8 * summed)
    formula += f" + {penalty:.2g} for L2" if penalty else ""
    text = f"{found:.4g}; expected about {expected + penalty:.4g} ({formula}), at most {limit + penalty:.3g}"
    cause = ""
    if not isfinite(found) or found - penalty > limit:
        cause = ": normalise the images, take a smaller weight_scale, or make the loss a mean over images"
    elif found - penalty < expected / 2:
        cause = ": the loss leaves out a term, or the model is already trained and needs no such check"
    return PreflightFinding("initial loss", not cause, text + cause)


def _unfrozen(net: Any) -> Any:
    """Train all layers: also those that the training keeps frozen must have right gradients."""
    if isinstance(net, Sequential):
        net.unfreeze("*")
    return net


def _overfitting(subject: _Subject) -> PreflightFinding:
    net, configs = _unfrozen(subject.replica()), {name: {"learning_rate": 3e-3} for name in subject.model.params}
    if hasattr(net, "reg"):
        net.reg = 0.0
    count = min(OVERFIT_IMAGES, subject.X.shape[0])
    X, y = subject.images(count)
    fraction, steps = 0.0, 0
    while fraction < 1 and steps < OVERFIT_STEPS:
        for _ in range(10):
            _, grads = net.loss(X, y)
            for name, w in net.params.items():
                UPDATE_RULES["adam"](w, grads[name], configs[name], in_place=True)
        steps += 10
        fraction = accuracy(net, X, y, subject.backend)
    text = f"{round(fraction * count)} of {count} images are classified correctly after {steps} steps of Adam"
    if fraction < 1:
        text += ": look for wrong gradients, dead units, images not normalised, or equal images with different labels"
    return PreflightFinding("overfitting a small batch", fraction == 1, text)


def _gradients(subject: _Subject) -> PreflightFinding:
    """Check parameters one by one, which shows in which layer the gradients become wrong."""
    net, backend = _unfrozen(subject.replica("float64", seed=0)), subject.backend
    X, y = subject.images(GRADIENT_IMAGES)
    point = _without_zeros(net.params, backend)

    def forward(*values: Array) -> tuple[Array, Any]:
        np.random.seed(0)  # A custom model may draw from the global state.
        net.params = dict(zip(point, values, strict=True))
        loss, grads = net.loss(X, y)
        return backend.asarray(loss, "float64"), grads

    def backward(dout: Array, grads: Any) -> list[Array]:
        return [dout * grads[name] for name in point]

    if float(to_host(forward(*point.values())[0])) != float(to_host(forward(*point.values())[0])):
        return PreflightFinding("gradients", True, "not checked: two passes over the same images give different losses")
    right, wrong, unknown, worst = list[str](), list[str](), list[str](), 0.0
    for name in _first_and_last_of_each_kind(point):
        try:
            worst = max(worst, check_gradient(forward, backward, point, tolerance=GRADIENT_TOLERANCE, wrt=[name]))
            right.append(name)
        except AssertionError as error:
            (unknown if "cannot be checked" in str(error) else wrong).append(name)
    note = f" ({', '.join(unknown)} could not be checked: the loss has kinks there)" if unknown else ""
    correct = ", ".join(right) or "none"
    if wrong:
        text = f"wrong for {', '.join(wrong)}, correct for {correct}{note}"
        remedy = f"look for the mistake in the backward passes of the layer of {wrong[-1]} and the layers after it"
        return PreflightFinding("gradients", False, f"{text}: {remedy}")
    return PreflightFinding("gradients", True, f"relative error of at most {worst:.1e} for {correct}{note}")


def _without_zeros(params: Mapping[str, Array], backend: Backend) -> dict[str, Array]:
    """Return copies of parameters with small random values in place of 0, since zeros may put ReLUs at their kink."""
    rng, point = np.random.default_rng(0), {}
    for name, w in params.items():
        host = to_host(w)
        point[name] = backend.asarray(host + (host == 0) * 0.01 * rng.standard_normal(host.shape))
    return point


def _first_and_last_of_each_kind(names: Collection[str]) -> list[str]:
    """Return the first and the last parameter of each kind, such as W1, b1, W3 and b3 of a three-layer net."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.split(r"\d", name)[0], []).append(name)
    wanted = {name for group in kinds.values() for name in (group[0], group[-1])}
    return [name for name in names if name in wanted]


def _memory(subject: _Subject, batch_size: int) -> PreflightFinding:
    """Extrapolate peak memory linearly from two batch sizes; workspaces do not depend on the batch size."""
    net = subject.replica()

    def peak(count: int) -> int | None:
        X, y = subject.images(count)
        peaks = [peak_bytes(subject.backend, lambda: net.loss(X, y)) for _ in range(MEMORY_PASSES)]
        return min((peak for peak in peaks if peak is not None), default=None)

    small, large = (peak(count) for count in MEMORY_BATCHES)
    free = free_bytes(subject.backend)
    if small is None or large is None or free is None:
        return PreflightFinding(
            "memory", True, f"not measured: {subject.backend.library} does not report its memory here"
        )
    per_image = max((large - small) / (MEMORY_BATCHES[1] - MEMORY_BATCHES[0]), 1.0)
    adam_memory = 2 * sum(to_host(w).nbytes for w in net.params.values())
    fixed = max(large - per_image * MEMORY_BATCHES[1], 0.0) + adam_memory
    needed, fitting = fixed + per_image * batch_size, int(max(free - fixed, 0.0) / per_image)
    images = subject.X.shape[0]
    text = (
        f"a step of {batch_size} images takes about {_format_bytes(needed)} of the {_format_bytes(free)} that are free"
    )
    if needed > free:
        return PreflightFinding(
            "memory", False, f"{text}: take a batch_size of about {fitting}, the largest that fits, or a smaller net"
        )
    most = f"about {fitting}" if fitting < images else f"all {images}"
    return PreflightFinding("memory", True, f"{text}; at most {most} images fit")


def _factors(schedule: Schedule, num_steps: int) -> list[float]:
    """Return the schedule's factors of the first steps, or, if it rises later, a faster rise to its largest factor."""
    factors = [schedule(step) for step in range(num_steps)]
    peak = max(range(num_steps), key=factors.__getitem__)
    if peak < FIRST_STEPS:
        return [schedule(step) for step in range(FIRST_STEPS)]
    return [factors[step * peak // (FIRST_STEPS - 1)] for step in range(FIRST_STEPS)]


def _first_steps(
    subject: _Subject,
    batch_size: int,
    rule: Callable[..., Any],
    options: Mapping[str, Mapping[str, Any]],
    clip_norm: float | None,
    factors: list[float],
) -> PreflightFinding:
    """Train on the same images repeatedly; their loss must fall unless the step size is too large."""
    net, losses = subject.replica(), list[float]()
    X, y = subject.images(min(batch_size, 100))  # Few images, so that this check does not run out of memory.
    configs = {name: dict(own) for name, own in options.items()}
    with np.errstate(all="ignore"):
        for factor in factors:
            loss, grads = net.loss(X, y)
            losses.append(float(to_host(loss)))
            if clip_norm is not None:
                grads = clip_gradients({name: grads[name] for name in net.params if name in grads}, clip_norm)
            for name in net.params:
                if name not in grads:  # in a frozen layer
                    continue
                if "learning_rate" in options[name]:
                    configs[name]["learning_rate"] = options[name]["learning_rate"] * factor
                net.params[name], configs[name] = rule(net.params[name], grads[name], configs[name])
    first, last = losses[0], losses[-1]
    largest = next((loss for loss in losses if not isfinite(loss)), max(losses))
    growth = MAX_PASSING_GROWTH if last < RECOVERED_LOSS * first else MAX_LOSS_GROWTH
    if largest <= growth * first:
        text = f"the loss goes from {first:.4g} to {last:.4g} in {FIRST_STEPS} steps"
        return PreflightFinding("first steps", True, text)
    rates = [float(own["learning_rate"]) for own in options.values() if "learning_rate" in own]
    rate = f" (it is {max(rates):g})" if rates else ""
    text = f"the loss rises from {first:.4g} to {largest:.4g} within {FIRST_STEPS} steps"
    return PreflightFinding("first steps", False, f"{text}: take a tenth of the learning rate{rate}")


def _format_bytes(count: float) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"

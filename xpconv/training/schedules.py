"""Learning-rate schedules: functions from the number of completed steps to a factor of the learning rate."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from functools import partial
from math import cos, pi
from typing import Any, TypeAlias

from xpconv._validation import check_choice, check_count, check_fraction, check_nonnegative
from xpconv.errors import ArgumentError

__all__ = [
    "Schedule",
    "check_schedule",
    "constant",
    "cosine",
    "decay",
    "one_cycle",
    "polynomial",
    "step_decay",
    "warmup",
]

Schedule: TypeAlias = Callable[[int], float]


def constant(step: int) -> float:
    """Keep the learning rate: 1.0 at every step.

    Examples
    --------
    >>> constant(7)
    1.0
    """
    return 1.0


def step_decay(every: int, factor: float = 0.1) -> Schedule:
    """Multiply the learning rate by `factor` once per `every` steps: ``factor ** (step // every)``.

    Parameters
    ----------
    every : int
        Steps between two multiplications, 1 or more.
    factor : float
        0 or more.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> schedule = step_decay(3, 0.5)
    >>> [schedule(step) for step in range(7)]
    [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    """
    every = check_count("every", every)
    factor = check_nonnegative("factor", factor)
    return _named(f"step_decay({every}, {factor})", _step_decay, every, factor)


def _step_decay(every: int, factor: float, step: int) -> float:
    return factor ** (step // every)


def cosine(total: int, final: float = 0.0) -> Schedule:
    """Lower the learning rate along half a cosine: ``final + (1 - final) * (1 + cos(pi * step / total)) / 2``.

    Parameters
    ----------
    total : int
        Steps until `final` is reached, 1 or more; afterwards the factor stays at `final`.
    final : float
        The last factor, 0 to 1.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017 (here without restarts).

    Examples
    --------
    >>> schedule = cosine(4)
    >>> [round(schedule(step), 3) for step in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    total = check_count("total", total)
    if not 0 <= final <= 1:
        raise ArgumentError(f"final is {final!r}; expected 0 to 1")
    return _named(f"cosine({total}, {final})", _cosine, total, final)


def _cosine(total: int, final: float, step: int) -> float:
    return final + (1 - final) * (1 + cos(pi * min(step, total) / total)) / 2


def one_cycle(
    total: int, *, peak: float = 0.3, start: float = 0.04, final: float = 4e-6, shape: str = "cosine"
) -> Schedule:
    """Raise the learning rate from `start` to its full value, then lower it to `final`, as PyTorch's OneCycleLR does.

    Step ``peak * total - 1`` has the full learning rate, and step ``total - 1`` the final one. The momentum stays as it
    is.

    Parameters
    ----------
    total : int
        Steps of the training, 1 or more; afterwards the factor stays at `final`.
    peak : float
        Fraction of the steps until the full learning rate is reached, 0 to 1.
    start, final : float
        The first and the last factor, 0 to 1. The defaults are those of PyTorch.
    shape : {"cosine", "linear"}
        Rise and fall along half a cosine each, or linearly.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    References
    ----------
    Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2018.

    Examples
    --------
    >>> schedule = one_cycle(8, peak=0.5, start=0.1, final=0.0, shape="linear")
    >>> [round(schedule(step), 3) for step in range(9)]
    [0.1, 0.4, 0.7, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    total = check_count("total", total)
    peak, start, final = (
        check_fraction(name, value) for name, value in (("peak", peak), ("start", start), ("final", final))
    )
    check_choice("shape", shape, ("cosine", "linear"))
    name = f"one_cycle({total}, peak={peak}, start={start}, final={final}, shape={shape!r})"
    return _named(name, _one_cycle, total, peak, start, final, shape == "cosine")


def _one_cycle(total: int, peak: float, start: float, final: float, cosine: bool, step: int) -> float:
    last = total - 1
    step, top = min(step, last), max(peak * total - 1, 0.0)
    if step < top:
        before, after, fraction = start, 1.0, step / top
    else:
        before, after, fraction = 1.0, final, (step - top) / (last - top) if last > top else 0.0
    if cosine:
        fraction = (1 - cos(pi * fraction)) / 2
    return before + (after - before) * fraction


def polynomial(total: int, power: float = 1.0, *, start: float = 1.0, final: float = 0.0) -> Schedule:
    """Change a factor along a power of time: ``start + (final - start) * (step / total) ** power``.

    Parameters
    ----------
    total : int
        Steps until `final` is reached, 1 or more; afterwards the factor stays at `final`.
    power : float
        0 or more; 1 changes the factor linearly.
    start, final : float
        The first and the last factor, 0 or more.

    Raises
    ------
    ArgumentError
        If an argument is out of range.

    Examples
    --------
    >>> schedule = polynomial(4, 3, start=0.0, final=0.8)
    >>> [round(schedule(step), 4) for step in range(6)]
    [0.0, 0.0125, 0.1, 0.3375, 0.8, 0.8]
    """
    total = check_count("total", total)
    power, start, final = (
        check_nonnegative(name, value) for name, value in (("power", power), ("start", start), ("final", final))
    )
    return _named(
        f"polynomial({total}, {power}, start={start}, final={final})", _polynomial, total, power, start, final
    )


def _polynomial(total: int, power: float, start: float, final: float, step: int) -> float:
    return start + (final - start) * (min(step, total) / total) ** power


def warmup(steps: int, then: Schedule = constant) -> Schedule:
    """Raise the learning rate linearly from near 0: ``min((step + 1) / steps, 1) * then(step)``.

    Parameters
    ----------
    steps : int
        Steps until the full learning rate is reached, 0 or more.
    then : callable
        The schedule that the warm-up factor multiplies.

    Raises
    ------
    ArgumentError
        If `steps` is negative.

    References
    ----------
    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 2.2.

    Examples
    --------
    >>> schedule = warmup(4, step_decay(5, 0.5))
    >>> [schedule(step) for step in range(7)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.5]
    """
    steps = check_count("steps", steps, 0)
    return _named(f"warmup({steps}, {getattr(then, '__qualname__', then)})", _warmup, steps, then)


def _warmup(steps: int, then: Schedule, step: int) -> float:
    return min((step + 1) / max(steps, 1), 1.0) * then(step)


def check_schedule(schedule: Schedule | None, lr_decay: float, optim_config: Mapping[str, Any]) -> None:
    """Raise ArgumentError unless a Solver's schedule, lr_decay and optim_config fit together.

    Examples
    --------
    >>> check_schedule(cosine(100), 1.0, {"learning_rate": 0.1})
    """
    check_nonnegative("lr_decay", lr_decay)
    if schedule is not None and (lr_decay != 1 or "learning_rate" not in optim_config):
        raise ArgumentError(
            f"schedule is given, with lr_decay {lr_decay!r} and optim_config {optim_config!r}; "
            "expected lr_decay 1 and a learning_rate in optim_config, which the schedule multiplies"
        )


def decay(configs: Iterable[MutableMapping[str, Any]], factor: float) -> None:
    """Multiply the learning rate in each configuration of an update rule.

    Examples
    --------
    >>> config = {"learning_rate": 0.5, "t": 3}
    >>> decay([config], 0.5)
    >>> config
    {'learning_rate': 0.25, 't': 3}
    """
    for config in configs:
        if "learning_rate" in config:
            # Not in place: the configurations may share one array.
            config["learning_rate"] = config["learning_rate"] * factor


def _named(name: str, function: Callable[..., float], *arguments: Any) -> Schedule:
    """Return a schedule that can be pickled, named with its arguments, which checkpoints compare by name."""
    schedule = partial(function, *arguments)
    schedule.__qualname__ = name  # type: ignore[attr-defined]
    return schedule

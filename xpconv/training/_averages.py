"""Averages of a model's weights, which are evaluated and saved in place of the latest weights."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import array_api_compat

from xpconv._deferred import as_operand, derive, settle
from xpconv._validation import check_count, check_flag, check_fraction
from xpconv.backend import Array, copy_arrays
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.ops.tiling import for_each_block
from xpconv.ops.update import move_toward
from xpconv.training.schedules import Schedule

__all__ = ["Lookahead", "WeightAverages"]

Arrays = dict[str, Array]


@dataclass(frozen=True)
class Lookahead:
    """Slow weights, which move to the parameters after every few steps; the parameters then go on from there.

    ``slow = decay * slow + (1 - decay) * params; params = slow`` (Zhang et al., "Lookahead Optimizer: k steps forward,
    1 step back", 2019).

    Parameters
    ----------
    every : int
        Steps between two moves.
    decay : float or callable
        The share of the slow weights that is kept, 0 to 1, or a schedule ``decay(step)`` of it, given the number of
        completed steps (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, section 3.4).
    statistics : bool
        Whether the running statistics of batch norm move, too.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an option is out of range.

    Examples
    --------
    >>> from xpconv.training.schedules import polynomial
    >>> (
    ...     Lookahead(5),
    ...     Lookahead(
    ...         5, polynomial(100, 3, start=0, final=0.95**5), statistics=True
    ...     ).decay(50),
    ... )
    (Lookahead(every=5, decay=0.5, statistics=False), 0.0967...)
    """

    every: int = 5
    decay: float | Schedule = 0.5
    statistics: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", check_count("lookahead", self.every))
        if not callable(self.decay):
            object.__setattr__(self, "decay", check_fraction("decay", self.decay))
        check_flag("statistics", self.statistics)

    def __repr__(self) -> str:
        decay = getattr(self.decay, "__qualname__", self.decay)
        return f"Lookahead(every={self.every}, decay={decay}, statistics={self.statistics})"

    def rate(self, step: int) -> float:
        """Return the share of the way to the parameters that the slow weights go after `step` steps."""
        return 1 - (self.decay(step) if callable(self.decay) else self.decay)


class WeightAverages:
    """An exponential moving average of the weights, and the slow weights of lookahead.

    Parameters
    ----------
    ema : float, optional
        Decay of the moving average, above 0 and below 1. Step t, counted from 0, decays by
        ``min(ema, (1 + t) / (10 + t))``, so that the initial weights are soon forgotten.
    lookahead : int or Lookahead, optional
        The number of steps stands for ``Lookahead(steps)``.

    Attributes
    ----------
    arrays : dict of str to dict of str to array
        ``ema_params`` and ``ema_state`` with `ema`, ``slow_params`` with `lookahead`, and ``slow_state`` with its
        `statistics`.

    Examples
    --------
    >>> import numpy as np
    >>> averages, params = WeightAverages(ema=0.9), {"W": np.zeros(2)}
    >>> averages.start(params, {})
    >>> params["W"] += 1
    >>> averages.update(params, {}, step=0)
    >>> averages.arrays["ema_params"]
    {'W': array([0.9, 0.9])}
    """

    def __init__(self, ema: float | None = None, lookahead: int | Lookahead | None = None) -> None:
        self.ema = None if ema is None else _check_decay(ema)
        self.lookahead = lookahead if lookahead is None or isinstance(lookahead, Lookahead) else Lookahead(lookahead)
        self.arrays: dict[str, Arrays] = {}

    def start(self, params: Mapping[str, Array], state: Mapping[str, Array]) -> None:
        """Let all averages be copies of the present weights."""
        if self.ema is not None:
            self.arrays |= {"ema_params": copy_arrays(dict(params)), "ema_state": copy_arrays(_statistics(state))}
        if self.lookahead is not None:
            self.arrays["slow_params"] = copy_arrays(dict(params))
            if self.lookahead.statistics:
                self.arrays["slow_state"] = copy_arrays(_statistics(state))

    def update(
        self,
        params: MutableMapping[str, Array],
        state: MutableMapping[str, Array],
        step: int,
        where: Array | bool = True,
    ) -> None:
        """Follow the weights after a step, unless `where`, True or a boolean array () on the device, is False.

        With lookahead, some steps also replace `params`, and perhaps the statistics in `state`, by the slow weights.
        """
        if self.lookahead is not None and settle(derive(self._lookahead_ends, step)):
            rate = derive(self.lookahead.rate, step + 1) if callable(self.lookahead.decay) else self.lookahead.rate(0)
            _move(self.arrays["slow_params"], params, rate, where)
            _replace(params, self.arrays["slow_params"], where)
            _move(self.arrays.get("slow_state", {}), state, rate, where)
            _replace(state, self.arrays.get("slow_state", {}), where)
        if self.ema is not None:
            rate = derive(self._ema_rate, step)
            _move(self.arrays["ema_params"], params, rate, where)
            _move(self.arrays["ema_state"], state, rate, where)

    def _lookahead_ends(self, step: int) -> bool:
        return self.lookahead is not None and (step + 1) % self.lookahead.every == 0

    def _ema_rate(self, step: int) -> float:
        return 1 - min(self.ema or 0.0, (1 + step) / (10 + step))

    def evaluated(self, params: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        """Return the weights to evaluate: the moving average, or the slow weights, or those given if there is none."""
        if self.ema is not None:
            return self.arrays["ema_params"], {**state, **self.arrays["ema_state"]}
        return self.arrays.get("slow_params", params), {**state, **self.arrays.get("slow_state", {})}

    def configuration(self) -> dict[str, Any]:
        """Return the options as data for JSON; a plain lookahead is its number of steps."""
        slow = self.lookahead
        plain = slow is not None and slow == Lookahead(slow.every)
        return {"ema": self.ema, "lookahead": slow.every if slow is not None and plain else slow}


def _statistics(state: Mapping[str, Array]) -> Arrays:
    """Return the arrays of a state that can be averaged."""
    return {
        name: a for name, a in state.items() if array_api_compat.array_namespace(a).isdtype(a.dtype, "real floating")
    }


def _replace(targets: MutableMapping[str, Array], averages: Arrays, where: Array | bool) -> None:
    """Replace entries of `targets` by copies of their averages."""
    for name, average in averages.items():
        xp = array_api_compat.array_namespace(average)
        targets[name] = xp.asarray(average, copy=True) if where is True else xp.where(where, average, targets[name])


def _move(averages: Arrays, targets: Mapping[str, Array], rate: float, where: Array | bool) -> None:
    """Move each average toward its target in place."""
    for name, average in averages.items():
        target, own_rate = targets[name], as_operand(rate, average)
        if where is not True:
            own_rate = rate * array_api_compat.array_namespace(average).astype(where, average.dtype)
        for_each_block(average, target, update=lambda a, b, rate=own_rate: move_toward(a, b, rate))


def _check_decay(ema: Any) -> float:
    if isinstance(ema, bool) or not isinstance(ema, int | float):
        raise ArgumentTypeError(f"ema is {ema!r}; expected a number above 0 and below 1")
    if not 0 < ema < 1:
        raise ArgumentError(f"ema is {ema!r}; expected a number above 0 and below 1")
    return float(ema)

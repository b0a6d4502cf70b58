"""Averages of a model's weights, which are evaluated and saved in place of the latest weights."""

from collections.abc import Mapping, MutableMapping
from typing import Any

import array_api_compat

from xpconv._deferred import as_operand, derive, settle
from xpconv._validation import check_count
from xpconv.backend import Array, copy_arrays
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.ops.tiling import for_each_block
from xpconv.ops.update import move_toward

__all__ = ["WeightAverages"]

LOOKAHEAD_RATE = 0.5

Arrays = dict[str, Array]


class WeightAverages:
    """An exponential moving average of the weights, and the slow weights of lookahead.

    Parameters
    ----------
    ema : float, optional
        Decay of the moving average, above 0 and below 1. Step t, counted from 0, decays by
        ``min(ema, (1 + t) / (10 + t))``, so that the initial weights are soon forgotten.
    lookahead : int, optional
        Steps between two moves of the slow weights, which go half-way to the fast ones; these continue from there.

    Attributes
    ----------
    arrays : dict of str to dict of str to array
        ``ema_params`` and ``ema_state`` with `ema`, ``slow_params`` with `lookahead`.

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

    def __init__(self, ema: float | None = None, lookahead: int | None = None) -> None:
        self.ema = None if ema is None else _check_decay(ema)
        self.lookahead = None if lookahead is None else check_count("lookahead", lookahead)
        self.arrays: dict[str, Arrays] = {}

    def start(self, params: Mapping[str, Array], state: Mapping[str, Array]) -> None:
        """Let all averages be copies of the present weights."""
        if self.ema is not None:
            statistics = {name: a for name, a in state.items() if _is_real(a)}
            self.arrays |= {"ema_params": copy_arrays(dict(params)), "ema_state": copy_arrays(statistics)}
        if self.lookahead is not None:
            self.arrays["slow_params"] = copy_arrays(dict(params))

    def update(
        self,
        params: MutableMapping[str, Array],
        state: Mapping[str, Array],
        step: int,
        where: Array | bool = True,
    ) -> None:
        """Follow the weights after a step, unless `where`, True or a boolean array () on the device, is False.

        With lookahead, each `lookahead`-th step also replaces `params` by the slow weights.
        """
        if self.lookahead is not None and settle(derive(self._lookahead_ends, step)):
            slow = self.arrays["slow_params"]
            _move(slow, params, LOOKAHEAD_RATE, where)
            for name, w in params.items():
                xp = array_api_compat.array_namespace(w)
                params[name] = xp.asarray(slow[name], copy=True) if where is True else xp.where(where, slow[name], w)
        if self.ema is not None:
            rate = derive(self._ema_rate, step)
            _move(self.arrays["ema_params"], params, rate, where)
            _move(self.arrays["ema_state"], state, rate, where)

    def _lookahead_ends(self, step: int) -> bool:
        return self.lookahead is not None and (step + 1) % self.lookahead == 0

    def _ema_rate(self, step: int) -> float:
        return 1 - min(self.ema or 0.0, (1 + step) / (10 + step))

    def evaluated(self, params: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        """Return the weights to evaluate: the moving average, or the slow weights, or those given if there is none."""
        if self.ema is not None:
            return self.arrays["ema_params"], {**state, **self.arrays["ema_state"]}
        return self.arrays.get("slow_params", params), state


def _is_real(a: Array) -> bool:
    return bool(array_api_compat.array_namespace(a).isdtype(a.dtype, "real floating"))


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

"""The assignment's update rules, ``rule(w, dw, config=None) -> (next_w, config)``: those of `xpconv.training.optim`.

Parameter and gradient may be passed as ``x`` and ``dx``, their names in some editions. A rule that a notebook assigns
to this module is found by `Solver` under its name.
"""

from collections.abc import Callable, MutableMapping
from typing import Any

from xpconv.backend import Array
from xpconv.errors import ArgumentTypeError
from xpconv.training.optim import UPDATE_RULES

__all__ = ["adam", "rmsprop", "sgd", "sgd_momentum"]

Config = MutableMapping[str, Any]

DOCSTRING = """Return the next value of a parameter, and the config; see `xpconv.training.optim.{name}`.

    Parameters
    ----------
    w, dw : array of one shape
        Parameter and gradient.
    config : dict, optional
        Options and memory of the rule; missing entries get defaults.
    x, dx : array
        Other names of `w` and `dw`.

    Raises
    ------
    ArgumentTypeError
        If the parameter or the gradient is missing or is passed twice.

    Examples
    --------
    >>> import numpy as np
    >>> next_w, config = {name}(np.ones(3), np.ones(3), {{"learning_rate": 0.5}})
    >>> next_w.shape, config["learning_rate"]
    ((3,), 0.5)
    """


def _course_rule(name: str) -> Callable[..., tuple[Array, Config]]:
    """Return the update rule of this name, with the argument names of all editions."""

    def rule(
        w: Array | None = None,
        dw: Array | None = None,
        config: Config | None = None,
        *,
        x: Array | None = None,
        dx: Array | None = None,
    ) -> tuple[Array, Config]:
        if (w is None) == (x is None) or (dw is None) == (dx is None):
            raise ArgumentTypeError(
                f"{name} takes a parameter and its gradient: {name}(w, dw) or {name}(x, dx), each of them once"
            )
        decayed = config is not None and "weight_decay" in config
        next_w, config = UPDATE_RULES[name](x if w is None else w, dx if dw is None else dw, config)
        if not decayed:
            config.pop("weight_decay", None)  # The course's configs have no such option.
        return next_w, config

    rule.__name__ = rule.__qualname__ = name
    rule.fast_name = name  # type: ignore[attr-defined]  # the rule that Solver updates in place with
    rule.__doc__ = DOCSTRING.format(name=name)
    return rule


sgd, sgd_momentum = _course_rule("sgd"), _course_rule("sgd_momentum")
rmsprop, adam = _course_rule("rmsprop"), _course_rule("adam")

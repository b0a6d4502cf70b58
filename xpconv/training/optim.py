"""Update rules: each is a function ``rule(w, dw, config) -> (next_w, config)`` that can also update in place.

`config` is a dict with the rule's options and its memory, such as Adam's averages; missing entries get defaults. If
the option `where`, True or a boolean array () on the device, is False, the parameter and `config` are unchanged.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from fnmatch import fnmatchcase
from functools import wraps
from inspect import cleandoc
from numbers import Real
from typing import Any

import array_api_compat

from xpconv._deferred import Deferred, as_operand, derive, settle
from xpconv._validation import check_nonnegative
from xpconv.backend import Array, array_namespace
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.ops.tiling import for_each_block, matmul, sum_in_blocks, sum_of_squares
from xpconv.ops.update import (
    adam_numbers,
    adam_step,
    copy_all,
    ignore_underflow,
    lion_step,
    momentum_step,
    nesterov_direction,
    nesterov_step,
    restore_unless,
    rmsprop_step,
    sgd_step,
)

__all__ = [
    "UPDATE_RULES",
    "adam",
    "adamw",
    "check_rule",
    "check_writeable",
    "default_options",
    "lion",
    "muon",
    "options_by_parameter",
    "rmsprop",
    "sgd",
    "sgd_momentum",
    "sgd_nesterov",
]

COUNTS = {"t"}  # Options that count the steps of a rule.
_FLUSH_INTERVAL = 16  # steps of Adam; see `flush_denormals`
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan's quintic polynomial
_NEWTON_SCHULZ_STEPS = 5

PARAMETERS = """Parameters
----------
w, dw : array of the same shape
    Parameter and gradient.
config : dict, optional
    {options}.
in_place : bool
    Write to `w` and to the arrays in `config`; otherwise they are copied first.
where : bool or boolean array () on the device
    If it is False, nothing changes.

Returns
-------
next_w : array
config : dict
    The same dict, updated.

Examples
"""

Config = MutableMapping[str, Any]
Rule = Callable[..., tuple[Array, Config]]


def _update_rule(
    *memory: str, elementwise: bool = True, **defaults: float
) -> Callable[[Callable[[Config], Callable[..., None]]], Rule]:
    """Turn ``step(config) -> update(w, dw, *arrays)`` into a rule with these `memory` arrays and option defaults.

    An `elementwise` update may be called for blocks of the arrays. The rule's docstring is that of the step and the
    description of the parameters, which all rules share.
    """

    def decorate(step: Callable[[Config], Callable[..., None]]) -> Rule:
        @wraps(step, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
        def rule(
            w: Array, dw: Array, config: Config | None = None, *, in_place: bool = False, where: Array | bool = True
        ) -> tuple[Array, Config]:
            config = {} if config is None else config
            _check_gradient(w, dw)
            for name, value in defaults.items():
                config[name] = _option(name, config.get(name, value))
            with ignore_underflow():  # The square of a small gradient may become 0.
                return _apply(blocked, memory, w, dw, config, in_place, where)

        def blocked(w: Array, dw: Array, *arrays: Array, config: Config) -> None:
            update = step(config)
            if elementwise:
                for_each_block(w, dw, *arrays, update=update)
            else:
                update(w, dw, *arrays)

        del rule.__wrapped__  # otherwise help() would show the arguments of `step`
        options = [f"``{name}`` ({value:g})" for name, value in defaults.items()]
        described = PARAMETERS.format(options=", ".join([*options, *(f"``{name}`` (zeros)" for name in memory)]))
        rule.__doc__ = cleandoc(step.__doc__ or "").replace("Examples\n", described)
        rule.defaults, rule.options = defaults, (*defaults, *memory)  # type: ignore[attr-defined]
        return rule

    return decorate


def _check_gradient(w: Array, dw: Array) -> None:
    array_namespace(w=w, dw=dw)  # raises an error if library or device differs
    if tuple(w.shape) != tuple(dw.shape):
        raise ArgumentError(f"dw has shape {tuple(dw.shape)}; expected that of w, {tuple(w.shape)}")


def _apply(
    update: Callable[..., None],
    memory: Collection[str],
    w: Array,
    dw: Array,
    config: Config,
    in_place: bool,
    where: Array | bool,
) -> tuple[Array, Config]:
    """Update the parameter and the `memory` arrays in `config`, or copies of them if not `in_place`."""
    xp = array_namespace(w=w, dw=dw)
    for name in memory:
        if config.get(name) is None:
            config[name] = xp.zeros_like(w)
        elif in_place:
            check_writeable(name, config[name])
        else:
            config[name] = xp.asarray(config[name], copy=True)
    if in_place:
        check_writeable("w", w)
    else:
        w = xp.asarray(w, copy=True)
    arrays = [w, *(config[name] for name in memory)]
    if where is True:
        update(w, dw, *arrays[1:], config=config)
        return w, config

    copies, numbers = copy_all(*arrays), dict(config)
    for name, value in numbers.items():
        if name in COUNTS and not array_api_compat.is_array_api_obj(value):  # It counts the steps that are not skipped.
            config[name] = numbers[name] = xp.asarray(float(value), dtype=xp.float64, device=array_api_compat.device(w))
    update(w, dw, *arrays[1:], config=config)
    restore_unless(xp.asarray(where), arrays, copies)
    for name in COUNTS & numbers.keys():
        config[name] = xp.where(where, config[name], numbers[name])
    return w, config


def check_writeable(name: str, a: Array) -> None:
    """Raise an error if an array cannot be updated in place.

    Examples
    --------
    >>> import numpy as np
    >>> check_writeable("w", np.broadcast_to(1.0, (2, 3)))
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: w is read-only; expected an array that can be updated in place: pass a copy
    """
    if not getattr(getattr(a, "flags", None), "writeable", True):
        raise ArgumentError(f"{name} is read-only; expected an array that can be updated in place: pass a copy")
    if getattr(a, "requires_grad", False):
        raise ArgumentError(
            f"{name} requires gradients of torch; expected an array that can be updated in place: pass {name}.detach()"
        )


def check_rule(
    update_rule: str | Callable[..., Any], config: Mapping[str, Any], *, argument: str = "optim_config"
) -> None:
    """Raise an error if the update rule is unknown, has no option of a given name, or an option has an invalid value.

    Examples
    --------
    >>> check_rule("sgd", {"learning_rate": 0.1})
    """
    if not isinstance(update_rule, str):
        return
    if update_rule not in UPDATE_RULES:
        raise ArgumentError(
            f"update_rule is {update_rule!r}; expected one of {', '.join(UPDATE_RULES)} "
            "or a function rule(w, dw, config)"
        )
    known = UPDATE_RULES[update_rule].options  # type: ignore[attr-defined]
    if unknown := [name for name in config if name not in known]:
        raise ArgumentError(
            f"{argument} has {', '.join(map(repr, unknown))}; expected options of {update_rule}: {', '.join(known)}"
        )
    for name in default_options(update_rule):
        if name in config:
            _option(name, config[name])


def options_by_parameter(
    names: Iterable[str],
    update_rule: str | Callable[..., Any],
    param_options: Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, dict[str, Any]]:
    """Return the options that patterns give each parameter.

    Parameters
    ----------
    names : iterable of str
        The names of all parameters.
    update_rule : str or callable
    param_options : mapping of str to mapping
        Options of the update rule by pattern: names of parameters, with ``*`` for any characters and ``?`` for one,
        joined by ``|``. If several patterns match a parameter, options of later ones replace those of earlier ones.

    Raises
    ------
    ArgumentError
        If a pattern matches no parameter, or an option is unknown or has an invalid value.

    Examples
    --------
    >>> options_by_parameter(
    ...     ["W1", "b1", "W2"],
    ...     "sgd",
    ...     {"b*|W2": {"weight_decay": 0}, "W2": {"learning_rate": 1}},
    ... )
    {'W1': {}, 'b1': {'weight_decay': 0}, 'W2': {'weight_decay': 0, 'learning_rate': 1}}
    """
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    if not isinstance(param_options or {}, Mapping):
        raise ArgumentTypeError(f"param_options is {param_options!r}; expected a dict of options by pattern")
    for pattern, given in (param_options or {}).items():
        if not isinstance(pattern, str) or not isinstance(given, Mapping):
            raise ArgumentTypeError(
                f"param_options has {pattern!r}: {given!r}; expected a pattern, such as 'b*', and a dict of options"
            )
        check_rule(update_rule, given, argument=f"param_options[{pattern!r}]")
        matching = [name for name in options if any(fnmatchcase(name, part) for part in pattern.split("|"))]
        if not matching:
            raise ArgumentError(
                f"param_options has the pattern {pattern!r}, which matches no parameter; expected one that matches "
                f"some of {', '.join(options)}"
            )
        for name in matching:
            options[name].update(given)
    return options


def default_options(update_rule: str | Callable[..., Any]) -> dict[str, float]:
    """Return the defaults of a built-in rule's options; an empty dict for a custom rule.

    Examples
    --------
    >>> default_options("sgd_momentum")
    {'learning_rate': 0.01, 'momentum': 0.9, 'weight_decay': 0}
    """
    return dict(UPDATE_RULES[update_rule].defaults) if isinstance(update_rule, str) else {}  # type: ignore[attr-defined]


def _option(name: str, value: Any) -> Any:
    """Check an option and return it as a Python number; return an array, such as a count on a device, unchanged."""
    if isinstance(value, bool) or not isinstance(value, Real):
        if array_api_compat.is_array_api_obj(value) or isinstance(value, Deferred):
            return value
        raise ArgumentTypeError(f"{name} is {value!r}; expected a number")
    if name in ("momentum", "decay_rate", "beta1", "beta2") and not 0 <= float(value) < 1:
        raise ArgumentError(f"{name} is {value!r}; expected 0 or more and below 1")
    check_nonnegative(name, value)
    return value.item() if hasattr(value, "item") else value


def _penalised(w: Array, dw: Array, config: Config) -> Array:
    """Return the gradient with that of the penalty ``weight_decay / 2 * sum(w**2)``: coupled weight decay."""
    return dw + config["weight_decay"] * w if config["weight_decay"] else dw


def _decay(w: Array, config: Config) -> None:
    """Shrink the parameter in place, whatever its gradient is: decoupled weight decay."""
    if config["weight_decay"]:
        w *= as_operand(1 - config["learning_rate"] * config["weight_decay"], w)


@_update_rule(learning_rate=1e-2, weight_decay=0)
def sgd(config: Config) -> Callable[..., None]:
    """Step down the gradient: ``w -= learning_rate * dw``.

    ``weight_decay`` is coupled: ``dw += weight_decay * w`` comes first.

    Examples
    --------
    >>> import numpy as np
    >>> sgd(np.ones(2), np.ones(2), {"learning_rate": 0.25})[0]
    array([0.75, 0.75])
    """

    def update(w: Array, dw: Array) -> None:
        sgd_step(w, dw, as_operand(config["learning_rate"], w), config["weight_decay"])

    return update


@_update_rule("velocity", learning_rate=1e-2, momentum=0.9, weight_decay=0)
def sgd_momentum(config: Config) -> Callable[..., None]:
    """Step along a decaying sum of gradients: ``v = momentum * v - learning_rate * dw; w += v``.

    ``weight_decay`` is coupled: ``dw += weight_decay * w`` comes first.

    Examples
    --------
    >>> import numpy as np
    >>> w, config = sgd_momentum(np.ones(2), np.ones(2), {"learning_rate": 0.25})
    >>> config["velocity"]
    array([-0.25, -0.25])
    """

    def update(w: Array, dw: Array, velocity: Array) -> None:
        rate = as_operand(config["learning_rate"], w)
        momentum_step(w, dw, velocity, rate, config["momentum"], config["weight_decay"])

    return update


@_update_rule("velocity", learning_rate=1e-2, momentum=0.9, weight_decay=0)
def sgd_nesterov(config: Config) -> Callable[..., None]:
    """Step along the gradient that momentum anticipates, as PyTorch's ``SGD(nesterov=True)`` does.

    ``v = momentum * v + dw; w -= learning_rate * (dw + momentum * v)``: unlike that of `sgd_momentum`, the velocity
    does not include the learning rate. ``weight_decay`` is coupled: ``dw += weight_decay * w`` comes first (Sutskever
    et al., "On the importance of initialization and momentum in deep learning", 2013).

    Examples
    --------
    >>> import numpy as np
    >>> w, config = sgd_nesterov(np.ones(2), np.ones(2), {"learning_rate": 0.25})
    >>> w, config["velocity"]
    (array([0.525, 0.525]), array([1., 1.]))
    """

    def update(w: Array, dw: Array, velocity: Array) -> None:
        rate = as_operand(config["learning_rate"], w)
        nesterov_step(w, dw, velocity, rate, config["momentum"], config["weight_decay"])

    return update


@_update_rule("cache", learning_rate=1e-2, decay_rate=0.99, epsilon=1e-8, weight_decay=0)
def rmsprop(config: Config) -> Callable[..., None]:
    """Divide the step by the gradient's recent magnitude: ``w -= learning_rate * dw / (sqrt(cache) + epsilon)``.

    ``cache = decay_rate * cache + (1 - decay_rate) * dw**2`` comes first (Tieleman and Hinton, 2012). ``weight_decay``
    is coupled: ``dw += weight_decay * w`` comes before that.

    Examples
    --------
    >>> import numpy as np
    >>> rmsprop(np.ones(2), np.ones(2))[0].round(3)
    array([0.9, 0.9])
    """

    def update(w: Array, dw: Array, cache: Array) -> None:
        rate = as_operand(config["learning_rate"], w)
        rmsprop_step(w, dw, cache, config["decay_rate"], rate, config["epsilon"], config["weight_decay"])

    return update


@_update_rule("m", "v", learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, t=0, weight_decay=0)
def adam(config: Config) -> Callable[..., None]:
    """Step along the gradient's running mean divided by its running RMS, both corrected for their bias towards 0.

    ``m = beta1 * m + (1 - beta1) * dw``, ``v = beta2 * v + (1 - beta2) * dw**2``,
    ``w -= learning_rate * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + epsilon)`` (Kingma and Ba, 2015), where
    ``t`` is the number of steps taken. ``weight_decay`` is coupled: ``dw += weight_decay * w`` comes first.

    Examples
    --------
    >>> import numpy as np
    >>> w, config = adam(np.ones(2), np.ones(2))
    >>> w.round(6), config["t"]
    (array([0.999, 0.999]), 1)
    """
    adam_update = _adam_update(config, decay=1.0)
    return lambda w, dw, m, v: adam_update(w, _penalised(w, dw, config), m, v)


@_update_rule("m", "v", learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, t=0, weight_decay=1e-2)
def adamw(config: Config) -> Callable[..., None]:
    """Step as `adam` does, with decoupled weight decay: ``w *= 1 - learning_rate * weight_decay`` comes first.

    The decay is thus the same for all weights, while that of `adam` is divided by the RMS of each weight's gradient
    (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019). As in PyTorch, the learning rate multiplies
    the decay, and a schedule so changes both.

    Examples
    --------
    >>> import numpy as np
    >>> adamw(np.ones(2), np.ones(2), {"weight_decay": 10})[0].round(6)
    array([0.989, 0.989])
    """
    return _adam_update(config, decay=1 - config["learning_rate"] * config["weight_decay"])


def _adam_update(config: Config, decay: float) -> Callable[..., None]:
    """Count a step of Adam, and return the update, which multiplies the parameter by `decay` first."""
    rate, beta1, beta2, epsilon, t = (config[name] for name in ("learning_rate", "beta1", "beta2", "epsilon", "t"))
    # The bias corrections are folded into the step size and epsilon, which saves passes over the arrays.
    if array_api_compat.is_array_api_obj(t):  # after an update with `where`
        config["t"], step_size, epsilon = adam_numbers(t, config["m"], as_operand(rate, t), beta1, beta2, epsilon)
        flush = True
    else:
        config["t"] = t = t + 1
        root = (1 - beta2**t) ** 0.5
        step_size, epsilon = rate * root / (1 - beta1**t), epsilon * root
        flush = settle(derive(lambda t: t % _FLUSH_INTERVAL == 0, t))

    def update(w: Array, dw: Array, m: Array, v: Array) -> None:
        step, eps, factor = (as_operand(number, w) for number in (step_size, epsilon, decay))
        adam_step(w, dw, m, v, beta1, beta2, step, eps, factor, flush)

    return update


@_update_rule("m", learning_rate=1e-4, beta1=0.9, beta2=0.99, weight_decay=0)
def lion(config: Config) -> Callable[..., None]:
    """Step by the learning rate along the sign of a running mean: ``w -= learning_rate * sign(c)``.

    ``c = beta1 * m + (1 - beta1) * dw`` comes first, and ``m = beta2 * m + (1 - beta2) * dw`` last (Chen et al.,
    "Symbolic Discovery of Optimization Algorithms", 2023). ``weight_decay`` is decoupled:
    ``w *= 1 - learning_rate * weight_decay`` comes before the step. The paper takes a learning rate 3 to 10 times
    smaller than that of `adamw`, and a weight decay larger by the same factor.

    Examples
    --------
    >>> import numpy as np
    >>> lion(np.ones(2), np.array([3.0, -0.1]), {"learning_rate": 0.25})[0]
    array([0.75, 1.25])
    """

    def update(w: Array, dw: Array, m: Array) -> None:
        _decay(w, config)
        lion_step(w, dw, m, config["beta1"], config["beta2"], as_operand(config["learning_rate"], w))

    return update


@_update_rule("velocity", elementwise=False, learning_rate=2e-2, momentum=0.95, weight_decay=0)
def muon(config: Config) -> Callable[..., None]:
    """Step along a nearly orthogonal matrix, made from Nesterov's direction by five Newton-Schulz steps.

    For filters and matrices, ``v = momentum * v + dw``, and ``X = dw + momentum * v``, as a matrix (F, C * KH * KW) for
    filters, is divided by its Frobenius norm. Five steps of
    ``X = 3.4445 * X - 4.775 * X @ X.T @ X + 2.0315 * X @ X.T @ X @ X.T @ X`` bring its singular values near 1 (0.7 to
    1.2). Then ``w -= learning_rate * sqrt(max(1, outputs / inputs)) * X``, where ``outputs / inputs`` is
    ``F / (C * KH * KW)`` for filters, and ``M / D`` for the weights (D, M) of an affine layer (Jordan, "Muon: An
    optimizer for hidden layers in neural networks", 2024).

    Parameters with fewer than 2 dimensions are updated as by `sgd_nesterov`. ``weight_decay`` is decoupled for all:
    ``w *= 1 - learning_rate * weight_decay`` comes first.

    Examples
    --------
    >>> import numpy as np
    >>> w, config = muon(
    ...     np.zeros((2, 2)), np.array([[1.0, 2.0], [0.0, 3.0]]), {"learning_rate": 1.0}
    ... )
    >>> np.linalg.svd(w)[1].round(1)
    array([0.7, 0.7])
    """

    def update(w: Array, dw: Array, velocity: Array) -> None:
        _decay(w, config)
        if w.ndim < 2:
            for_each_block(w, dw, velocity, update=step_along)
            return
        xp = array_api_compat.array_namespace(w)
        direction = xp.empty_like(w)
        for_each_block(direction, dw, velocity, update=write_direction)
        matrix = xp.reshape(direction, (w.shape[0], -1))
        rows, columns = matrix.shape
        ratio = columns / rows if w.ndim == 2 else rows / columns
        rate = config["learning_rate"] * max(1.0, ratio) ** 0.5
        w -= rate * xp.reshape(_orthogonalised(matrix), w.shape)

    def step_along(w: Array, dw: Array, velocity: Array) -> None:
        nesterov_step(w, dw, velocity, as_operand(config["learning_rate"], w), config["momentum"], 0.0)

    def write_direction(direction: Array, dw: Array, velocity: Array) -> None:
        nesterov_direction(direction, dw, velocity, config["momentum"])

    return update


def _orthogonalised(matrix: Array) -> Array:
    """Return a matrix with the same singular vectors, with singular values near 1, by Newton-Schulz steps."""
    a, b, c = _NEWTON_SCHULZ
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (sum_in_blocks(matrix, term=sum_of_squares) ** 0.5 + 1e-7)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = matmul(x, x.T)
        x = a * x + matmul(b * gram + c * matmul(gram, gram), x)
    return x if wide else x.T


UPDATE_RULES: dict[str, Rule] = {
    "sgd": sgd,
    "sgd_momentum": sgd_momentum,
    "sgd_nesterov": sgd_nesterov,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": adamw,
    "lion": lion,
    "muon": muon,
}

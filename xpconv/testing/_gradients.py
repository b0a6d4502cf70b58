"""Numerical gradients, and checks of backward passes against them."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import Array, backend_of, to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.testing._equivalence import describe_array

__all__ = ["check_gradient", "eval_numerical_gradient", "eval_numerical_gradient_array", "rel_error"]

_DRAWS = 8


def rel_error(a: Any, b: Any) -> float:
    """Return the largest relative error, ``max(|a - b| / max(1e-8, |a| + |b|))``.

    Parameters
    ----------
    a, b : array or number
        Arrays of the same shape, of any library and on any device.

    Raises
    ------
    ArgumentError
        If the shapes differ: broadcasting would hide a gradient of the wrong shape.

    Examples
    --------
    >>> rel_error([1.0, 2.0], [1.0, 2.0])
    0.0
    """
    a, b = (np.asarray(host, np.result_type(host, np.float64)) for host in (to_host(a), to_host(b)))
    if a.shape != b.shape:
        raise ArgumentError(f"a has shape {a.shape} but b has {b.shape}; expected equal shapes: reshape one of them")
    return float(np.max(np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b)), initial=0.0))


def eval_numerical_gradient(
    f: Callable[[Any], Any], x: np.ndarray, verbose: bool = False, h: float = 1e-5
) -> np.ndarray:
    """Return the gradient of a scalar function by central differences, one element of `x` at a time.

    ``grad[i] = (f(x + h e_i) - f(x - h e_i)) / 2h``

    Parameters
    ----------
    f : callable
        Takes `x` and returns a number, or an array with one element on any device.
    x : numpy.ndarray
        Changed in place while `f` runs, and restored afterwards, also if `f` raises.
    verbose : bool
        Whether to print each element's index and slope.
    h : float
        The step, in the units of `x`.

    Raises
    ------
    ArgumentTypeError
        If `x` is not a NumPy array of floats: other dtypes would lose a small step.

    Examples
    --------
    >>> eval_numerical_gradient(lambda x: (x**2).sum(), np.array([1.0, -3.0])).round(6)
    array([ 2., -6.])
    """
    grad = np.zeros_like(x)
    for index, above, below in _perturbed(f, x, h):
        grad[index] = (above.item() - below.item()) / (2 * h)
        if verbose:
            print(index, grad[index])
    return grad


def eval_numerical_gradient_array(f: Callable[[Any], Any], x: np.ndarray, df: Array, h: float = 1e-5) -> np.ndarray:
    """Return the gradient of ``sum(f(x) * df)`` by central differences, one element of `x` at a time.

    Parameters
    ----------
    f : callable
        Takes `x` and returns an array with the shape of `df`, on any device.
    x, h : numpy.ndarray, float
        As for `eval_numerical_gradient`, which raises the same error.
    df : array
        The upstream gradient.

    Examples
    --------
    >>> eval_numerical_gradient_array(
    ...     lambda x: x**2, np.array([1.0, -3.0]), np.array([1.0, 10.0])
    ... ).round(6)
    array([  2., -60.])
    """
    grad, df = np.zeros_like(x), to_host(df)
    for index, above, below in _perturbed(f, x, h):
        grad[index] = np.sum((above - below) * df) / (2 * h)
    return grad


def _perturbed(f: Callable[[Any], Any], x: np.ndarray, h: float) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yield each index of `x`, and the values of f if `x` is a step higher and a step lower there."""
    if not isinstance(x, np.ndarray) or not np.issubdtype(x.dtype, np.floating):
        raise ArgumentTypeError(
            f"x is {getattr(x, 'dtype', type(x).__name__)}; expected a NumPy array of floats: "
            "pass to_host(x).astype('float64')"
        )

    def at(index: tuple[int, ...], value: Any) -> np.ndarray:
        old = x[index]
        try:
            x[index] = value
            return np.array(to_host(f(x)))  # a copy: f may return x, or the same buffer each time
        finally:
            x[index] = old

    for index in np.ndindex(x.shape):
        yield index, at(index, x[index] + h), at(index, x[index] - h)


def _copy(value: Any) -> Any:
    """Return a copy of an array, or the value itself if it is not an array."""
    if isinstance(value, np.generic) or not array_api_compat.is_array_api_obj(value):
        return value
    return array_api_compat.array_namespace(value).asarray(value, copy=True)


def check_gradient(
    forward: Callable[..., tuple[Array, Any]],
    backward: Callable[[Any, Any], Any],
    inputs: Sequence[Array] | Mapping[str, Array],
    *,
    h: float = 1e-6,
    tolerance: float = 1e-6,
    rng: int | np.random.Generator = 0,
    wrt: Iterable[str] | None = None,
) -> float:
    """Check a layer's backward pass on any backend by random projection; return the worst relative error.

    For a random ``dout`` and, for each input, a random direction ``v`` it compares
    ``<dout, (f(x + h v) - f(x - h v)) / 2h>`` with ``<gradient, v>``. That takes two forward passes per input of any
    size, and two more with half the step. If the two slopes disagree, a ReLU or a maximum switches between the
    points: another direction is drawn and the step is halved. A gradient must also have its input's shape, dtype
    and device.

    Parameters
    ----------
    forward : callable
        ``forward(*inputs) -> (out, cache)``.
    backward : callable
        ``backward(dout, cache) -> gradients``, one for each input, in order; a single one need not be in a tuple.
    inputs : sequence or mapping of str to array
        float64 arrays of one backend, named by the mapping's keys or by forward's parameters. An input may be
        None (a missing bias) if its gradient is.
    h : float
        The step, in the units of the inputs.
    tolerance : float
        The largest error that passes, relative to the largest of the projections and the gradient's norm, or the
        rounding error if that is larger.
    rng : int or numpy.random.Generator
        Draws dout and the directions, on the host.
    wrt : iterable of str, optional
        The names of the inputs to check; all unless given. The others may be of any type.

    Raises
    ------
    AssertionError
        If a gradient is wrong; the text names the input, both values and the relative error.
    ArgumentTypeError
        If an input is not float64.
    ArgumentError
        If `wrt` has a name that is not an input's, or there is no array to check.

    Examples
    --------
    >>> check_gradient(
    ...     lambda x: (x * x, x), lambda dout, x: 2 * x * dout, [np.array([1.0, 2.0])]
    ... ) < 1e-6
    True
    >>> check_gradient(
    ...     lambda x: (x * x, x), lambda dout, x: 3 * x * dout, [np.array([1.0, 2.0])]
    ... )
    Traceback (most recent call last):
    AssertionError: gradient of x is wrong: ...
    """
    named = dict(inputs) if isinstance(inputs, Mapping) else _name_inputs(forward, inputs)
    checked = list(named if wrt is None else wrt)
    _check_inputs(named, checked)
    # A stream of its own: a dout equal to an x that the caller drew with the same seed would hide transposed gradients.
    rng = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng).spawn(1)[0]
    backend = backend_of(next(named[name] for name in checked if named[name] is not None))

    def run(changed: Mapping[str, Array]) -> tuple[Array, Any]:
        return forward(*(_copy(value) for value in {**named, **changed}.values()))  # forward may write into its inputs

    out, cache = run({})
    dout = rng.standard_normal(to_host(out).shape)
    rounding_error = 8 * 2.0**-52 * float(np.linalg.norm(dout) * np.linalg.norm(to_host(out)))
    gradients = backward(backend.asarray(dout.copy()), cache)
    gradients = gradients if isinstance(gradients, (tuple, list)) else (gradients,)
    if len(gradients) != len(named):
        raise AssertionError(f"backward gave {len(gradients)} gradients for {len(named)} inputs: {', '.join(named)}")

    def slope(name: str, direction: np.ndarray, step: float) -> float:
        x = to_host(named[name])
        ahead, behind = (
            to_host(run({name: backend.asarray(moved)})[0]).copy()
            for moved in (x + step * direction, x - step * direction)
        )
        return float(np.sum((ahead - behind) * dout)) / (2 * step)

    worst = 0.0
    for name, gradient in zip(named, gradients, strict=True):
        found, expected = describe_array(gradient, location=True), describe_array(named[name], location=True)
        if name in checked and found != expected:
            raise AssertionError(f"gradient of {name} is {found}; expected {expected}, as {name} is")
        if name in checked and gradient is not None:
            error = _projection_error(
                name, to_host(gradient), partial(slope, name), h, tolerance, rounding_error=rounding_error, rng=rng
            )
            worst = max(worst, error)
    return worst


def _name_inputs(forward: Callable[..., Any], inputs: Sequence[Array]) -> dict[str, Array]:
    names = [p.name for p in inspect.signature(forward).parameters.values() if p.kind != p.VAR_POSITIONAL]
    names += [f"input {i}" for i in range(len(names), len(inputs))]
    return dict(zip(names, inputs, strict=False))


def _check_inputs(named: Mapping[str, Array], checked: Sequence[str]) -> None:
    for name in checked:
        if name not in named:
            raise ArgumentError(f"wrt has {name!r}; expected names of inputs: {', '.join(named)}")
        if named[name] is not None and not describe_array(named[name]).startswith("float64 "):
            raise ArgumentTypeError(
                f"{name} is {describe_array(named[name])}; expected a float64 array, since differences of less exact "
                f"numbers tell little: cast it, as in get_backend().asarray({name}, dtype='float64'), or leave it out "
                "of wrt"
            )
    if all(named[name] is None for name in checked):
        raise ArgumentError("inputs hold no array to check; expected at least one")


def _projection_error(
    name: str,
    gradient: np.ndarray,
    slope: Callable[[np.ndarray, float], float],
    h: float,
    tolerance: float,
    *,
    rounding_error: float,
    rng: np.random.Generator,
) -> float:
    """Return the relative error of a gradient along a random direction; raise AssertionError if it is too large.

    Parameters
    ----------
    name, gradient, h, tolerance, rng
        The input's name and its gradient on the host; the others as for `check_gradient`.
    slope : callable
        ``slope(direction, step)``: that of the forward pass by a central difference.
    rounding_error : float
        Rounding error of the difference of two outputs, projected on dout.
    """
    for step in (h / 2**draw for draw in range(_DRAWS)):
        # Gradients below the rounding error of a slope cannot be told from 0.
        floor = max(float(np.linalg.norm(gradient)), rounding_error / step / tolerance)
        direction = rng.standard_normal(gradient.shape)
        numeric, half = slope(direction, step), slope(direction, step / 2)
        if not abs(numeric - half) > tolerance * max(abs(numeric), abs(half), floor):  # NaN is no kink
            break
    else:
        raise AssertionError(
            f"gradient of {name} cannot be checked: on each of {_DRAWS} random directions one step and half of "
            f"it give other slopes ({numeric:.9g} and {half:.9g} with {step:.1e}, from h = {h:.0e} down): the "
            "forward pass has kinks or is too curved there; take a smaller h or other values"
        )
    analytic = float(np.sum(gradient * direction))
    error = abs(numeric - analytic) / (max(abs(numeric), abs(analytic), floor) or 1.0)  # 0 / 0 is no error
    if not error <= tolerance:
        raise AssertionError(
            f"gradient of {name} is wrong: along a random direction the forward pass has slope {numeric:.9g} "
            f"but backward gives {analytic:.9g}: they differ by {error:.2e} of the largest of these slopes and the "
            f"gradient's norm (tolerance {tolerance:.0e}); "
            f"if {name} has values exactly at a kink, such as 0 before a ReLU, choose others"
        )
    return error

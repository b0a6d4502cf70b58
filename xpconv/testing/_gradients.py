"""Gradient checks and comparisons between backends, for this library's tests and for its users' own layers."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import Array, backend_of, to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.testing._equivalence import kind_of

__all__ = ["check_gradient", "eval_numerical_gradient", "eval_numerical_gradient_array", "rel_error"]

_DRAWS = 8


def rel_error(a: Any, b: Any) -> float:
    """Return the largest relative error, ``max(|a - b| / max(1e-8, |a| + |b|))``.

    Parameters
    ----------
    a, b : array or number
        Of one shape, of any library and on any device.

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
        raise ArgumentError(f"a has shape {a.shape} but b has {b.shape}; expected one shape: reshape one of them")
    return float(np.max(np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b)), initial=0.0))


def eval_numerical_gradient(
    f: Callable[[Any], Any], x: np.ndarray, verbose: bool = False, h: float = 1e-5
) -> np.ndarray:
    """Return the gradient of a scalar function by central differences, one element of `x` at a time.

    ``grad[i] = (f(x + h e_i) - f(x - h e_i)) / 2h``

    Parameters
    ----------
    f : callable
        Takes `x` and returns a number, or an array of one value on any device.
    x : numpy.ndarray
        Changed in place while `f` runs, and as it was afterwards, also when `f` raises.
    verbose : bool
        Whether to print each element's index and slope.
    h : float
        The step, in the units of `x`.

    Raises
    ------
    ArgumentTypeError
        If `x` is no NumPy array of floats, on which a small step would be lost.

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
        Takes `x` and returns an array of `df`'s shape, on any device.
    x, h : numpy.ndarray, float
        As for `eval_numerical_gradient`, which raises the same error.
    df : array
        The upstream gradient.

    Examples
    --------
    >>> eval_numerical_gradient_array(lambda x: x**2, np.array([1.0, -3.0]), np.array([1.0, 10.0])).round(6)
    array([  2., -60.])
    """
    grad, df = np.zeros_like(x), to_host(df)
    for index, above, below in _perturbed(f, x, h):
        grad[index] = np.sum((above - below) * df) / (2 * h)
    return grad


def _perturbed(f: Callable[[Any], Any], x: np.ndarray, h: float) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yield each index of `x` with f a step above and a step below it."""
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
    """Return a copy of an array, and anything else as it is."""
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
    ``<dout, (f(x + h v) - f(x - h v)) / 2h>`` with ``<gradient, v>``: two forward passes an input, whatever its
    size, and two with half the step. These disagree where a ReLU or a maximum switches between the points; then
    another direction is drawn and the step halved. A gradient must also have its input's shape, dtype and device.

    Parameters
    ----------
    forward : callable
        ``forward(*inputs) -> (out, cache)``.
    backward : callable
        ``backward(dout, cache) -> gradients``, one for each input in order; a single one may come bare.
    inputs : sequence or mapping of str to array
        float64 arrays of one backend, named by the mapping's keys or by forward's parameters. An input may be
        None (a missing bias) if its gradient is.
    h : float
        The step, in the units of the inputs.
    tolerance : float
        The largest error that passes, relative to the projections or the gradient's norm, whichever is
        larger, and never finer than what rounding leaves of a difference.
    rng : int or numpy.random.Generator
        Where dout and directions are drawn, on the host.
    wrt : iterable of str, optional
        The names of the inputs to check; all unless given. The others may be of any type.

    Raises
    ------
    AssertionError
        If a gradient is wrong; the text names the input, both values and the relative error.
    ArgumentTypeError
        If an input is not float64.
    ArgumentError
        If `wrt` has another name, or there is nothing to check.

    Examples
    --------
    >>> check_gradient(lambda x: (x * x, x), lambda dout, x: 2 * x * dout, [np.array([1.0, 2.0])]) < 1e-6
    True
    >>> check_gradient(lambda x: (x * x, x), lambda dout, x: 3 * x * dout, [np.array([1.0, 2.0])])
    Traceback (most recent call last):
    AssertionError: gradient of x is wrong: ...
    """
    if not isinstance(inputs, Mapping):
        names = [p.name for p in inspect.signature(forward).parameters.values() if p.kind != p.VAR_POSITIONAL]
        names += [f"input {i}" for i in range(len(names), len(inputs))]
        inputs = dict(zip(names, inputs, strict=False))
    named = dict(inputs)
    checked = list(named if wrt is None else wrt)
    for name in checked:
        if name not in named:
            raise ArgumentError(f"wrt has {name!r}; expected names of inputs: {', '.join(named)}")
        if named[name] is not None and not kind_of(named[name]).startswith("float64 "):
            raise ArgumentTypeError(
                f"{name} is {kind_of(named[name])}; expected a float64 array, since differences of less exact numbers "
                f"tell little: cast it, as in get_backend().asarray({name}, dtype='float64'), or leave it out of wrt"
            )
    # A stream of its own: a dout equal to an x that the caller drew with the same seed would hide transposed gradients.
    rng = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng).spawn(1)[0]
    arrays = [named[name] for name in checked if named[name] is not None]
    if not arrays:
        raise ArgumentError("inputs hold no array to check; expected at least one")
    backend = backend_of(arrays[0])

    def call(moved: Mapping[str, Array]) -> tuple[Array, Any]:
        """Give forward arrays of its own: it may write into them."""
        return forward(*(_copy(value) for value in {**named, **moved}.values()))

    out, cache = call({})
    dout = rng.standard_normal(to_host(out).shape)
    rounding = 8 * 2.0**-52 * float(np.linalg.norm(dout) * np.linalg.norm(to_host(out)))
    gradients = backward(backend.asarray(dout.copy()), cache)
    gradients = gradients if isinstance(gradients, (tuple, list)) else (gradients,)
    if len(gradients) != len(named):
        raise AssertionError(f"backward gave {len(gradients)} gradients for {len(named)} inputs: {', '.join(named)}")

    def slope(name: str, direction: np.ndarray, step: float) -> float:
        x = to_host(named[name])
        ahead, behind = (
            to_host(call({name: backend.asarray(moved)})[0]).copy()
            for moved in (x + step * direction, x - step * direction)
        )
        return float(np.sum((ahead - behind) * dout)) / (2 * step)

    worst = 0.0
    for name, gradient in zip(named, gradients, strict=True):
        found, expected = kind_of(gradient, place=True), kind_of(named[name], place=True)
        if name in checked and found != expected:
            raise AssertionError(f"gradient of {name} is {found}; expected {expected}, as {name} is")
        if name not in checked or gradient is None:
            continue
        host = to_host(gradient)
        for step in (h / 2**draw for draw in range(_DRAWS)):
            # Rounding makes the slopes uncertain by so much that smaller gradients cannot be told from 0.
            floor = max(float(np.linalg.norm(host)), rounding / step / tolerance)
            direction = rng.standard_normal(host.shape)
            numeric, half = slope(name, direction, step), slope(name, direction, step / 2)
            if not abs(numeric - half) > tolerance * max(abs(numeric), abs(half), floor):  # NaN is no kink
                break
        else:
            raise AssertionError(
                f"gradient of {name} cannot be checked: on each of {_DRAWS} random directions one step and half of "
                f"it give other slopes ({numeric:.9g} and {half:.9g} with {step:.1e}, from h = {h:.0e} down): the "
                "forward pass has kinks or is too curved there; take a smaller h or other values"
            )
        analytic = float(np.sum(host * direction))
        error = abs(numeric - analytic) / (max(abs(numeric), abs(analytic), floor) or 1.0)  # 0 / 0 is no error
        if not error <= tolerance:
            raise AssertionError(
                f"gradient of {name} is wrong: along a random direction the forward pass has slope {numeric:.9g} "
                f"but backward gives {analytic:.9g}: they differ by {error:.2e} of the largest of these slopes and the "
                f"gradient's norm (tolerance {tolerance:.0e}); "
                f"if {name} has values exactly at a kink, such as 0 before a ReLU, choose others"
            )
        worst = max(worst, error)
    return worst

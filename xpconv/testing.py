"""Gradient checks and comparisons between backends, for this library's tests and for its users' own layers."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from xpconv.backend import Array, Backend, backend_of, get_backend, library_of, to_host, use_backend
from xpconv.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "EquivalenceReport",
    "EquivalenceRow",
    "check_equivalence",
    "check_gradient",
    "eval_numerical_gradient",
    "eval_numerical_gradient_array",
    "rel_error",
]

_RTOL = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2}
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
    a, b = 1.0 * to_host(a), 1.0 * to_host(b)  # as floats: unsigned differences wrap around
    if a.shape != b.shape:
        raise ArgumentError(f"a has shape {a.shape} but b has {b.shape}; expected one shape: reshape one of them")
    return float(np.max(np.abs(a - b) / np.maximum(1e-8, np.abs(a) + np.abs(b)), initial=0.0))


def eval_numerical_gradient(f: Callable[[Array], Any], x: np.ndarray, verbose: bool = False,
                            h: float = 1e-5) -> np.ndarray:
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


def eval_numerical_gradient_array(f: Callable[[Array], Array], x: np.ndarray, df: Array,
                                  h: float = 1e-5) -> np.ndarray:
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


def _perturbed(f: Callable[[Array], Any], x: np.ndarray, h: float) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """Yield each index of `x` with f a step above and a step below it."""
    if not isinstance(x, np.ndarray) or not np.issubdtype(x.dtype, np.floating):
        raise ArgumentTypeError(f"x is {getattr(x, 'dtype', type(x).__name__)}; expected a NumPy array of floats: "
                                "pass toto_host(x).astype('float64')")

    def at(index: tuple[int, ...], value: Any) -> np.ndarray:
        old = x[index]
        try:
            x[index] = value
            return np.array(to_host(f(x)))  # a copy: f may return x, or the same buffer each time
        finally:
            x[index] = old

    for index in np.ndindex(x.shape):
        yield index, at(index, x[index] + h), at(index, x[index] - h)


def check_gradient(
    forward: Callable[..., tuple[Array, Any]], backward: Callable[[Array, Any], Any],
    inputs: Sequence[Array] | Mapping[str, Array], *,
    h: float = 1e-6, tolerance: float = 1e-6, rng: int | np.random.Generator = 0, wrt: Iterable[str] | None = None,
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
        if named[name] is not None and not _kind(named[name]).startswith("float64 "):
            raise ArgumentTypeError(
                f"{name} is {_kind(named[name])}; expected a float64 array, since differences of less exact numbers "
                f"tell little: cast it, as in get_backend().asarray({name}, dtype='float64'), or leave it out of wrt")
    rng, arrays = np.random.default_rng(rng), [named[name] for name in checked if named[name] is not None]
    if not arrays:
        raise ArgumentError("inputs hold no array to check; expected at least one")
    backend = backend_of(arrays[0])
    out, cache = forward(*named.values())
    dout = rng.standard_normal(to_host(out).shape)
    gradients = backward(backend.asarray(dout), cache)
    gradients = gradients if isinstance(gradients, (tuple, list)) else (gradients,)
    if len(gradients) != len(named):
        raise AssertionError(f"backward gave {len(gradients)} gradients for {len(named)} inputs: {', '.join(named)}")

    def slope(name: str, direction: np.ndarray, step: float) -> float:
        x = to_host(named[name])
        ahead, behind = (to_host(forward(*{**named, name: backend.asarray(moved)}.values())[0])
                         for moved in (x + step * direction, x - step * direction))
        return float(np.sum((ahead - behind) * dout)) / (2 * step)

    worst, rounding = 0.0, 8 * 2.0**-52 * float(np.linalg.norm(dout) * np.linalg.norm(to_host(out)))
    for name, gradient in zip(named, gradients, strict=True):
        if name in checked and (found := _kind(gradient, place=True)) != (expected := _kind(named[name], place=True)):
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
                "forward pass has kinks or is too curved there; take a smaller h or other values")
        analytic = float(np.sum(host * direction))
        error = abs(numeric - analytic) / max(abs(numeric), abs(analytic), floor)
        if not error <= tolerance:
            raise AssertionError(
                f"gradient of {name} is wrong: along a random direction the forward pass has slope {numeric:.9g} "
                f"but backward gives {analytic:.9g}, a relative error of {error:.2e} (tolerance {tolerance:.0e}); "
                f"if {name} has values exactly at a kink, such as 0 before a ReLU, choose others")
        worst = max(worst, error)
    return worst


def _place(x: Array) -> str:
    return f"{library_of(x)} ({array_api_compat.device(x)})"


def _kind(x: Any, place: bool = False) -> str:
    if not array_api_compat.is_array_api_obj(x):
        return f"a {type(x).__name__}"
    return f"{to_host(x).dtype} {to_host(x).shape}" + (f" on {_place(x)}" if place else "")


@dataclass(frozen=True)
class EquivalenceRow:
    """What one backend's outputs were, and how far they were from the reference's.

    `library`, `device` and `dtypes` list what the outputs have, joined by commas. `max_absolute` is the
    largest difference; `max_relative` the largest in proportion to its output's largest magnitude.
    """

    backend: str
    library: str
    device: str
    dtypes: str
    shapes_match: bool
    max_absolute: float
    max_relative: float


@dataclass(frozen=True)
class EquivalenceReport:
    """One row a backend; printing it gives a table."""

    reference: str
    rows: tuple[EquivalenceRow, ...]

    @property
    def max_difference(self) -> float:
        """The largest relative difference of any backend from the reference."""
        return max(row.max_relative for row in self.rows)

    def __str__(self) -> str:
        """Return the rows as an aligned table."""
        cells = [("backend", "library", "device", "dtypes", "shapes", "max abs", "max rel")]
        for row in self.rows:
            cells.append((row.backend + " (reference)" * (row.backend == self.reference), row.library, row.device,
                          row.dtypes, "match" if row.shapes_match else "DIFFER",
                          f"{row.max_absolute:.1e}", f"{row.max_relative:.1e}"))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                         for line in cells)


def check_equivalence(
    fn: Callable[..., Any], *args: Any, backends: Iterable[str | Backend] = ("numpy", "array_api_strict"),
    reference: str | Backend = "numpy", rtol: float | None = None, atol: float = 0.0,
) -> EquivalenceReport:
    """Run a function on several backends and compare all that it returns.

    Parameters
    ----------
    fn : callable
        Runs inside `use_backend`; gives arrays, numbers, None, or nested tuples, lists and dicts of them.
    *args : object
        Its arguments. Copies of NumPy arrays, nested ones too, are moved to the backend; others pass as they are.
    backends : iterable of str or Backend
        As for `get_backend`.
    reference : str or Backend
        What the others are compared with; it is run whether among `backends` or not.
    rtol, atol : float
        A difference may be up to ``rtol * (the output's largest magnitude) + atol``. Without an rtol it is
        1e-10 for float64, 1e-4 for float32, 1e-2 for float16, and 0 for other dtypes.

    Raises
    ------
    AssertionError
        If an output is on another library or device than the inputs, or differs from the reference's in
        structure, dtype, shape or by too much; the text names each such output and ends with the table.

    Examples
    --------
    >>> report = check_equivalence(lambda x: (x + 1, {"twice": 2 * x}), np.ones(3), backends=["numpy"])
    >>> report.max_difference
    0.0
    """
    chosen = {str(backend): backend for backend in map(get_backend, (reference, *backends))}
    outputs: dict[str, dict[str, Any]] = {}
    for name, backend in chosen.items():
        try:
            with use_backend(backend):
                outputs[name] = dict(_leaves("output", fn(*_upload(args, backend))))
        except Exception as error:
            error.add_note(f"raised while check_equivalence ran the function on {name}")
            raise
    first, problems = next(iter(chosen)), list[str]()
    rows = tuple(_compare(backend, outputs[name], outputs[first], rtol, atol, problems)
                 for name, backend in chosen.items())
    report = EquivalenceReport(first, rows)
    if problems:
        raise AssertionError("\n".join([*problems, str(report)]))
    return report


def _upload(tree: Any, backend: Backend) -> Any:
    if isinstance(tree, np.ndarray):
        return backend.asarray(tree.copy(order="K"))  # a copy: fn may work in place
    if isinstance(tree, dict):
        return {key: _upload(value, backend) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        values = [_upload(value, backend) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return tree


def _leaves(path: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is in nested containers, with a path such as ``output[1].mean``."""
    if hasattr(tree, "_fields"):
        parts = {f".{field}": getattr(tree, field) for field in tree._fields}
    elif isinstance(tree, (dict, tuple, list)):
        parts = {f"[{key!r}]": value for key, value in (tree.items() if isinstance(tree, dict) else enumerate(tree))}
    else:
        yield path, tree
        return
    for step, value in parts.items():
        yield from _leaves(path + step, value)


def _compare(backend: Backend, outputs: dict[str, Any], expected: dict[str, Any], rtol: float | None, atol: float,
             problems: list[str]) -> EquivalenceRow:
    """Return a backend's row and add what is wrong to the list of problems."""
    home, matching, absolute, relative = f"{backend.library} ({backend.device})", True, 0.0, 0.0
    if outputs.keys() != expected.keys():
        matching = False
        problems.append(f"{backend} gives {', '.join(outputs)}; the reference gives {', '.join(expected)}")
    for path in [path for path in outputs if path in expected]:
        got, want = outputs[path], expected[path]
        if array_api_compat.is_array_api_obj(got) and _place(got) != home:
            problems.append(f"{backend}: {path} is on {_place(got)}; expected {home}, as the inputs are")
        if _kind(got) != _kind(want):
            problems.append(f"{backend}: {path} is {_kind(got)}; the reference gives {_kind(want)}")
        a, b = to_host(got), to_host(want)
        matching &= a.shape == b.shape
        if a.shape == b.shape and {a.dtype.kind, b.dtype.kind} <= set("biufc"):
            difference, scale = _difference(a, b)
        else:  # None and texts are equal or not
            difference, scale = (0.0 if a.shape == b.shape and got == want else np.inf), 1.0
        allowed = _RTOL.get(b.dtype.name, 0.0) if rtol is None else rtol
        if difference > allowed * scale + atol:
            problems.append(f"{backend}: {path} differs by {difference:.2e}, {difference / scale:.2e} of its "
                            f"largest magnitude; expected at most {allowed:.0e}")
        absolute, relative = max(absolute, difference), max(relative, difference / scale)
    arrays = [leaf for leaf in outputs.values() if array_api_compat.is_array_api_obj(leaf)]
    library, device, dtypes = (", ".join(sorted({str(trait(array)) for array in arrays})) or "-" for trait in (
        library_of, array_api_compat.device, lambda array: to_host(array).dtype))
    return EquivalenceRow(str(backend), library, device, dtypes, matching, absolute, relative)


def _difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return the largest absolute difference, where NaNs and equal infinities are equal, and b's magnitude."""
    exact = np.result_type(a, b, np.float64)
    a, b = a.astype(exact), b.astype(exact)
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    apart[np.isnan(apart)] = np.inf
    return float(np.max(apart, initial=0.0)), float(np.max(np.abs(b[np.isfinite(b)]), initial=1e-8))

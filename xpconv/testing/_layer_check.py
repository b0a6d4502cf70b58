"""Checks of a user's layer, a forward and a backward function, with a verdict that says what to do."""

import copy
import inspect
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpconv._html import html_table, html_text
from xpconv.backend import Array, diagnose, library_of
from xpconv.errors import ArgumentError
from xpconv.testing._causes import explain
from xpconv.testing._equivalence import check_equivalence
from xpconv.testing._gradients import check_gradient

__all__ = ["LayerFinding", "LayerReport", "check_layer"]

LIBRARIES = ("array_api_strict", "torch")
COLUMNS = 80  # of a printed report
SEED = 7_305_129  # unlikely for inputs: if dout equals x, x.T @ dout is symmetric, which hides a transposition


@dataclass(frozen=True)
class LayerFinding:
    """The result of one check: `status` is ``ok``, ``FAIL``, or ``note`` if the check could not be made.

    Examples
    --------
    >>> LayerFinding("FAIL", "gradient of w", "the sign is wrong").status
    'FAIL'
    """

    status: str
    check: str
    text: str = ""


@dataclass(frozen=True)
class LayerReport:
    """The results of all checks of a layer; `print` and Jupyter show them with a verdict.

    Examples
    --------
    >>> findings = (
    ...     LayerFinding("ok", "runs"),
    ...     LayerFinding("FAIL", "gradient of w", "the sign is wrong"),
    ... )
    >>> print(LayerReport("affine", findings))
    affine
      ok    runs
      FAIL  gradient of w  the sign is wrong
    verdict: affine has problems: gradient of w
    """

    layer: str
    findings: tuple[LayerFinding, ...]

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [finding.check for finding in self.findings if finding.status == "FAIL"]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def __str__(self) -> str:
        width = max(len(finding.check) for finding in self.findings)
        lines = [self.layer]
        for status, check, text in ((f.status, f.check, f.text) for f in self.findings):
            lines += textwrap.wrap(
                text, COLUMNS, initial_indent=f"  {status:<6}{check:<{width}}  ", subsequent_indent=" " * (width + 10)
            ) or [f"  {status:<6}{check}"]
        lines += textwrap.wrap(self._verdict(), COLUMNS, subsequent_indent="  ")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        table = html_table(
            ("result", "check", "finding"), [(f.status, f.check, f.text) for f in self.findings], text_columns=3
        )
        return f"<div>\n{table}\n<p>{html_text(self._verdict())}</p>\n</div>"

    def _verdict(self) -> str:
        return f"verdict: {self.layer} " + ("is right" if self.ok else f"has problems: {', '.join(self.failed)}")


def check_layer(
    forward: Callable[..., Any], backward: Callable[..., Any], inputs: Mapping[str, Any], name: str = "the layer"
) -> LayerReport:
    """Check a layer's gradients, shapes and dtypes, and that it does not change arrays that it does not own.

    Gradients are compared with central differences of the forward pass in float64. The layer also runs in float32, on
    other array libraries if its code allows, and twice, to see whether one call disturbs another.

    Parameters
    ----------
    forward : callable
        ``forward(**inputs) -> (out, cache)``.
    backward : callable
        ``backward(dout, cache) -> gradients``, one for each input that is an array of floats, in order; a single one
        need not be in a tuple. None means that an input has no gradient.
    inputs : mapping of str to object
        The arguments of `forward`, which gets a copy of each in every call. Arrays of floats may have any float dtype;
        the copies are cast.
    name : str
        Name of the layer in the report.

    Returns
    -------
    LayerReport

    Raises
    ------
    ArgumentError
        If `inputs` do not fit the parameters of `forward`, or none is an array of floats.

    Examples
    --------
    >>> def forward(x, w):
    ...     return x * w, (x, w)
    >>> def backward(dout, cache):
    ...     return dout * cache[1], dout * cache[0]
    >>> check_layer(forward, backward, {"x": np.ones((2, 3)), "w": np.ones((2, 3))}).ok
    True
    >>> def doubles(dout, cache):
    ...     return 2 * dout * cache[1], dout * cache[0]
    >>> check_layer(
    ...     forward, doubles, {"x": np.ones((2, 3)), "w": np.ones((2, 3))}
    ... ).failed
    ['gradient of x']
    """
    layer = _Layer(forward, backward, dict(inputs))
    findings: list[LayerFinding] = []
    try:
        for check in (
            _check_runs,
            _check_gradients,
            _check_inputs_untouched,
            _check_cache,
            _check_float32,
            _check_libraries,
        ):
            for finding in check(layer):
                findings.append(finding)
    except _StopError as stop:
        findings.append(stop.finding)
    return LayerReport(name, tuple(findings))


# ---- running the layer under test


@dataclass(frozen=True)
class _Run:
    """A forward and a backward pass, with their arguments."""

    inputs: dict[str, Any]
    out: Any
    cache: Any
    dout: Any
    gradients: tuple[Any, ...]


class _StopError(Exception):
    """A failure that makes all later checks pointless."""

    def __init__(self, check: str, text: str) -> None:
        super().__init__(text)
        self.finding = LayerFinding("FAIL", check, text)


class _Layer:
    def __init__(self, forward: Callable[..., Any], backward: Callable[..., Any], inputs: dict[str, Any]) -> None:
        self._forward, self._backward = forward, backward
        self.inputs = _cast(inputs, "float64")
        self.arrays = [name for name, value in self.inputs.items() if _is_floats(value)]
        title = f"{getattr(forward, '__name__', 'forward')}{inspect.signature(forward)}"
        try:
            inspect.signature(forward).bind(**inputs)
        except TypeError as error:
            raise ArgumentError(
                f"inputs are {', '.join(inputs) or 'none'}, but the function is {title}: {error}"
            ) from error
        if not self.arrays:
            raise ArgumentError(f"inputs of {title} hold no array of floats; expected at least one to check")

    def forward(self, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        with self._reporting_errors("forward"):
            result = self._forward(**inputs)
        if not isinstance(result, tuple) or len(result) != 2:
            raise _StopError("forward", f"it returns {_describe(result)}; expected a pair: return out, cache")
        return result[0], result[1]

    def backward(self, dout: Array, cache: Any) -> tuple[Any, ...]:
        with self._reporting_errors("backward"):
            result = self._backward(dout, cache)
        if isinstance(result, dict):
            raise _StopError(
                "backward",
                "it returns a dict; expected the gradients themselves, one for each input, in "
                "the order of forward's arguments",
            )
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    def run(self, dtype: str = "float64") -> _Run:
        inputs = _cast(self.inputs, dtype)
        out, cache = self.forward(inputs)
        dout = np.asarray(np.random.default_rng(SEED).standard_normal(np.shape(out)), dtype)
        return _Run(inputs, out, cache, dout, self.backward(dout.copy(), cache))

    @contextmanager
    def _reporting_errors(self, which: str) -> Iterator[None]:
        """Report an error that the layer's code raises, with the line in its file."""
        try:
            yield
        except Exception as error:
            code = getattr(inspect.unwrap(self._forward), "__code__", None)
            file = getattr(code, "co_filename", None)
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
            line = f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
            raise _StopError(which, f"it raises {type(error).__name__}: {error}{line}") from error


def _is_floats(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _cast(tree: Any, dtype: str) -> Any:
    """Copy arguments, and cast the floating-point ones, also in nested containers."""
    if isinstance(tree, dict):
        return {key: _cast(value, dtype) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        values = [_cast(value, dtype) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return tree.astype(dtype) if _is_floats(tree) or isinstance(tree, np.floating) else copy.deepcopy(tree)


def _describe(value: Any) -> str:
    if isinstance(value, (np.ndarray, np.generic)):
        return f"a {value.dtype} array of shape {value.shape}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


# ---- the checks, in order: each relies on those before it, so a _StopError ends them all


def _check_runs(layer: _Layer) -> Iterator[LayerFinding]:
    """Check the types and shapes that forward and backward return, and that they are deterministic."""
    outputs = [layer.forward(_cast(layer.inputs, "float64"))[0] for _ in range(2)]
    if not isinstance(outputs[0], (np.ndarray, np.floating)) or outputs[0].dtype != np.float64:
        raise _StopError(
            "forward",
            f"out is {_describe(outputs[0])} for float64 inputs; expected a float64 array: "
            "compute with the arrays themselves, in their own dtype",
        )
    out = np.asarray(outputs[0])
    if not np.all(np.isfinite(out)):
        raise _StopError("forward", _not_finite("out", out))
    if not np.array_equal(*outputs):
        raise _StopError(
            "forward",
            "it gives another output each time for the same inputs: draw random numbers with "
            "a fixed seed or pass them as an argument, else no gradient can be checked",
        )
    names = _name_gradients(layer, layer.run().gradients)
    yield LayerFinding("ok", "runs", f"out has shape {out.shape}; backward gives gradients of {', '.join(names)}")


def _name_gradients(layer: _Layer, gradients: tuple[Any, ...]) -> dict[str, Any]:
    """Return the gradients of float arrays by name; backward may return some for absent arrays and options too."""
    for names in (
        layer.arrays,
        [n for n, value in layer.inputs.items() if n in layer.arrays or value is None],
        list(layer.inputs),
    ):
        if len(gradients) == len(names):
            return {name: gradient for name, gradient in zip(names, gradients, strict=True) if name in layer.arrays}
    raise _StopError(
        "backward",
        f"it returns {len(gradients)} gradients for {len(layer.arrays)} arrays: "
        f"{', '.join(layer.arrays)}. Return one for each, in this order, and None for an array "
        "without a gradient",
    )


def _check_gradients(layer: _Layer) -> Iterator[LayerFinding]:
    run = layer.run()
    for name, gradient in _name_gradients(layer, run.gradients).items():
        x, title = layer.inputs[name], f"gradient of {name}"
        if gradient is None:
            yield LayerFinding("note", title, "not checked: backward gives None")
        elif not isinstance(gradient, (np.ndarray, np.floating)) or gradient.shape != x.shape:
            yield LayerFinding(
                "FAIL",
                title,
                f"it is {_describe(gradient)}, but {name} has shape {x.shape}.{_shape_cause(gradient, x)}",
            )
        elif not np.all(np.isfinite(gradient)):
            yield LayerFinding("FAIL", title, _not_finite("it", np.asarray(gradient)))
        else:
            yield _check_gradient(layer, run, name, title)


def _check_gradient(layer: _Layer, run: _Run, name: str, title: str) -> LayerFinding:
    def forward(x: np.ndarray) -> tuple[Any, Any]:
        return layer.forward({**_cast(layer.inputs, "float64"), name: x.copy()})

    def backward(dout: np.ndarray, cache: Any) -> Any:
        return np.asarray(_name_gradients(layer, layer.backward(dout.copy(), cache))[name])

    try:
        error = check_gradient(forward, backward, {name: layer.inputs[name]}, rng=SEED)
    except AssertionError as problem:
        sizes = {key: layer.inputs[key].shape for key in layer.arrays} | {"out": np.shape(run.out)}
        cause = explain(
            name,
            lambda x: forward(x)[0],
            lambda dout: backward(dout, forward(layer.inputs[name])[1]),
            layer.inputs[name],
            run.dout,
            sizes,
        )
        return LayerFinding("FAIL", title, cause or str(problem))
    return LayerFinding("ok", title, f"agrees with the forward pass, relative error {error:.0e}")


def _not_finite(name: str, values: np.ndarray) -> str:
    index = np.argwhere(~np.isfinite(values))[0]
    return f"{name} is {values[tuple(index)]} at {index.tolist()}: something overflows or is divided by 0"


def _shape_cause(gradient: Any, x: np.ndarray) -> str:
    shape = np.shape(gradient)
    if shape == x.shape[::-1]:
        return " Likely it is transposed."
    if len(shape) == x.ndim + 1 and shape[1:] == x.shape:
        return " Likely the sum over the batch is missing: np.sum(..., axis=0)."
    return " Likely it only needs to be reshaped." if np.size(gradient) == x.size else ""


def _check_inputs_untouched(layer: _Layer) -> Iterator[LayerFinding]:
    inputs = _cast(layer.inputs, "float64")
    out, cache = layer.forward(inputs)
    changed = [(name, "forward") for name in _changed(inputs, layer.inputs)]
    dout, before = (np.random.default_rng(SEED).standard_normal(np.shape(out)) for _ in range(2))
    inputs_before = copy.deepcopy(inputs)
    layer.backward(dout, cache)
    changed += [(name, "backward") for name in _changed(inputs, inputs_before)]
    changed += [] if np.array_equal(dout, before) else [("dout", "backward")]
    if changed:
        writes = ", ".join(f"{which} writes into {name}" for name, which in changed)
        yield LayerFinding("FAIL", "inputs untouched", f"{writes}: work on a copy, as in x = x - 1 for x -= 1")
    else:
        yield LayerFinding("ok", "inputs untouched")


def _changed(inputs: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Return the names of the arrays whose values changed; a layer may change arrays in a dict of options."""
    return [
        name
        for name, value in before.items()
        if isinstance(value, np.ndarray) and not np.array_equal(inputs[name], value, equal_nan=_is_floats(value))
    ]


def _check_cache(layer: _Layer) -> Iterator[LayerFinding]:
    """Check that no later call changes a cache or gradients, and that gradients share no memory with inputs."""
    run = layer.run()
    first = copy.deepcopy(run.gradients)
    second = layer.backward(run.dout.copy(), run.cache)
    layer.backward(run.dout + 1, run.cache)
    reused = not _same(run.gradients, first)
    others = {
        name: np.flip(value).copy() if _is_floats(value) else value
        for name, value in _cast(layer.inputs, "float64").items()
    }
    layer.forward(others)
    after_another_call = layer.backward(run.dout.copy(), run.cache)
    shared = [
        (key, name)
        for key, gradient in _name_gradients(layer, run.gradients).items()
        for name in layer.arrays
        if isinstance(gradient, np.ndarray) and np.may_share_memory(gradient, run.inputs[name])
    ]
    if not _same(second, first):
        text = "backward gives other gradients when it is called again with the same cache: it writes into the cache"
    elif reused:
        text = "gradients are overwritten by the next call of backward: make new arrays in each call"
    elif not _same(after_another_call, first):
        text = (
            "a cache is spoilt by the next call of forward: make new arrays in each call, and keep none in global "
            "variables"
        )
    elif shared:
        text = (
            f"the gradient of {shared[0][0]} shares memory with {shared[0][1]}, so changing one changes the "
            "other: return a copy"
        )
    else:
        yield LayerFinding("ok", "cache", "each call has its own arrays")
        return
    yield LayerFinding("FAIL", "cache", text)


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y, equal_nan=_is_floats(x)) for x, y in zip(a, b, strict=True))


def _check_float32(layer: _Layer) -> Iterator[LayerFinding]:
    run = layer.run("float32")
    results = {"out": run.out} | {
        f"the gradient of {name}": g for name, g in _name_gradients(layer, run.gradients).items()
    }
    wrong = [
        f"{name} is {np.asarray(a).dtype}"
        for name, a in results.items()
        if a is not None and np.asarray(a).dtype != np.float32
    ]
    if wrong:
        yield LayerFinding(
            "FAIL",
            "float32",
            f"for float32 inputs {', '.join(wrong)}, slower and twice as large. Make new "
            "arrays with dtype=x.dtype, as np.zeros_like does, and write float(...) "
            "around scalars that NumPy computes",
        )
    else:
        yield LayerFinding("ok", "float32", "stays float32")


def _check_libraries(layer: _Layer) -> Iterator[LayerFinding]:
    """Compare with other libraries; layers written for NumPy alone need not run there."""

    def both(moved: dict[str, Any], dout: Array) -> Any:
        out, cache = layer.forward({**_cast(layer.inputs, "float64"), **moved})
        results = out, layer.backward(dout, cache)
        for result in (out, *results[1]):
            if result is not None and library_of(result) != library_of(dout):
                raise _StopError("", f"it gives {library_of(result)} arrays")
        return results

    dout, numpy_only, findings = layer.run().dout, False, {}
    moved = {name: value for name, value in layer.inputs.items() if isinstance(value, (np.ndarray, dict, tuple, list))}
    for spec in sorted(
        LIBRARIES, key=lambda spec: spec != "array_api_strict"
    ):  # first: it shows whether the layer is for NumPy alone
        found = diagnose(spec)
        if not found.available:
            findings[spec] = LayerFinding("note", spec, "not checked: it is not installed, or does not run here")
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # conversions between libraries, which are reported below
                report = check_equivalence(both, moved, dout, backends=[spec])
        except _StopError as stop:
            numpy_only = True
            findings[spec] = LayerFinding(
                "note",
                spec,
                f"written for NumPy alone: {stop.finding.text}. To run on other "
                "libraries, take functions from "
                "array_api_compat.array_namespace(x), not from np",
            )
        except AssertionError as error:
            findings[spec] = LayerFinding("note" if numpy_only else "FAIL", spec, str(error).splitlines()[0])
        else:
            findings[spec] = LayerFinding("ok", spec, f"equal to NumPy, to {report.max_difference:.0e}")
    yield from (findings[spec] for spec in LIBRARIES)

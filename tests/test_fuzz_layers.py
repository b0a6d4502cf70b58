"""Random calls of every layer, sensible and not: each gives what its loop version gives, or names a bad argument.

The layers are the rows of `tests.layer_table`; a call is a row with up to two of its arguments changed.
"""

import inspect
import re
from dataclasses import dataclass

import array_api_compat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import LAYOUTS, contiguous, find_backend, read_only
from tests.layer_table import ROWS, Row, as_tuple, each
from xpconv.backend import Backend, backend_of, on_host, to_host
from xpconv.errors import ArgumentError, ArgumentTypeError, DeviceMismatchError
from xpconv.layers import RunningStats, reference

REFUSALS = (ArgumentError, ArgumentTypeError, DeviceMismatchError)
PLACES = ["numpy", "array_api_strict", "array_api_strict:device1"]
DTYPES = ["float64", "float32"]
OTHER_DTYPES = [
    "float16",
    "float32",
    "float64",
    "longdouble",
    ">f8",
    "int8",
    "uint64",
    "int64",
    "bool",
    "complex64",
    "complex128",
    "object",
    "U5",
    "datetime64[s]",
]
TOLERANCE = {"float64": 1e-9, "float32": 1e-3}
SAID_AS = {
    "running": "running_mean|running_var",
    "w": "window",
    "kernel_size": "window",
    "pool_size": "kernel_size|window",
    "pool_stride": "stride",
}

# ---- calls


class Subclass(np.ndarray):
    """As np.memmap is one."""


lengths = st.one_of(st.integers(-2, 6), st.sampled_from([2**16, 10**6, 2**31, 2**63, 10**30]))
specials = st.sampled_from([np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-30, 0.0])
shapes = st.lists(st.sampled_from([0, 1, 1, 2, 3, 4, 5, 6]), max_size=5).map(tuple)
not_arrays = st.one_of(
    st.none(),
    st.booleans(),
    lengths,
    st.floats(),
    st.sampled_from(["", "x", "auto", "im2col", b"x", ...]),
    st.lists(lengths, max_size=3),
    st.lists(lengths, max_size=3).map(tuple),
    st.lists(st.floats(), max_size=2),
    st.builds(np.int64, st.integers(-1, 3)),
    st.builds(np.float64, st.floats()),
    st.builds(object),
    st.builds(dict),
    st.builds(np.ones, st.integers(0, 3)),
)


plausible = st.one_of(
    st.integers(0, 4), st.tuples(st.integers(0, 4), st.integers(1, 4)), st.floats(0, 1), st.booleans()
)


@st.composite
def other_arrays(draw, backend, host):
    """Draw an array that may do in the place of `host`, or may not."""
    change = draw(st.sampled_from(["shape", "values", "layout", "place", "dtype", "kind"]))
    if change == "shape":
        return contiguous(backend, np.resize(host, draw(shapes)))
    if change == "values" and host.size:
        host, places = host.copy(), draw(st.lists(st.integers(0, host.size - 1), min_size=1, max_size=4))
        host.reshape(-1)[places] = draw(specials if host.dtype.kind == "f" else st.sampled_from([-1, 9, 127, -128]))
        return contiguous(backend, host)
    if change == "place":
        return contiguous(find_backend(draw(st.sampled_from(PLACES))), host)
    if change == "layout" or backend.library != "numpy":
        return draw(st.sampled_from(LAYOUTS))(backend, host)
    if change == "dtype":
        return np.round(host).astype(np.int8).astype(draw(st.sampled_from(OTHER_DTYPES)))
    return draw(
        st.sampled_from(
            [
                np.ma.masked_array,
                np.ndarray.tolist,
                memoryview,
                lambda a: a.view(Subclass),
                lambda a: np.broadcast_to(a[..., :1], a.shape) if a.ndim else a,
            ]
        )
    )(host)


@st.composite
def other_values(draw, backend, value):
    """Draw something else for an argument, which may still be right."""
    if isinstance(value, tuple) and isinstance(value[0], np.ndarray):
        parts = [draw(other_values(backend, a)) if draw(st.booleans()) else contiguous(backend, a) for a in value]
        make = draw(
            st.sampled_from(
                [tuple, lambda parts: RunningStats(*parts), lambda parts: parts[:1], lambda parts: [*parts, None, None]]
            )
        )
        return make(parts)
    if isinstance(value, np.ndarray) and draw(st.integers(0, 3)):
        return draw(other_arrays(backend, value))
    return draw(plausible if draw(st.booleans()) else not_arrays)


@dataclass
class Call:
    """A call of a layer: its arguments, and which of them were changed."""

    row: Row
    dtype: str
    backend: Backend
    arguments: dict
    changed: list

    def _repr_pretty_(self, printer, cycle):
        changed = {name: describe(self.arguments[name]) for name in self.changed}
        printer.text(f"{self.row} of {self.dtype} on {self.backend}, but {changed}")


def describe(value):
    if isinstance(value, tuple | list):
        return type(value)(map(describe, value)) if type(value) in (tuple, list) else tuple(map(describe, value))
    return f"{type(value).__name__} {value.dtype} {value.shape}" if hasattr(value, "dtype") else value


@st.composite
def calls(draw):
    row, backend = draw(st.sampled_from(ROWS)), find_backend(draw(st.sampled_from(PLACES)))
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([contiguous, read_only]))
    drawn = {**row.draw(dtype), **row.options}
    options = [p.name for p in inspect.signature(row.forward).parameters.values() if p.kind is p.KEYWORD_ONLY]
    changed = draw(st.lists(st.sampled_from(list(dict.fromkeys([*drawn, *options]))), max_size=2, unique=True))
    arguments = {
        name: each(lambda a: layout(backend, a), value) if name in row.inputs else value
        for name, value in drawn.items()
    }
    for name in changed:
        arguments[name] = draw(other_values(backend, drawn.get(name)))
    return Call(row, dtype, backend, arguments, changed)


# ---- what a call may do


def check(call, data):
    before = bits(call.arguments.values())
    try:
        out, cache = call.row.forward(**call.arguments)
    except REFUSALS as error:
        check_refusal(error, call.changed and call.arguments)
    except RuntimeWarning:
        assert not (np.isfinite(largest(call.arguments.values())) and has_place(call.dtype, *loops(call)[0]))
    else:
        if not labels_are_checked(call.arguments):
            return
        (*_, expected), backward = loops(call)
        x = call.arguments["x"]
        assert_right(out, expected, backend_of(x), dtype_of(x), largest(call.arguments.values()))
        check_backward(call, data, backend_of(x), dtype_of(x), cache, expected.shape, backward)
    assert bits(call.arguments.values()) == before, "an input was written to"


def labels_are_checked(arguments):
    """Reading those on a device would cost a wait."""
    return "y" not in arguments or on_host(arguments["y"])


def check_backward(call, data, backend, dtype, cache, shape, backward):
    dout = np.asarray(np.random.default_rng(1).standard_normal(shape), dtype)
    changes = [None] if call.row.layer.endswith("_loss") else [None, "dout", "cache"]
    change = data.draw(st.sampled_from(changes), label="change")
    given_dout, given_cache = contiguous(backend, dout), cache
    if change == "dout":
        given_dout = data.draw(other_values(backend, dout), label="dout")
    if change == "cache":
        given_cache = data.draw(st.one_of(not_arrays, other_caches(backend, dtype)), label="cache")
    before, size = bits([given_dout]), largest([*call.arguments.values(), given_dout])
    try:
        gradients = call.row.backward(given_dout, given_cache)
    except REFUSALS as error:
        check_refusal(error, change and ["dout", "cache"])
    except RuntimeWarning:
        assert not (np.isfinite(size) and has_place(dtype, *backward(given_dout)))
    else:
        if change != "cache":
            for gradient, expected in zip(gradients, backward(given_dout), strict=True):
                assert (gradient is None) == (expected is None)
                if expected is not None:
                    assert_right(gradient, expected, backend_of(given_dout), dtype_of(given_dout), size)
    assert bits([given_dout]) == before, "dout was written to"


def other_caches(backend, dtype):
    """Draw what some layer's forward pass returned."""
    return st.sampled_from(ROWS).map(
        lambda row: row.forward(
            **{name: each(lambda a: contiguous(backend, a), value) for name, value in row.draw(dtype).items()},
            **row.options,
        )[1]
    )


def loops(call):
    """Return what the loop versions give in float64, those of a sandwich one after the other, and the backward pass."""
    forward, backward = call.row.oracle or (
        getattr(reference, f"{call.row.layer}_forward"),
        getattr(reference, f"{call.row.layer}_backward"),
    )
    arguments = {
        name: each(wide, value[:2] if isinstance(value, RunningStats) else value) if name in call.row.inputs else value
        for name, value in call.arguments.items()
        if name != "algorithm"
    }
    with np.errstate(all="ignore"):
        out, cached = forward(**arguments)

    def gradients(dout):
        with np.errstate(all="ignore"):
            return as_tuple(backward(wide(dout), cached))

    between = [part[0] for part in cached[1:]] if isinstance(cached, list) else []
    return [*between, np.asarray(out)], gradients


def assert_right(actual, expected, backend, dtype, size):
    """Check place, dtype and shape, and the values if they have a place in the dtype.

    Given the largest magnitude among the inputs: huge ones may cancel each other and leave their rounding errors.
    """
    assert backend_of(actual if actual.shape else actual[None, ...]) == backend
    assert dtype_of(actual) == dtype
    assert tuple(actual.shape) == expected.shape
    if np.isfinite(size) and has_place(dtype, expected):
        host = np.asarray(backend.to_host(actual), np.float64)
        assert np.isfinite(host).all()
        scale = np.max(np.abs(expected), initial=size if size > 1e6 else 0.1)
        assert np.max(np.abs(host - expected), initial=0.0) <= TOLERANCE[dtype] * scale


def has_place(dtype, *arrays):
    """Whether values are finite in this dtype, as are sums of a thousand of them."""
    return all(np.all(np.abs(a) < float(np.finfo(dtype).max) / 1000) for a in arrays if a is not None)


def check_refusal(error, names):
    assert names, "what is sensible was refused"
    assert any(re.search(rf"\b({name}|{SAID_AS.get(name, name)})\b", str(error)) for name in names)


def dtype_of(a):
    return str(a.dtype).rpartition(".")[2]


def wide(a):
    host = to_host(a)
    return host.astype(np.float64) if host.dtype.kind == "f" else host


def host_arrays(values):
    parts = [a for value in values for a in (value if isinstance(value, tuple | list) else [value])]
    return [
        np.asarray(a) if isinstance(a, np.ndarray) else to_host(a)
        for a in parts
        if array_api_compat.is_array_api_obj(a)
    ]


def bits(values):
    return [a.tobytes() for a in host_arrays(values)]


def largest(values):
    """Return the largest magnitude among floats, NaN if one is."""
    return np.max([0.0, *(np.max(np.abs(a), initial=0.0) for a in host_arrays(values) if a.dtype.kind == "f")])


@settings(max_examples=200, derandomize=True)
@given(call=calls(), data=st.data())
def test_random_calls_give_what_the_loops_give_or_name_a_bad_argument(call, data):
    check(call, data)


@pytest.mark.slow
@settings(max_examples=10_000, print_blob=True)
@given(call=calls(), data=st.data())
def test_ten_thousand_random_calls(call, data):
    check(call, data)

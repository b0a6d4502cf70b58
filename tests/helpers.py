"""Helpers of several test modules: backends, memory layouts, and the comparison of arrays."""

import os
from functools import cache

import array_api_compat
import numpy as np
import pytest

from xpconv.backend import LIBRARIES, Backend, Diagnosis, diagnose, get_backend, library_of, to_host

BACKENDS = [
    "numpy",
    "array_api_strict",
    "array_api_strict:device1",
    pytest.param("torch", marks=pytest.mark.torch),
    pytest.param("cupy", marks=pytest.mark.gpu),
]

TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


def required_libraries():
    """Return the libraries that XPCONV_REQUIRE names: tests of these fail where they cannot run."""
    names = [name.strip() for name in os.environ.get("XPCONV_REQUIRE", "").split(",") if name.strip()]
    unknown = sorted(set(names) - set(LIBRARIES))
    if unknown:
        raise pytest.UsageError(f"XPCONV_REQUIRE names {', '.join(unknown)}; expected some of {', '.join(LIBRARIES)}")
    return names


def find_backend(spec: str) -> Backend:
    """Return the backend, or skip the test with the reason why it cannot run here."""
    if reason := why_not(spec):
        give_up = pytest.fail if spec.partition(":")[0] in required_libraries() else pytest.skip
        give_up(reason)
    return get_backend(spec)


def why_not(spec: str) -> str:
    """Return why a backend cannot run here, or "" if it can."""
    diagnosis = _diagnosis(spec)
    return "" if diagnosis.available else f"{spec}: {diagnosis.detail}"


@cache
def _diagnosis(spec: str) -> Diagnosis:
    return diagnose(spec)


# ---- memory layouts: each function returns the values of a NumPy array as an array of the backend in that layout


def contiguous(backend, host):
    return backend.asarray(np.array(host, order="C"))


def every_second_element(backend, host):
    """The gaps between the elements hold values that no layer may read."""
    gap = {"f": np.nan, "u": 255}.get(host.dtype.kind, -1)
    larger = backend.asarray(np.full([2 * size for size in host.shape], gap, dtype=host.dtype))
    view = (slice(None, None, 2),) * host.ndim
    larger[view] = contiguous(backend, host)
    return larger[view]


def negative_strides(backend, host):
    if backend.library == "torch":  # it has no negative strides
        return contiguous(backend, host)
    backwards = (slice(None, None, -1),) * host.ndim
    return contiguous(backend, host[backwards])[backwards]


def fortran_ordered(backend, host):
    return backend.xp.permute_dims(contiguous(backend, host.T), tuple(range(host.ndim))[::-1])


def read_only(backend, host):
    x = contiguous(backend, host)
    if backend.library in ("numpy", "array_api_strict"):  # the other libraries have no such flag
        getattr(x, "_array", x).flags.writeable = False
    return x


LAYOUTS = [contiguous, every_second_element, negative_strides, fortran_ordered, read_only]


# ---- values


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def columns_by_loops(x, window, value=0.0):
    """Return every window as one column, (C, KH * KW, N, OH, OW)."""
    N, C, *image = x.shape
    (KH, KW), (SH, SW), sides, (DH, DW) = window
    padded = np.pad(x, ((0, 0), (0, 0), *sides), constant_values=value)
    OH, OW = window.output_size(tuple(image))
    out = np.empty((C, KH * KW, N, OH, OW))
    for i in range(OH):
        for j in range(OW):
            rows, columns = i * SH + DH * np.arange(KH), j * SW + DW * np.arange(KW)
            out[..., i, j] = padded[:, :, rows[:, None], columns].reshape(N, C, -1).transpose(1, 2, 0)
    return out


# ---- comparison


def assert_copies(params, best):
    """Check that the parameters of a model are copies of its Solver's best parameters."""
    assert params.keys() == best.keys()
    for name, kept in best.items():
        np.testing.assert_array_equal(to_host(params[name]), to_host(kept))
        assert params[name] is not kept


def assert_array(actual, expected, backend, dtype, *, tolerance=None):
    """Check values, shape, dtype, library and device.

    Differences are relative to the largest expected magnitude, or to 0.1 if that is smaller: where zeros are
    expected, rounding errors remain.
    """
    expected = np.asarray(expected)
    assert library_of(actual) == backend.library
    assert array_api_compat.device(actual) == backend.device
    assert actual.dtype == backend.dtype(dtype)
    assert tuple(actual.shape) == expected.shape
    difference = np.max(np.abs(np.subtract(backend.to_host(actual), expected, dtype=np.float64)), initial=0.0)
    scale = np.max(np.abs(expected), initial=0.1)
    assert difference <= (TOLERANCE[dtype] if tolerance is None else tolerance) * scale

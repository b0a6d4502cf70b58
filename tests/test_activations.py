"""Activations: accuracy, limits, and what they keep for the backward pass."""

from math import erfc, exp, pi, sqrt

import numpy as np
import pytest

from tests.helpers import assert_array, find_backend
from xpconv import layers
from xpconv.errors import ArgumentError, ArgumentTypeError

LAYERS = {
    "leaky_relu": (layers.leaky_relu_forward, layers.leaky_relu_backward, {}),
    "gelu": (layers.gelu_forward, layers.gelu_backward, {}),
    "gelu tanh": (layers.gelu_forward, layers.gelu_backward, {"approximate": "tanh"}),
    "silu": (layers.silu_forward, layers.silu_backward, {}),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
every_version = pytest.mark.parametrize("accelerated", ["0", "1"])


def both_passes(name, backend, x):
    forward, backward, options = LAYERS[name]
    out, cache = forward(x, **options)
    return out, backward(backend.xp.ones_like(x), cache)


@every_dtype
@every_version
def test_gelu_and_its_gradient_are_accurate_to_the_rounding_error(backend, dtype, accelerated, monkeypatch):
    monkeypatch.setenv("XPCONV_ACCELERATE", accelerated)
    x = np.concatenate([np.linspace(-12, 12, 4001), 10.0 ** np.arange(-20, 1)]).astype(dtype)
    P = np.asarray([erfc(-v / sqrt(2)) / 2 for v in x.tolist()])
    density = np.asarray([exp(-v * v / 2) / sqrt(2 * pi) for v in x.tolist()])
    out, dx = (backend.to_host(a).astype("float64") for a in both_passes("gelu", backend, backend.asarray(x)))
    eps, x = np.finfo(dtype).eps, x.astype("float64")
    assert np.max(np.abs(out - x * P) / np.maximum(np.abs(x), 1)) <= 2 * eps
    assert np.max(np.abs(dx - P - x * density)) <= 3 * eps


@every_dtype
@every_version
@pytest.mark.parametrize("name", ["gelu tanh", "silu"])
def test_logistic_gates_and_their_gradients_are_accurate_to_the_rounding_error(
    name, backend, dtype, accelerated, monkeypatch
):
    monkeypatch.setenv("XPCONV_ACCELERATE", accelerated)
    a, b = (sqrt(8 / pi), 0.044715) if name == "gelu tanh" else (1.0, 0.0)
    x = np.concatenate([np.linspace(-40, 40, 4001), 10.0 ** np.arange(-20, 1)]).astype(dtype)
    out, dx = (backend.to_host(a).astype("float64") for a in both_passes(name, backend, backend.asarray(x)))
    eps, x = np.finfo(dtype).eps, x.astype("longdouble")
    tail = np.exp(-np.abs(a * x * (1 + b * x * x)))
    tail = tail / (1 + tail)  # 1 - P for x above 0, else P
    P = np.where(x > 0, 1 - tail, tail)
    assert np.max(np.abs(out - x * P) / np.maximum(np.abs(x), 1)) <= 2 * eps
    assert np.max(np.abs(dx - P - x * tail * (1 - tail) * (a + 3 * a * b * x * x))) <= 3 * eps


@every_layer
@every_dtype
@every_version
def test_large_inputs_pass_or_vanish_and_nan_stays(name, backend, dtype, accelerated, monkeypatch):
    monkeypatch.setenv("XPCONV_ACCELERATE", accelerated)
    x = np.asarray([1e30, 800.0, -800.0, -1e30], dtype)
    slope = 0.01 if name == "leaky_relu" else 0.0
    for k in range(4):
        out, dx = both_passes(name, backend, backend.asarray(x[k : k + 1]))
        assert_array(out, np.where(x < 0, x * slope, x)[k : k + 1], backend, dtype)
        assert_array(dx, np.asarray([1, 1, slope, slope])[k : k + 1], backend, dtype)
    out, _ = both_passes(name, backend, backend.asarray(np.asarray([1.0, np.nan], dtype)))
    assert np.isnan(backend.to_host(out)).tolist() == [False, True]


@every_layer
def test_large_arrays_give_the_bits_of_their_parts(name):
    """NumPy computes large arrays in tiles and blocks."""
    backend = find_backend("numpy")
    x = 3 * np.random.default_rng(0).standard_normal((13, 3, 101, 103)).astype("float32")
    whole, parts = (
        both_passes(name, backend, x),
        [both_passes(name, backend, image[None]) for image in x],
    )
    for k, result in enumerate(whole):
        np.testing.assert_array_equal(result, np.concatenate([part[k] for part in parts]))


def test_options_are_checked():
    x = np.ones(3)
    with pytest.raises(ArgumentError, match=r"negative_slope is -1; expected a finite number, 0 or more"):
        layers.leaky_relu_forward(x, negative_slope=-1)
    with pytest.raises(ArgumentTypeError, match=r"negative_slope is '1'; expected a finite number, 0 or more"):
        layers.leaky_relu_forward(x, negative_slope="1")
    with pytest.raises(ArgumentError, match=r"approximate is 'erf'; expected none or tanh"):
        layers.gelu_forward(x, approximate="erf")

"""Normalisation where float32 loses precision: values far from zero, and huge values."""

import numpy as np
import pytest

from tests.helpers import draw
from xpconv import layers


@pytest.mark.parametrize("kind", ["contiguous", "reversed", "every other"])
@pytest.mark.parametrize("mean", [0, 100, 1e4])
def test_norms_of_long_rows_are_accurate_far_from_zero(kind, mean):
    whole = (mean + draw(1, 2, 2, 400_000)).astype("float32")
    x = {"contiguous": whole, "reversed": whole[..., ::-1], "every other": whole[..., ::2]}[kind]
    one, precise = np.ones(2, np.float32), x.astype(float)
    out, cache = layers.groupnorm_forward(x, one, 0 * one, groups=2)
    expected, precise_cache = layers.groupnorm_forward(precise, np.ones(2), np.zeros(2), groups=2)
    np.testing.assert_allclose(out, expected, atol=2e-5 + 2e-7 * mean)
    dout = draw(*x.shape[:-1], x.shape[-1] + 1)[..., 1:].astype("float32")
    for actual, wanted in zip(
        layers.groupnorm_backward(dout, cache),
        layers.groupnorm_backward(dout.astype(float), precise_cache),
        strict=True,
    ):
        np.testing.assert_allclose(actual, wanted, atol=1e-5 * np.abs(wanted).max() + 3e-5 * mean)


NORMS = {
    "batch": (layers.batchnorm_forward, layers.batchnorm_backward, {"train": True}),
    "batch, stepwise": (layers.batchnorm_forward, layers.batchnorm_backward_stepwise, {"train": True}),
    "layer": (layers.layernorm_forward, layers.layernorm_backward, {}),
    "group": (layers.groupnorm_forward, layers.groupnorm_backward, {"groups": 2}),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mean", [1e3, -1e6])
def test_gradients_of_norms_are_accurate_far_from_zero(norm, mean, backend):
    forward, backward, options = NORMS[norm]
    x, dout, gamma = (mean + draw(64, 6)).astype("float32"), draw(64, 6, seed=1), 1 + np.arange(6.0)
    results = [
        backward(cast(dout), forward(*map(cast, (x, gamma, gamma)), **options)[1])
        for cast in (lambda a: backend.asarray(a, "float32"), lambda a: np.asarray(a, float))
    ]
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(backend.to_host(actual), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("size", "gradient"), [(1e16, 1e-9), (1e18, 1e-4), (1e18, 1e-6)])
def test_small_gradients_of_norms_of_huge_values_do_not_vanish(size, gradient):
    x, dout, one = draw(64, 4) * size, draw(65, 4)[1:] * gradient, np.ones(4)
    expected = layers.batchnorm_backward(dout, layers.batchnorm_forward(x, one, one, train=True)[1])[0]
    x, dout, one = (a.astype("float32") for a in (x, dout, one))
    dx = layers.batchnorm_backward(dout, layers.batchnorm_forward(x, one, one, train=True)[1])[0]
    np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [1e18, 1e19, 1e25, 1e30])
@pytest.mark.parametrize("shape", [(64, 4), (256, 4), (600, 64), (32, 8, 16, 16)])
@pytest.mark.parametrize("accelerated", ["1", "0"])
def test_norms_of_huge_values_raise_no_floating_point_error(scale, shape, accelerated, monkeypatch):
    monkeypatch.setenv("XPCONV_ACCELERATE", accelerated)
    x, ones = (draw(*shape) * scale).astype("float32"), np.ones(shape[1], np.float32)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for out, _ in (
            layers.batchnorm_forward(x, ones, 0 * ones, train=True),
            layers.groupnorm_forward(x, ones, 0 * ones, groups=2),
        ):
            assert float(np.std(out.astype("float64"))) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e10, 1e15, 1e18])
def test_gradients_of_norms_are_accurate_for_huge_values(scale):
    x, dout = (draw(64, 4, seed=seed).astype("float32") for seed in (0, 1))
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    dx = layers.batchnorm_backward(dout, layers.batchnorm_forward(x, ones, zeros, train=True, eps=1e-30)[1])[0]
    x *= np.float32(scale)
    scaled = layers.batchnorm_backward(dout, layers.batchnorm_forward(x, ones, zeros, train=True, eps=1e-30)[1])[0]
    np.testing.assert_allclose(scaled * np.float32(scale), dx, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accelerated", ["1", "0"])
def test_norms_of_float32_far_from_zero_lose_no_digits_to_the_mean(accelerated, monkeypatch):
    monkeypatch.setenv("XPCONV_ACCELERATE", accelerated)
    x, one = (1e5 + 0.1 * draw(64, 1000)).astype("float32"), np.ones(1000, np.float32)
    expected = layers.layernorm_forward(x.astype(float), np.ones(1000), np.zeros(1000))[0]
    out, cache = layers.layernorm_forward(x, one, 0 * one)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    exact = x.astype(float).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(cache.mean, exact, rtol=0, atol=np.spacing(np.float32(1e5)) / 2)


def test_a_row_counts_to_its_last_element():
    x, one = draw(3, 2049).astype("float32"), np.ones(2049, np.float32)
    x[:, -1] = 100
    out, _ = layers.layernorm_forward(x, one, 0 * one)
    np.testing.assert_allclose(out.mean(axis=1, dtype=float), 0, atol=1e-6)


@pytest.mark.parametrize("ratio", [0, 1.9, 2.1, 2.9, 3.1, 20])  # of mean to deviation, around the limits of centring
def test_batch_norm_of_float32_keeps_its_digits_near_the_limit_of_centring(ratio):
    x, dout, ones = draw(64, 4, 16, 16) + ratio, draw(64, 4, 16, 16, seed=1), np.ones(4)
    x, dout, ones = (a.astype("float32") for a in (x, dout, ones))
    results = []
    for dtype in ("float32", "float64"):
        images, gradient, gamma = (a.astype(dtype) for a in (x, dout, ones))
        out, cache = layers.batchnorm_forward(images, gamma, 0 * gamma, train=True)
        results.append((out, *layers.batchnorm_backward(gradient, cache)))
    for result, exact in zip(*results, strict=True):
        assert np.max(np.abs(result - exact)) < 5e-6 * np.max(np.abs(exact))

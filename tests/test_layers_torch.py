"""Layers and their gradients against PyTorch's autograd, for every row of the table that PyTorch can compute."""

import importlib

import numpy as np
import pytest

from tests.helpers import assert_array, contiguous, find_backend
from tests.layer_table import ROWS, Torch, as_pair, each
from xpconv import layers

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def torch():
    find_backend("torch")
    return importlib.import_module("torch")


def in_torch(row):
    """Whether PyTorch has the layer: it has no dropout with a given mask, nor more padding than half a window."""
    if row.options.get("padding") == "same":
        return row.layer == "conv" and row.options.get("stride", 1) == 1  # PyTorch refuses strides with "same"
    padding, kernel_size = as_pair(row.options.get("padding", 0)), as_pair(row.options.get("kernel_size", 9))
    if not isinstance(padding[0], int):
        return True
    return hasattr(Torch, row.layer) and all(2 * p <= k for p, k in zip(padding, kernel_size, strict=True))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("row", [row for row in ROWS if in_torch(row)], ids=str)
def test_layer_and_its_gradients_equal_autograd(row, dtype, torch):
    backend, host = find_backend("torch"), row.draw(dtype)
    inputs = {name: each(lambda a: contiguous(backend, a), value) for name, value in host.items()}
    out, cache = row.forward(**inputs, **row.options)
    dout = backend.asarray(np.random.default_rng(1).standard_normal(tuple(out.shape)), dtype)
    gradients = row.backward(dout, cache)

    wrt = {name: inputs[name].clone().requires_grad_() for name in row.differentiable if inputs[name] is not None}
    expected = getattr(Torch(torch), row.layer)(**{**inputs, **wrt}, **row.options)
    assert_array(out, expected.detach().numpy(), backend, dtype)
    wanted = dict(zip(wrt, torch.autograd.grad(expected, list(wrt.values()), dout), strict=True))
    for name, gradient in zip(row.differentiable, gradients, strict=True):
        assert (gradient is None) == (name not in wanted)
        if gradient is not None:
            assert_array(gradient, wanted[name].numpy(), backend, dtype)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 2)])
def test_running_averages_are_those_of_torch_but_for_the_biased_variance(shape, torch):
    backend, rng = find_backend("torch"), np.random.default_rng(0)
    x = backend.asarray(rng.standard_normal(shape))
    ones, zeros = backend.asarray(np.ones(4)), backend.asarray(np.zeros(4))
    mean, var = backend.asarray(rng.standard_normal(4)), backend.asarray(rng.uniform(0.5, 2, 4))
    cache = layers.batchnorm_forward(x, ones, zeros, layers.RunningStats(mean, var), train=True, momentum=0.8)[1]
    torch_mean, torch_var = mean.clone(), var.clone()
    torch.nn.functional.batch_norm(x, torch_mean, torch_var, ones, zeros, True, 0.2)
    n = x.numel() // 4
    assert_array(cache.running.mean, torch_mean.numpy(), backend, "float64")
    assert_array(cache.running.var, (0.8 * var + (torch_var - 0.8 * var) * (n - 1) / n).numpy(), backend, "float64")


def test_most_rows_are_compared_with_torch():
    assert {row.layer for row in ROWS} - {row.layer for row in ROWS if in_torch(row)} == {"dropout"}

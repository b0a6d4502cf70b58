"""Layers and their gradients against PyTorch's autograd, for every row of the table that PyTorch can compute."""

import importlib

import numpy as np
import pytest

from tests.helpers import assert_array, contiguous, find_backend
from tests.layer_table import ROWS, each
from xpconv import layers

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def torch():
    find_backend("torch")
    return importlib.import_module("torch")


class Torch:
    """The layers by the names and arguments of this library, as PyTorch computes them."""

    def __init__(self, torch):
        self.F = torch.nn.functional

    def affine(self, x, w, b):
        return self.F.linear(x.flatten(1), w.T, b)

    def relu(self, x):
        return self.F.relu(x)

    def conv(self, x, w, b, stride=1, padding=0, algorithm=None):
        padding = padding if padding == "same" else as_pair(padding)
        return self.F.conv2d(x, w, b, stride=as_pair(stride), padding=padding)

    def max_pool(self, x, kernel_size, stride=None, padding=0):
        return self.F.max_pool2d(x, as_pair(kernel_size), stride and as_pair(stride), as_pair(padding))

    def avg_pool(self, x, kernel_size, stride=None, padding=0):
        return self.F.avg_pool2d(x, as_pair(kernel_size), stride and as_pair(stride), as_pair(padding))

    def global_avg_pool(self, x):
        return self.F.adaptive_avg_pool2d(x, 1).flatten(1)

    def batchnorm(self, x, gamma, beta, train, running=(None, None), momentum=0.9, eps=1e-5):
        mean, var = each(lambda a: a.clone(), running) if running[0] is not None else running
        return self.F.batch_norm(x, mean, var, gamma, beta, train, 1 - momentum, eps)

    batchnorm_stepwise = batchnorm

    def layernorm(self, x, gamma, beta, eps=1e-5):
        return self.F.layer_norm(x, x.shape[1:], gamma, beta, eps)

    def groupnorm(self, x, gamma, beta, groups, eps=1e-5):
        return self.F.group_norm(x, groups, gamma, beta, eps)

    def softmax_loss(self, x, y):
        return self.F.cross_entropy(x, y)

    def svm_loss(self, x, y):
        return self.F.multi_margin_loss(x, y) * x.shape[1]  # PyTorch takes the mean over classes, too


def as_pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def in_torch(row):
    """Whether PyTorch has the layer: it has no dropout with a given mask, nor more padding than half a window."""
    if row.options.get("padding") == "same":
        return row.options.get("stride", 1) == 1  # PyTorch refuses strides with "same"
    padding, kernel_size = as_pair(row.options.get("padding", 0)), as_pair(row.options.get("kernel_size", 9))
    return hasattr(Torch, row.layer) and all(2 * p <= k for p, k in zip(padding, kernel_size, strict=True))


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

"""A batch norm and the ReLU after it are computed together in training, with the bits of one after the other."""

import numpy as np
import pytest

from tests.helpers import BACKENDS, LAYOUTS, draw, find_backend
from xpconv import nn, ops
from xpconv.layers.norm import BatchNormReluCache, batchnorm_relu_forward
from xpconv.nn import _chain, residual, sequential
from xpconv.nn._norm_relu import BatchNormRelu, fused_layers
from xpconv.nn._parts import WHOLE, Part, run_pass
from xpconv.training._microbatches import MicroBatches

IMAGE = (3, 6, 6)
OPTIONS = {"axes": (0, 2), "tile_axis": 1}


class OwnRelu(nn.Relu):
    """A ReLU of a user's own."""


NETS = {
    "pair": lambda: [nn.Conv(4, padding="same"), nn.BatchNorm(), nn.Relu(), nn.Affine(3)],
    "first": lambda: [nn.BatchNorm(), nn.Relu(), nn.Relu(), nn.Affine(3)],
    "fixed": lambda: [
        nn.Affine(5),
        nn.BatchNorm(fixed="gamma|beta"),
        nn.Relu(),
        nn.Affine(4),
        nn.BatchNorm(fixed="gamma"),
        nn.Relu(),
        nn.Affine(3),
    ],
    "vectors": lambda: [nn.Affine(5), nn.BatchNorm(bias_correction=False, eps=1e-3), nn.Relu(), nn.Affine(3)],
    "frozen": lambda: [
        nn.Conv(4, padding="same"),
        nn.BatchNorm(trainable=False),
        nn.Relu(),
        nn.Conv(2),
        nn.BatchNorm(),
        nn.Relu(),
        nn.Affine(3),
    ],
    "frozen below": lambda: [
        nn.Conv(4, padding="same", trainable=False),
        nn.BatchNorm(trainable=False),
        nn.Relu(),
        nn.BatchNorm(),
        nn.Relu(),
        nn.Affine(3),
    ],
    "residual": lambda: [
        nn.BatchNorm(),
        nn.Relu(),
        nn.Residual(
            [nn.BatchNorm(), nn.Relu(), nn.Dropout(0.8), nn.Conv(4, padding="same"), nn.BatchNorm(), nn.Relu()],
            shortcut=[nn.Conv(4, 1), nn.BatchNorm(), nn.Relu()],
        ),
        nn.Affine(3),
    ],
}


def as_pass(net, backend, dtype, count=1, norm_sync="whole"):
    """Return the loss, the gradients and the new state of a training pass as bytes, with the scores in evaluation."""
    model = nn.Sequential(NETS[net](), input_shape=IMAGE, rng=0, seed=1, backend=backend, dtype=dtype)
    X, y = backend.asarray(draw(8, *IMAGE), dtype), backend.asarray(np.arange(8) % 3)
    loss, grads = MicroBatches(model, count, norm_sync, 8).loss(model, X, y)
    results = {"loss": loss, "scores": model.loss(X), **grads, **model.state}
    return {name: backend.to_host(a).tobytes() for name, a in results.items()}


@pytest.mark.parametrize("spec", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("count", "norm_sync"), [(1, "whole"), (2, "whole"), (2, "ghost")])
def test_a_net_has_the_same_bits_as_with_separate_layers(monkeypatch, spec, dtype, net, count, norm_sync):
    backend = find_backend(spec)
    together = as_pass(net, backend, dtype, count, norm_sync)
    for module in (_chain, residual, sequential):
        monkeypatch.setattr(module, "fused_layers", lambda layers: list(enumerate(layers)))
    assert as_pass(net, backend, dtype, count, norm_sync) == together


@pytest.mark.parametrize("spec", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_operation_has_the_bits_of_a_norm_and_a_relu(spec, dtype, layout):
    backend = find_backend(spec)
    x = draw(5, 4, 24)
    x[:, 0] = 0  # outputs are beta there: -0.0, which is not positive
    x[0, 1, 3] = np.nan
    x, dout = (layout(backend, a.astype(dtype)) for a in (x, draw(5, 4, 24, seed=1)))
    gamma, beta = (backend.asarray(np.reshape(a, (1, 4, 1)), dtype) for a in ([1, -1, 2, 1e-6], [-0.0, 0.5, 0, 0]))
    out, *statistics, signs = ops.normalise_relu(x, gamma, beta, eps=1e-5, **OPTIONS)
    normalised, mean, var, inv_std = ops.normalise(x, gamma, beta, eps=1e-5, **OPTIONS)
    expected, mask = ops.relu(normalised)
    others = x, mean, inv_std, gamma
    grads = ops.normalise_relu_backward(dout, signs, *others, param_axes=(0, 2), **OPTIONS)
    separate = ops.normalise_backward(ops.relu_backward(dout, mask), *others, param_axes=(0, 2), **OPTIONS)
    for one, other in zip((out, *statistics, *grads), (expected, mean, var, inv_std, *separate), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert backend.to_host(one).tobytes() == backend.to_host(other).tobytes()


def test_only_batch_norms_right_before_a_relu_are_joined():
    norm, relu = nn.BatchNorm(trainable=False), nn.Relu()
    layers = [norm, relu, relu, nn.GroupNorm(), relu, norm, nn.Dropout(), relu, norm, OwnRelu(), norm]
    steps = fused_layers(layers)
    assert steps[0] == (0, BatchNormRelu(norm, relu, trainable=False))
    assert steps[1:] == list(enumerate(layers))[2:]
    assert fused_layers([]) == []


def test_layers_are_joined_in_training_and_not_in_evaluation():
    layer, x = BatchNormRelu(nn.BatchNorm(), nn.Relu()), draw(4, 2)
    p = {"gamma": np.ones(2), "beta": np.zeros(2), "running_mean": np.zeros(2), "running_var": np.ones(2)}
    for train, part in [(True, WHOLE), (False, WHOLE), (True, Part(0, 2, norm_sync=False))]:
        _, cache = run_pass(layer.forward_pass(x, p, train=train, seed=0, part=part))
        assert isinstance(cache, BatchNormReluCache) == train


def test_an_error_names_the_batch_norm():
    net = nn.Sequential([nn.Affine(4), nn.BatchNorm(), nn.Relu(), nn.Affine(3)], input_shape=(5,), rng=0)
    with pytest.raises(ValueError, match="one value per channel") as failure:
        net.loss(np.ones((1, 5), np.float32), [0])
    assert failure.value.__notes__ == ["in layers[1], BatchNorm()"]


def test_a_single_value_per_channel_is_refused():
    ones = np.ones(2)
    with pytest.raises(ValueError, match=r"x has shape \(1, 2\), one value per channel"):
        batchnorm_relu_forward(np.ones((1, 2)), ones, ones, (ones, ones), momentum=0.9, eps=1e-5)

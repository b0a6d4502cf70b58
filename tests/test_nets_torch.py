"""Nets against PyTorch: the same layers on the same parameters, its autograd for the gradients."""

import numpy as np
import pytest

from tests.helpers import find_backend
from tests.nets import IMAGE, NETS
from xpconv import nn

pytestmark = pytest.mark.torch


def scores(torch, net, params, x):
    """Compute a net's scores in training mode with torch's functions."""
    F = torch.nn.functional
    steps = {
        nn.Affine: lambda x, p, layer: x.flatten(1) @ p["W"] + p.get("b", 0.0),
        nn.Conv: lambda x, p, layer: F.conv2d(
            x, p["W"], p.get("b"), stride=layer.stride, padding=[before for before, _ in layer.window.padding]
        ),
        nn.BatchNorm: lambda x, p, layer: F.batch_norm(
            x, None, None, p["gamma"], p["beta"], training=True, eps=layer.eps
        ),
        nn.LayerNorm: lambda x, p, layer: F.layer_norm(x, x.shape[1:], p["gamma"], p["beta"], eps=layer.eps),
        nn.GroupNorm: lambda x, p, layer: F.group_norm(x, layer.groups, p["gamma"], p["beta"], eps=layer.eps),
        nn.AvgPool: lambda x, p, layer: F.avg_pool2d(x, layer.kernel_size, layer.stride),
        nn.MaxPool: lambda x, p, layer: F.max_pool2d(x, layer.kernel_size, layer.stride),
        nn.GlobalAvgPool: lambda x, p, layer: x.mean((2, 3)),
        nn.Relu: lambda x, p, layer: x.relu(),
        nn.Residual: lambda x, p, layer: run("body", layer.body, x, p) + run("shortcut", layer.shortcut, x, p),
    }

    def run(branch, layers, x, p):
        for position, layer in enumerate(layers):
            prefix = f"{branch}.{position}."
            inner = {name.removeprefix(prefix): a for name, a in p.items() if name.startswith(prefix)}
            x = steps[type(layer)](x, inner, layer)
        return x

    for layer, keys in zip(net.layers, net.layer_keys, strict=True):
        x = steps[type(layer)](x, {name: params[key] for name, key in keys.items() if key in params}, layer)
    return x


@pytest.mark.parametrize("name", [name for name in NETS if "dropout" not in name and name != "every layer"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
@pytest.mark.parametrize("spec", ["numpy", "array_api_strict", "torch"])
def test_nets_have_the_loss_and_gradients_of_autograd(name, dtype, tolerance, spec):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((6, *IMAGE)).astype(dtype), rng.integers(0, 5, 6)
    backend = find_backend(spec)
    net = NETS[name](dtype=dtype, rng=0, reg=0.2, backend=backend)
    loss, grads = net.loss(X, y)

    leaves = {key: torch.tensor(backend.to_host(w)).requires_grad_() for key, w in net.params.items()}
    expected = torch.nn.functional.cross_entropy(scores(torch, net, leaves, torch.tensor(X)), torch.tensor(y))
    expected = expected + 0.1 * sum((w * w).sum() for key, w in leaves.items() if key.startswith("W"))
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=tolerance)
    for key, leaf in leaves.items():
        wanted = leaf.grad.numpy()
        difference = np.max(np.abs(backend.to_host(grads[key]) - wanted))
        assert difference <= tolerance * max(np.max(np.abs(wanted)), 0.1), key

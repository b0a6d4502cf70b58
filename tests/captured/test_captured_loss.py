"""`xpconv.capture` without a GPU, on the emulated CuPy of cupy/."""

import gc
import weakref

import numpy as np
import pytest

from tests.captured.test_captured_steps import IMAGE, NETS, CapturableOwn, Own, products_may_be_captured
from xpconv import capture, get_backend, nn
from xpconv.backend import to_host
from xpconv.ops.cupy import _graph
from xpconv.training.optim import sgd

cupy = pytest.importorskip("cupy")
products_may_be_captured = products_may_be_captured  # a fixture


def make_net(layers="residual"):
    layers = NETS[layers]() if isinstance(layers, str) else layers
    return nn.Sequential(layers, input_shape=IMAGE, rng=0, reg=1e-3, backend="cupy")


def minibatch(k, size=5):
    rng = np.random.default_rng(k)
    return rng.standard_normal((size, *IMAGE)).astype(np.float32), rng.integers(0, 3, size)


def results_of(net, loss_and_gradients, minibatches, change=None):
    """Train with a loop of one's own and return all results."""
    results = []
    for k, (X, y) in enumerate(minibatches):
        if change is not None and k == 3:
            change(net)
        loss, grads = loss_and_gradients(X, y)
        results += [float(loss), *(to_host(grad) for grad in grads.values())]
        for name, grad in grads.items():
            sgd(net.params[name], grad, {"learning_rate": 0.05}, in_place=True)
    return [*results, *map(to_host, [*net.params.values(), *net.state.values()])]


def check_same(layers="residual", minibatches=None, change=None, launches=6):
    minibatches = [minibatch(k) for k in range(6)] if minibatches is None else minibatches
    plain, net = make_net(layers), make_net(layers)
    before = cupy.cuda.Graph.launches
    with capture(net, *minibatches[0]) as loss_and_gradients:
        results = results_of(net, loss_and_gradients, minibatches, change)
    assert cupy.cuda.Graph.launches - before == launches
    for actual, expected in zip(results, results_of(plain, plain.loss, minibatches, change), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("layers", NETS)
def test_a_captured_loss_has_the_same_bits(layers):
    check_same(layers)


def test_arrays_on_the_device_are_copied():
    backend = get_backend("cupy")
    check_same(minibatches=[tuple(map(backend.asarray, minibatch(k))) for k in range(6)])


def test_a_minibatch_of_another_size_is_not_captured():
    check_same("batch norm", [minibatch(k, size=4 if k == 2 else 5) for k in range(6)], launches=5)


def replace_parameter(net):
    net.params["W1"] = 0.5 * net.params["W1"]


def freeze(net):
    net.freeze("conv1")


def change_stream(net):
    net.seed_stream = np.random.default_rng(4)


@pytest.mark.parametrize("change", [replace_parameter, freeze, change_stream], ids=lambda change: change.__name__)
def test_changes_of_the_model_have_their_effect(change):
    check_same(change=change)


def test_the_next_call_overwrites_the_results():
    net = make_net("affine")
    with capture(net, *minibatch(0)) as loss_and_gradients:
        first, _ = loss_and_gradients(*minibatch(0))
        second, _ = loss_and_gradients(*minibatch(1))
    assert first is second


def test_what_cannot_be_captured_is_told_and_computed():
    net, (X, y) = make_net([Own(), nn.Affine(3)]), minibatch(0)
    loss_and_gradients = capture(net, X, y)
    assert loss_and_gradients.obstacle.startswith("layer 0 is a Own of your own: set its attribute capturable to True")
    assert float(loss_and_gradients(X, y)[0]) == float(net.loss(X, y)[0])
    check_same([CapturableOwn(), nn.Affine(3)])


def test_a_closed_capture_frees_its_memory_and_may_be_called_again(monkeypatch):
    memories, plain = [], _graph.GraphMemory.__init__

    def noting(self):
        memories.append(weakref.ref(self))
        plain(self)

    monkeypatch.setattr(_graph.GraphMemory, "__init__", noting)
    net, (X, y) = make_net("affine"), minibatch(0)
    with capture(net, X, y) as loss_and_gradients:
        loss = float(loss_and_gradients(X, y)[0])
    gc.collect()
    assert not memories[0]()
    assert float(loss_and_gradients(X, y)[0]) == loss
    assert len(memories) == 2

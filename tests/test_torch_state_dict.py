"""Parameters to and from PyTorch: scores, losses and gradients agree with a torch.nn.Sequential of the same layers."""

import copy
import subprocess
import sys

import numpy as np
import pytest

from tests.helpers import find_backend
from tests.layer_table import OBJECTS, torch_modules
from tests.nets import IMAGE, NETS
from xpconv import nn
from xpconv.backend import to_host
from xpconv.errors import ArgumentError, ArgumentTypeError
from xpconv.io.torch import load_torch_state_dict, module_names, to_torch_state_dict
from xpconv.nn import ConvNet, Sequential, ThreeLayerConvNet

DETERMINISTIC = [name for name in NETS if "dropout" not in name and name != "every layer"]


def as_torch(net):
    """Return a torch.nn.Sequential of the same layers with other parameters."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(*torch_modules(torch.nn, net.layers, net.input_shape)).to(getattr(torch, net.dtype))
    for key, value in module.state_dict().items():  # with gamma 1 and beta 0, exchanged names would go unnoticed
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + (0.5 if "var" in key else -0.5))
    return module


def batch(dtype):
    rng = np.random.default_rng(4)
    return rng.standard_normal((6, *IMAGE)).astype(dtype), rng.integers(0, 5, 6)


def scores_of(module, net, X):
    torch = pytest.importorskip("torch")
    return module(torch.as_tensor(X.reshape(len(X), *net.input_shape)))


def assert_close(actual, expected, tolerance=1e-10):
    actual, expected = to_host(actual), to_host(expected)
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= tolerance * max(np.max(np.abs(expected)), 0.1)


@pytest.mark.torch
@pytest.mark.parametrize("name", NETS)
def test_scores_agree_after_a_conversion_in_either_direction(name):
    torch = pytest.importorskip("torch")
    net = NETS[name](dtype="float64", rng=0, backend="numpy")
    X, _ = batch("float64")

    theirs = as_torch(net)
    load_torch_state_dict(net, theirs.state_dict())
    assert_close(net.loss(X), scores_of(theirs.eval(), net, X))

    ours = NETS[name](dtype="float64", rng=1, backend="numpy")
    entries = to_torch_state_dict(ours)
    assert list(entries) == list(theirs.state_dict())
    theirs.load_state_dict(
        {key: torch.as_tensor(a) for key, a in entries.items()}
    )  # strict, so that missing keys are an error
    assert_close(ours.loss(X), scores_of(theirs.eval(), ours, X))


@pytest.mark.torch
@pytest.mark.parametrize("layer", [layer for each in OBJECTS.values() for layer in each.examples], ids=repr)
def test_each_layer_gives_the_scores_of_its_pytorch_module(layer):
    net = Sequential([layer, nn.Affine(5)], input_shape=(4, 6, 8), dtype="float64", rng=0, backend="numpy")
    theirs = as_torch(net).eval()
    load_torch_state_dict(net, theirs.state_dict())
    X = np.random.default_rng(4).standard_normal((6, 4, 6, 8))
    assert_close(net.loss(X), scores_of(theirs, net, X))


@pytest.mark.torch
@pytest.mark.parametrize("spec", ["numpy", "array_api_strict", "torch"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_loss_and_gradients_agree_with_pytorch(name, spec):
    torch = pytest.importorskip("torch")
    net = NETS[name](dtype="float64", rng=0, backend=find_backend(spec))
    theirs = as_torch(net).train()
    load_torch_state_dict(net, theirs.state_dict())
    X, y = batch("float64")
    expected = torch.nn.functional.cross_entropy(scores_of(theirs, net, X), torch.as_tensor(y))
    expected.backward()
    loss, grads = net.loss(X, y)
    assert_close(loss, expected)
    net.params = grads  # gradients have the layouts of their parameters
    entries = to_torch_state_dict(net)
    for key, parameter in theirs.named_parameters():
        assert_close(entries[key], parameter.grad)


@pytest.mark.torch
def test_running_statistics_differ_after_training_as_documented():
    """PyTorch moves its running variance towards the unbiased variance, n / (n - 1) of ours."""
    pytest.importorskip("torch")
    net = Sequential(
        [nn.BatchNorm(momentum=0.8, bias_correction=False), nn.Affine(5)],
        input_shape=IMAGE,
        dtype="float64",
        rng=0,
        backend="numpy",
    )
    theirs = as_torch(net).train()
    load_torch_state_dict(net, theirs.state_dict())
    before = to_torch_state_dict(net)
    X, y = batch("float64")
    scores_of(theirs, net, X)
    net.loss(X, y)
    after, n = to_torch_state_dict(net), 6 * IMAGE[1] * IMAGE[2]
    assert_close(after["0.running_mean"], theirs[0].running_mean)
    moved = after["0.running_var"] - 0.8 * before["0.running_var"]
    assert_close(0.8 * before["0.running_var"] + moved * n / (n - 1), theirs[0].running_var)
    assert (after["0.num_batches_tracked"], int(theirs[0].num_batches_tracked)) == (0, 1)


@pytest.mark.torch
def test_named_modules_are_matched_in_order():
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.features = torch.nn.Sequential(
                torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
            )
            self.hidden, self.out = torch.nn.Linear(4 * 3 * 4, 7), torch.nn.Linear(7, 5)

        def forward(self, x):
            return self.out(self.hidden(self.features(x).flatten(1)).relu())

    theirs = Net()
    net = ThreeLayerConvNet(
        input_dim=IMAGE, num_filters=4, filter_size=3, hidden_dim=7, num_classes=5, rng=0, backend="numpy"
    )
    X, _ = batch("float32")
    names = module_names(theirs.state_dict())
    assert names == ["features.0", "hidden", "out"]
    load_torch_state_dict(net, theirs.state_dict(), names)
    assert_close(net.loss(X), scores_of(theirs, net, X), 1e-5)
    theirs.load_state_dict({key: torch.as_tensor(a + 1) for key, a in to_torch_state_dict(net, names).items()})
    assert_close(net.params["W3"] + 1, theirs.out.weight.T)


@pytest.mark.torch
def test_tensors_without_a_numpy_dtype_are_refused_by_name():
    torch = pytest.importorskip("torch")
    net = NETS["two"](rng=0, backend="numpy")
    entries = {key: torch.as_tensor(a).bfloat16() for key, a in to_torch_state_dict(net).items()}
    with pytest.raises(ArgumentTypeError, match=r"0\.weight cannot be converted to an array \(.*pass it as float32"):
        load_torch_state_dict(net, entries)


# ---- without torch


def test_the_batch_counter_is_exchanged_with_pytorch():
    net = Sequential([nn.BatchNorm(), nn.Affine(5)], input_shape=IMAGE, dtype="float64", rng=0, backend="numpy")
    X, y = batch("float64")
    for _ in range(3):
        net.loss(X, y)
    entries = to_torch_state_dict(net)
    assert (entries["0.num_batches_tracked"].dtype, entries["0.num_batches_tracked"].item()) == (np.int64, 3)
    other = Sequential([nn.BatchNorm(), nn.Affine(5)], input_shape=IMAGE, dtype="float64", rng=1, backend="numpy")
    load_torch_state_dict(other, entries)
    for model in (net, other):
        model.loss(2 * X, y)
    for key, value in net.state.items():
        np.testing.assert_array_equal(other.state[key], value)


def test_running_averages_without_a_batch_counter_keep_their_weight():
    net = Sequential([nn.BatchNorm(), nn.Affine(5)], input_shape=IMAGE, dtype="float64", rng=0, backend="numpy")
    entries = to_torch_state_dict(net)
    entries["0.running_mean"] += 10
    del entries["0.num_batches_tracked"]
    load_torch_state_dict(net, entries)
    X, y = batch("float64")
    net.loss(X, y)
    np.testing.assert_allclose(net.state["running_mean0"], 9 + 0.1 * X.mean(axis=(0, 2, 3)))


def test_positions_count_flatten_modules():
    net = ConvNet([4, "pool", 6], input_dim=IMAGE, num_classes=5, rng=0, backend="numpy")
    assert list(to_torch_state_dict(net)) == [  # conv, batch norm, relu, pool, conv, batch norm, relu, 2 x global pool
        "0.weight",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
        "4.weight",
        "5.weight",
        "5.bias",
        "5.running_mean",
        "5.running_var",
        "5.num_batches_tracked",
        "9.weight",
        "9.bias",
    ]


@pytest.mark.parametrize("name", NETS)
def test_a_written_state_dict_loads_on_every_backend(name, backend):
    net, other = (NETS[name](rng=seed, backend=where) for seed, where in ((0, "numpy"), (1, backend)))
    for store in (net.params, net.state):
        for index, value in enumerate(store.values()):
            value += index
    load_torch_state_dict(other, to_torch_state_dict(net))
    for ours, theirs in ((net.params, other.params), (net.state, other.state)):
        for key, value in ours.items():
            assert np.array_equal(value, to_host(theirs[key])), key
            assert theirs[key].dtype == backend.dtype("float32")


def test_no_memory_is_shared_with_the_model():
    net = NETS["deep batchnorm"](rng=0, backend="numpy")
    entries = to_torch_state_dict(net)
    load_torch_state_dict(net, entries)
    before = copy.deepcopy((net.params, net.state))
    for values in entries.values():
        assert values.flags.c_contiguous
        values += 1
    for old, new in zip(before, (net.params, net.state), strict=True):
        assert all(np.array_equal(old[key], new[key]) for key in old)


def test_every_wrong_entry_is_named_and_the_model_stays():
    net = NETS["three layers"](rng=0, backend="numpy")
    before = copy.deepcopy(net.params)
    entries = to_torch_state_dict(net)
    entries["4.weight"] = entries["4.weight"].T + 1
    entries["7.weight"] = np.ones((2, 2))
    del entries["6.bias"]
    with pytest.raises(
        ArgumentError,
        match=(
            r"does not fit ThreeLayerConvNet: 6\.bias is missing; 7\.weight of shape \(2, 2\) is not expected; "
            r"4\.weight has shape \(36, 7\); expected \(7, 36\)\. .*names="
        ),
    ):
        load_torch_state_dict(net, entries)
    assert all(np.array_equal(before[key], net.params[key]) for key in before)


def test_the_batch_counter_is_optional():
    net = NETS["deep batchnorm"](rng=0, backend="numpy")
    entries = {key: a for key, a in to_torch_state_dict(net).items() if "num_batches" not in key}
    load_torch_state_dict(net, entries)


@pytest.mark.parametrize("names", [[], ["a", "b"], ["a", "a", "b"]])
def test_each_layer_with_parameters_needs_one_distinct_name(names):
    net = NETS["three layers"](rng=0, backend="numpy")
    with pytest.raises(ArgumentError, match=r"expected 3 different names.*Conv, Affine, Affine"):
        to_torch_state_dict(net, names)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array(["a"]), r"0\.weight has dtype <U1; expected real numbers"),
        (None, r"0\.weight has dtype object; expected real numbers"),
    ],
)
def test_entries_that_are_not_numeric_are_refused(value, message):
    net = NETS["two"](rng=0, backend="numpy")
    with pytest.raises(ArgumentTypeError, match=message):
        load_torch_state_dict(net, {**to_torch_state_dict(net), "0.weight": value})


def test_an_object_that_is_not_a_mapping_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"state_dict is a object; expected a mapping.*state_dict\(\)"):
        load_torch_state_dict(NETS["two"](rng=0, backend="numpy"), object())


def test_parameters_without_a_pytorch_counterpart_are_named():
    class Scale(nn.Relu):
        def parameters(self, shape):
            return {"scale": (shape, 1.0)}

    net = Sequential([Scale()], input_shape=(3,), rng=0, backend="numpy")
    with pytest.raises(ArgumentError, match=r"scale0 of .*Scale\(\) has no counterpart in PyTorch"):
        to_torch_state_dict(net)


def test_torch_is_not_imported():
    code = (
        "import sys, xpconv.io.torch as i; from xpconv.nn import TwoLayerNet; net = TwoLayerNet(rng=0, "
        "backend='numpy'); i.load_torch_state_dict(net, i.to_torch_state_dict(net)); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"

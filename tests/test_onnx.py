"""ONNX files, checked by ONNX Runtime."""

import json
import sys
from dataclasses import dataclass
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import xpconv
from tests.layer_table import OBJECTS
from tests.nets import IMAGE, NETS
from xpconv import nn
from xpconv.cli import _app
from xpconv.cli._nets import NETS as CLI_NETS
from xpconv.errors import ArgumentError, ArgumentTypeError, XpconvError
from xpconv.io import onnx as export
from xpconv.nn import Preprocessing, Sequential

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

TOLERANCE = 1e-5  # of the scores' largest magnitude


def randomise(net, rng):
    """Give every parameter and state random values, so that each affects the scores."""
    for store in (net.params, net.state):
        for key, value in store.items():
            values = rng.standard_normal(value.shape)
            positive = key.startswith(("gamma", "running_var"))
            values = np.abs(values) + 0.5 if positive else values / np.sqrt(max(prod(value.shape[:-1]), 1))
            store[key] = net.backend.asarray(values, net.dtype)
    return net


def session_of(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def assert_same_scores(net, path, rng, batches=(1, 5)):
    """Check the scores of one file for several batch sizes."""
    export.to_onnx(net, path)
    session = session_of(path)
    for N in batches:
        X = rng.standard_normal((N, *net.input_shape)).astype(np.float32)
        expected = net.backend.to_host(net.loss(X))
        (scores,) = session.run(["scores"], {"images": X})
        assert scores.dtype == np.float32
        assert scores.shape == expected.shape
        assert np.max(np.abs(scores - expected)) <= TOLERANCE * max(np.max(np.abs(expected)), 0.1)


# ---- models


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_onnx_runtime_gives_the_scores_of_every_net(name, dtype, tmp_path):
    rng = np.random.default_rng(0)
    net = randomise(NETS[name](dtype=dtype, rng=0, backend="numpy"), rng)
    assert_same_scores(net, tmp_path / "net.onnx", rng)


@pytest.mark.parametrize("name", CLI_NETS)
def test_onnx_runtime_gives_the_scores_of_every_net_of_the_command_line(name, tmp_path):
    rng = np.random.default_rng(1)
    net = randomise(CLI_NETS[name]((3, 16, 16), 10, rng=0, backend="numpy"), rng)
    assert_same_scores(net, tmp_path / "net.onnx", rng)


def test_models_on_every_backend_give_the_same_file(backend, tmp_path):
    nets = [
        randomise(NETS["every layer"](rng=0, backend=where), np.random.default_rng(0)) for where in ("numpy", backend)
    ]
    for net, name in zip(nets, "ab", strict=True):
        export.to_onnx(net, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("shape", [(), (IMAGE[0], 1, 1), IMAGE], ids=["one value", "a value a channel", "a mean image"])
def test_preprocessing_is_part_of_the_file(shape, tmp_path):
    rng = np.random.default_rng(2)
    net = randomise(NETS["conv batchnorm"](rng=0, backend="numpy"), rng)
    net.preprocessing = Preprocessing(rng.uniform(100, 150, shape), rng.uniform(30, 60, shape))
    export.to_onnx(net, tmp_path / "net.onnx")
    pixels = rng.integers(0, 256, (4, *IMAGE), dtype=np.uint8)
    (scores,) = session_of(tmp_path / "net.onnx").run(None, {"images": pixels.astype(np.float32)})
    expected = net.loss(pixels)
    assert np.max(np.abs(scores - expected)) <= TOLERANCE * np.max(np.abs(expected))


def test_onnx_runtime_gives_the_scores_of_a_trained_net(tmp_path):
    rng = np.random.default_rng(3)
    net = NETS["conv batchnorm"](rng=0, backend="numpy")
    X, y = rng.standard_normal((20, *IMAGE)), rng.integers(0, 5, 20)
    for _ in range(20):
        _, grads = net.loss(X, y)
        for key, grad in grads.items():
            net.params[key] -= 0.05 * grad
    assert_same_scores(net, tmp_path / "net.onnx", rng)


# ---- layers

SIZES = st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 4), st.integers(1, 4)))
STRIDES = st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3)))


@st.composite
def pools(draw, kind):
    size = draw(SIZES)
    limits = (size, size) if isinstance(size, int) else size
    return kind(size, draw(st.none() | STRIDES), padding=tuple(draw(st.integers(0, limit - 1)) for limit in limits))


LAYERS = {kind: st.sampled_from(each.examples) for kind, each in OBJECTS.items()} | {
    nn.Affine: st.builds(nn.Affine, st.integers(1, 4), bias=st.booleans()),
    nn.AvgPool: pools(nn.AvgPool),
    nn.Conv: st.builds(
        nn.Conv,
        st.integers(1, 4),
        SIZES,
        stride=STRIDES,
        padding=st.integers(0, 3) | st.tuples(st.integers(0, 3), st.integers(0, 3)),
        bias=st.booleans(),
    )
    | st.builds(nn.Conv, st.integers(1, 4), st.sampled_from([1, 3, (3, 5)]), stride=STRIDES, padding=st.just("same")),
    nn.GroupNorm: st.builds(nn.GroupNorm, st.sampled_from([1, 2, 4]), eps=st.sampled_from([1e-5, 1e-2])),
    nn.MaxPool: pools(nn.MaxPool),
}
FLAT = (
    nn.Affine,
    nn.BatchNorm,
    nn.Dropout,
    nn.Gelu,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LeakyRelu,
    nn.Relu,
    nn.Scale,
    nn.Silu,
)
"""The layers that also take samples of one axis."""


def test_every_layer_has_a_converter_and_is_tested():
    named = {getattr(nn, name) for name in nn.layers.__all__} | {nn.Residual}
    kinds = {kind for kind in named if issubclass(kind, nn.Layer)} - {nn.Layer}
    assert kinds == set(export.CONVERTERS), "add a converter to xpconv.io.onnx.CONVERTERS"
    assert kinds == set(OBJECTS), "add an entry to OBJECTS in tests/layer_table.py"


def assert_layer_is_exported(layer, shape, seed, folder):
    """Check the layer followed by an affine layer, which gives each position of its output another weight."""
    try:
        net = Sequential([layer, nn.Affine(3)], input_shape=shape, rng=0, dtype="float32", backend="numpy")
    except ArgumentError:  # the window is larger than the image
        assume(False)
    rng = np.random.default_rng(seed)
    assert_same_scores(randomise(net, rng), folder / "net.onnx", rng)


@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_onnx_runtime_computes_every_layer_on_images(kind, data, tmp_path_factory):
    channels = data.draw(st.sampled_from([4, 8]) if kind is nn.GroupNorm else st.integers(1, 4))
    shape = channels, data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    assume(kind not in (nn.LayerNorm, nn.GroupNorm) or prod(shape) // channels > 1)  # one value has variance 0
    seed = data.draw(st.integers(0, 99))
    assert_layer_is_exported(data.draw(LAYERS[kind]), shape, seed, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("kind", FLAT, ids=lambda kind: kind.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_onnx_runtime_computes_layers_on_samples_of_one_axis(kind, data, tmp_path_factory):
    shape = (data.draw(st.sampled_from([8, 12]) if kind is nn.GroupNorm else st.integers(3, 9)),)
    seed = data.draw(st.integers(0, 99))
    assert_layer_is_exported(data.draw(LAYERS[kind]), shape, seed, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("norm", [nn.BatchNorm(), nn.LayerNorm(), nn.GroupNorm(groups=2)], ids=repr)
def test_norms_are_accurate_when_the_mean_is_large(norm, tmp_path):
    rng = np.random.default_rng(4)
    net = randomise(Sequential([norm, nn.Affine(3)], input_shape=(4, 6, 5), rng=0, backend="numpy"), rng)
    X = (rng.standard_normal((5, 4, 6, 5)) + 100).astype(np.float32)
    exact = Sequential(net.layers, input_shape=(4, 6, 5), dtype="float64", backend="numpy")
    exact.params = {key: value.astype("float64") for key, value in net.params.items()}
    exact.state = {key: value.astype("float64") for key, value in net.state.items()}
    export.to_onnx(net, tmp_path / "net.onnx")
    (scores,) = session_of(tmp_path / "net.onnx").run(None, {"images": X})
    expected = exact.loss(X.astype(np.float64))
    assert np.max(np.abs(scores - expected)) <= TOLERANCE * np.max(np.abs(expected))


@dataclass(frozen=True)
class Negate(nn.Layer):
    def forward(self, x, p, *, train, seed):
        return -x, None


def test_a_custom_layer_is_exported_with_a_converter(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    net = Sequential([nn.Affine(4), Negate()], input_shape=(6,), rng=rng, backend="numpy")
    with pytest.raises(ArgumentError, match=r"layers\[1\] is Negate\(\).*add a function for Negate to xpconv.io.onnx"):
        export.to_onnx(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    monkeypatch.setitem(export.CONVERTERS, Negate, lambda graph, layer, x, shape, params: graph.add_node("Neg", x))
    assert_same_scores(net, tmp_path / "net.onnx", rng)


def test_a_converter_does_not_apply_to_subclasses(tmp_path):
    @dataclass(frozen=True)
    class LeakyRelu(nn.Relu):
        pass

    net = Sequential([LeakyRelu()], input_shape=(6,), rng=0, backend="numpy")
    with pytest.raises(ArgumentError, match="LeakyRelu"):
        export.to_onnx(net, tmp_path / "net.onnx")


# ---- the file


def test_only_gelu_needs_a_later_opset(tmp_path):
    for layer, opset in ((nn.Silu(), 17), (nn.Gelu(), 20)):
        net = Sequential([nn.Affine(4), layer], input_shape=(6,), rng=0, backend="numpy")
        export.to_onnx(net, tmp_path / "net.onnx")
        assert [entry.version for entry in onnx.load(tmp_path / "net.onnx").opset_import] == [opset]


def test_the_file_names_its_input_output_and_classes(tmp_path):
    names = ("cat", "größer", "a, b", "3", "4")
    net = NETS["three layers"](rng=0, backend="numpy", class_names=names)
    export.to_onnx(net, tmp_path / "net.onnx")
    session = session_of(tmp_path / "net.onnx")
    (output,), (images,) = session.get_outputs(), session.get_inputs()
    assert (images.name, images.shape, images.type) == ("images", ["N", *IMAGE], "tensor(float)")
    assert (output.name, output.shape, output.type) == ("scores", ["N", 5], "tensor(float)")
    metadata = session.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(metadata["class_names"])) == names
    assert metadata["model"] == "ThreeLayerConvNet"
    proto = onnx.load(tmp_path / "net.onnx")
    assert {tensor.name for tensor in proto.graph.initializer} == set(net.params)
    assert (proto.producer_name, proto.producer_version) == ("xpconv", xpconv.__version__)
    assert proto.ir_version <= 8  # runtimes of 2022 read it


def test_a_net_without_layers_returns_its_input(tmp_path):
    net = Sequential([], input_shape=(3,), backend="numpy")
    assert_same_scores(net, tmp_path / "net.onnx", np.random.default_rng(0))


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_text("old")
    monkeypatch.setattr(export, "MAX_WEIGHT_BYTES", 100)
    with pytest.raises(ArgumentError, match=r"GiB of weights in float32; expected less than 2"):
        export.to_onnx(NETS["two"](rng=0, backend="numpy"), path)
    assert path.read_text() == "old"


def test_only_sequential_models_are_exported(tmp_path):
    with pytest.raises(ArgumentTypeError, match="model is a dict; expected a Sequential"):
        export.to_onnx({}, tmp_path / "net.onnx")


# ---- the command


@pytest.fixture
def saved(tmp_path):
    net = randomise(NETS["conv batchnorm"](rng=0, backend="numpy"), np.random.default_rng(6))
    net.preprocessing = Preprocessing(np.asarray(3.0), np.asarray(2.0))
    xpconv.save_model(net, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def call(*words):
    return CliRunner().invoke(_app.app, ["export", *map(str, words)], env={"XP_BACKEND": None})


def test_the_command_writes_the_same_file_as_the_function(saved, tmp_path):
    result = call(saved, tmp_path / "out.onnx")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {tmp_path / 'out.onnx'}\n"
    export.to_onnx(xpconv.load_model(saved, "numpy"), tmp_path / "other.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()


def test_the_command_does_not_overwrite_its_model(saved):
    before = saved.read_bytes()
    result = call(saved, saved)
    assert (result.exit_code, saved.read_bytes()) == (2, before)
    assert "expected a name that ends in .onnx" in result.stderr


def test_a_missing_onnx_is_reported_with_its_install_command_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = call("no-such-model.safetensors", tmp_path / "out.onnx")
    assert result.exit_code == 1
    assert result.stderr.startswith("xpconv: error: writing ONNX files needs onnx")
    assert 'pip install "xpconv[onnx]"' in result.stderr
    with pytest.raises(XpconvError, match=r'pip install "xpconv\[onnx\]"'):
        export.to_onnx(None, tmp_path / "out.onnx")


def test_the_help_shows_an_example():
    assert "Example: xpconv export " in " ".join(call("--help").stdout.split())

"""Models as files: what is written comes back, on any backend; what is wrong is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.test_nets import IMAGE, NETS
from xpconv import Preprocessing, load_model, save_model
from xpconv.errors import CheckpointError


@pytest.fixture(params=NETS, ids=lambda name: name.replace(" ", "-"))
def make(request):
    return NETS[request.param]


def trained(make, backend):
    net = make(rng=0, backend=backend, class_names=tuple("abcde"),
               preprocessing=Preprocessing(np.full(IMAGE, 2.0), np.float32(3)) if make is NETS["conv plain"] else None)
    net.loss(np.random.default_rng(0).standard_normal((4, *IMAGE)), np.arange(4))
    return net


def test_a_model_saved_on_one_backend_loads_on_another(make, backend, tmp_path):
    X = np.random.default_rng(1).standard_normal((3, *IMAGE))
    net = trained(make, backend)
    save_model(net, tmp_path / "net.safetensors")
    for other in ("numpy", backend):
        again = load_model(tmp_path / "net.safetensors", other)
        assert again.config() == net.config()
        assert again.class_names == tuple("abcde")
        assert again.params.keys() == net.params.keys()
        assert again.state.keys() == net.state.keys()
        for name in net.params:
            assert np.array_equal(again.backend.to_host(again.params[name]), backend.to_host(net.params[name]))
        scores = again.backend.to_host(again.loss(X))
        np.testing.assert_allclose(scores, backend.to_host(net.loss(X)), rtol=1e-4, atol=1e-5)


def test_the_file_describes_itself(tmp_path):
    net = trained(NETS["conv plain"], "numpy")
    save_model(net, tmp_path / "net.safetensors")
    header = (tmp_path / "net.safetensors").read_bytes()
    size = int.from_bytes(header[:8], "little")
    metadata = json.loads(header[8:8 + size])["__metadata__"]
    config = json.loads(metadata["config"])
    assert config["name"] == "ConvNet"
    assert config["dtype"] == "float32"
    assert config["input_shape"] == list(IMAGE)
    assert [layer["type"] for layer in config["layers"]][:3] == ["Conv", "Relu", "MaxPool"]
    assert load_file(tmp_path / "net.safetensors")["preprocessing.mean"].shape == IMAGE


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.safetensors"
    save_model(trained(NETS["two"], "numpy"), path)
    return path


def rewritten(path, change_tensors=None, **change_metadata):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    metadata = {**json.loads(content[8:8 + size])["__metadata__"], **change_metadata}
    tensors = load_file(path)
    if change_tensors:
        change_tensors(tensors)
    save_file(tensors, path, metadata={key: value for key, value in metadata.items() if value is not None})
    return path


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_files_are_refused(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"net\.safetensors is damaged or no safetensors file .*: take another"):
        load_model(saved)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no model file .*none\.safetensors"):
        load_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize("change", [
    lambda t: t.pop("params.b1"),
    lambda t: t.update({"params.b1": np.zeros(3, np.float32)}),
    lambda t: t.update({"params.b1": np.zeros(7, np.float64)}),
    lambda t: t.update({"params.extra": np.zeros(7, np.float32)}),
])
def test_arrays_that_do_not_fit_the_architecture_are_refused(saved, change):
    with pytest.raises(CheckpointError, match=r"has params\.(b1|extra) = .*; expected .*, as its architecture needs"):
        load_model(rewritten(saved, change))


@pytest.mark.parametrize(("metadata", "message"), [
    ({"format": None}, "has format None; expected xpconv-model-1"),
    ({"format": "xpconv-model-9"}, "has format 'xpconv-model-9'; expected xpconv-model-1"),
    ({"config": "{"}, "describes no model"),
    ({"config": "[]"}, "describes no model"),
    ({"config": json.dumps({"layers": []})}, "describes no model"),
    ({"config": json.dumps({"layers": [{"type": "os.system"}], "input_shape": [3]})}, "describes no model"),
])
def test_files_of_another_format_are_refused(saved, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        load_model(rewritten(saved, **metadata))


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        save_model(trained(NETS["deep"], "numpy"), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]

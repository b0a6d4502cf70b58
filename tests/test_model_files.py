"""Model files: they load on any backend, and damaged or wrong ones are refused."""

import errno
import json
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.nets import IMAGE, NETS
from xpconv import Preprocessing, Sequential, load_model, nn, save_model
from xpconv.errors import CheckpointError
from xpconv.io._safetensors import VERSION, ArrayFile, write_arrays


@pytest.fixture(params=NETS, ids=lambda name: name.replace(" ", "-"))
def make(request):
    return NETS[request.param]


def make_net(make, backend):
    net = make(
        rng=0,
        backend=backend,
        class_names=tuple("abcde"),
        preprocessing=Preprocessing(np.full(IMAGE, 2.0), np.float32(3)) if make is NETS["conv plain"] else None,
    )
    net.loss(np.random.default_rng(0).standard_normal((4, *IMAGE)), np.arange(4))
    return net


def test_a_model_saved_on_one_backend_loads_on_another(make, backend, tmp_path):
    X = np.random.default_rng(1).standard_normal((3, *IMAGE))
    net = make_net(make, backend)
    save_model(net, tmp_path / "net.safetensors")
    for other in ("numpy", backend):
        loaded = load_model(tmp_path / "net.safetensors", other)
        assert loaded.config() == net.config()
        assert loaded.class_names == tuple("abcde")
        assert loaded.params.keys() == net.params.keys()
        assert loaded.state.keys() == net.state.keys()
        for name in net.params:
            assert np.array_equal(loaded.backend.to_host(loaded.params[name]), backend.to_host(net.params[name]))
        scores = loaded.backend.to_host(loaded.loss(X))
        np.testing.assert_allclose(scores, backend.to_host(net.loss(X)), rtol=1e-4, atol=1e-5)


def test_the_file_contains_the_architecture(tmp_path):
    net = make_net(NETS["conv plain"], "numpy")
    save_model(net, tmp_path / "net.safetensors")
    header = (tmp_path / "net.safetensors").read_bytes()
    size = int.from_bytes(header[:8], "little")
    metadata = json.loads(header[8 : 8 + size])["__metadata__"]
    document = json.loads(metadata["xpconv"])
    config = document["description"]
    assert (document["format"], document["version"]) == ("xpconv-model", VERSION)
    assert list(metadata) == ["xpconv"]
    assert config["name"] == "ConvNet"
    assert config["dtype"] == "float32"
    assert config["input_shape"] == list(IMAGE)
    assert [layer["type"] for layer in config["layers"]][:3] == ["Conv", "Relu", "MaxPool"]
    assert load_file(tmp_path / "net.safetensors")["preprocessing.mean"].shape == IMAGE


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.safetensors"
    save_model(make_net(NETS["two"], "numpy"), path)
    return path


def rewritten(path, change_tensors=None, change_config=None, file_format="xpconv-model"):
    """Change a file and correct its checksum."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    config = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["xpconv"])["description"]
    tensors = load_file(path)
    if change_tensors:
        change_tensors(tensors)
    if change_config:
        change_config(config)
    write_arrays(path, file_format, config, tensors)
    return path


def test_a_deviation_of_0_is_refused(saved):
    arrays = {"preprocessing.mean": np.float32(0), "preprocessing.std": np.float32(0)}
    with pytest.raises(CheckpointError, match=r"has no usable preprocessing: preprocessing\.std has values that"):
        load_model(rewritten(saved, lambda tensors: tensors.update({k: np.asarray(v) for k, v in arrays.items()})))


@pytest.mark.parametrize(
    ("keep", "problem"),
    [
        (0, "an empty file; expected"),
        *((keep, "damaged or not a safetensors file .*: use another") for keep in (7, 100, -1)),
    ],
)
def test_truncated_files_are_refused(saved, keep, problem):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"net\.safetensors is {problem}"):
        load_model(saved)


@pytest.mark.parametrize("position", range(0, 2000, 97))
def test_one_changed_byte_is_noticed(saved, position):
    content = bytearray(saved.read_bytes())
    content[position % len(content)] ^= 0x01
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"net\.safetensors (is damaged|has format)"):
        load_model(saved)


def test_a_file_without_permission_is_not_called_damaged(saved, monkeypatch):
    def refuse(path, *options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"net\.safetensors cannot be read \(Permission denied\): check its perm"):
        load_model(saved)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no file .*none\.safetensors; expected a safetensors file"):
        load_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("params.b1"),
        lambda t: t.update({"params.b1": np.zeros(3, np.float32)}),
        lambda t: t.update({"params.b1": np.zeros(7, np.float64)}),
        lambda t: t.update({"params.extra": np.zeros(7, np.float32)}),
    ],
)
def test_arrays_that_do_not_fit_the_architecture_are_refused(saved, change):
    with pytest.raises(CheckpointError, match=r"has params\.(b1|extra) = .*; expected (float32 \(7,\)|nothing)"):
        load_model(rewritten(saved, change))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(saved, value):
    with pytest.raises(CheckpointError, match=r"has NaN or infinite values in params\.W2: use an earlier file"):
        load_model(rewritten(saved, lambda t: t["params.W2"].__setitem__((0, 0), value)))


class Negate(nn.Relu):
    def forward(self, x, p, *, train, seed):
        return -x, None


def with_too_few_class_names(net):
    net.class_names = ("a",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda net: net.params["W1"].__setitem__((0, 0), np.nan), "the model has NaN or infinite values in params.W1"),
        (
            lambda net: net.params.update(W1=net.params["W1"].astype("f8")),
            r"the model has params.W1 = float64 \(144, 7\); expected float32 \(144, 7\)",
        ),
        (lambda net: net.params.pop("b2"), r"the model has params.b2 = nothing; expected float32 \(5,\)"),
        (
            lambda net: net.params.update(W9=np.ones(3, "f")),
            r"the model has params.W9 = float32 \(3,\); expected nothing",
        ),
        (
            with_too_few_class_names,
            "net.safetensors is not written, since load_model could not read it: class_names has 1 names; expected 5",
        ),
        (
            lambda net: setattr(net, "layers", (*net.layers[:1], Negate(), *net.layers[2:])),
            r"not written, since load_model could not read it: layers\[1\] is Negate\(\), whose type is not "
            "registered; expected a type of xpconv.nn or one decorated with @xpconv.nn.register_layer",
        ),
    ],
)
def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path, monkeypatch, change, message):
    net = NETS["two"](rng=0, backend="numpy")
    monkeypatch.chdir(tmp_path)
    save_model(net, "net.safetensors")
    before = (tmp_path / "net.safetensors").read_bytes()
    change(net)
    with pytest.raises(CheckpointError, match=message):
        save_model(net, "net.safetensors")
    assert (tmp_path / "net.safetensors").read_bytes() == before


@pytest.mark.parametrize("shapes", [{"mean": (1,)}, {"mean": (2, 1), "std": (1,)}, {"mean": (4,), "std": (1,)}])
def test_preprocessing_that_does_not_broadcast_to_samples_is_refused(saved, shapes):
    arrays = {f"preprocessing.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}
    with pytest.raises(CheckpointError, match=r"has preprocessing"):
        load_model(rewritten(saved, lambda t: t.update(arrays)))


def test_an_architecture_larger_than_the_file_takes_no_memory(saved):
    """The description asks for billions of weights, which would take minutes to draw."""
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"has params\.W1 = .*; expected float32 \(\d+, 1000000000\)"):
        load_model(rewritten(saved, change_config=lambda c: c["layers"][0].update(units=10**9)))
    assert tracemalloc.get_traced_memory()[1] < 4 << 20  # one MiB is for the checksum
    tracemalloc.stop()


@pytest.mark.parametrize("length", [0, 1 << 24 | 1, 1 << 62, (1 << 64) - 1])
def test_a_header_of_impossible_length_is_refused_unread(saved, length):
    saved.write_bytes(length.to_bytes(8, "little") + saved.read_bytes()[8:])
    with pytest.raises(CheckpointError, match=f"its header has {length} bytes"):
        load_model(saved)


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (lambda path: np.savez(path, x=1), "a zip archive, as .npz files"),
        (lambda path: np.save(path, np.ones(3)), r"an array file of NumPy \(.npy\)"),
        (lambda path: pickle.dump({"a": 1}, path), "a Python pickle"),
        (lambda path: path.write(b"\xff\xd8\xff\xe0" + bytes(100)), "a JPEG picture"),
        (lambda path: path.write(b'{\n\t"settings": {"data": "digits"}}'), "a text file"),
        (lambda path: None, "an empty file"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, write, kind):
    with (tmp_path / "other").open("wb") as file:
        write(file)
    with pytest.raises(CheckpointError, match=f"other is {kind}.*; expected a safetensors file that xpconv wrote"):
        load_model(tmp_path / "other")


def test_equal_models_give_equal_bytes(tmp_path):
    for name in "ab":
        save_model(make_net(NETS["deep"], "numpy"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_of_another_format_or_version_are_refused(saved, monkeypatch):
    monkeypatch.setattr("xpconv.io._safetensors.VERSION", VERSION - 1)
    with pytest.raises(
        CheckpointError, match=f"has format 'xpconv-model', version {VERSION}; expected 'xpconv-model', ver"
    ):
        load_model(saved)
    monkeypatch.setattr("xpconv.io._safetensors.VERSION", VERSION + 1)
    with pytest.raises(
        CheckpointError, match=rf"was written by an older version of xpconv.*version {VERSION + 1}\): train again, or"
    ):
        load_model(saved)
    monkeypatch.undo()
    with pytest.raises(
        CheckpointError, match=f"has format 'other', version {VERSION}; expected 'xpconv-model', version"
    ):
        load_model(rewritten(saved, file_format="other"))
    save_file({"x": np.zeros(3)}, saved)
    with pytest.raises(CheckpointError, match="it has no metadata of xpconv"):
        load_model(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.clear(),
        lambda c: c.update(layers=[]),
        lambda c: c.update(layers=[{"type": "os.system"}]),
        lambda c: c.update(layers=5),
        lambda c: c.update(backend="numpy"),
        lambda c: c.update(reg="much"),
        lambda c: c.update(dtype="float16"),
        lambda c: c.update(class_names=[1, 2, 3, 4, 5]),
        lambda c: c["layers"][0].update(units="many"),
    ],
)
def test_descriptions_that_are_not_of_a_model_are_refused(saved, change):
    with pytest.raises(CheckpointError, match="does not describe a model"):
        load_model(rewritten(saved, change_config=change))


def test_arrays_of_any_byte_order_and_layout_are_restored(tmp_path):
    arrays = {
        "big": np.arange(6, dtype=">f8").reshape(2, 3),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "scalar": np.array(3),
        "empty": np.zeros((0, 2)),
        "boolean": np.array([True]),
    }
    write_arrays(tmp_path / "a", "example", {}, arrays)
    file = ArrayFile(tmp_path / "a", "example")
    restored = file.read(file.specs)
    assert restored.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(restored[name], array)
        assert restored[name].shape == array.shape


def test_arrays_and_descriptions_that_cannot_be_stored_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"z has dtype complex128, which .* cannot store"):
        write_arrays(tmp_path / "a", "example", {}, {"z": np.zeros(1, complex)})
    with pytest.raises(CheckpointError, match=r"cannot store the description as JSON: .*set"):
        write_arrays(tmp_path / "a", "example", {"x": {1}}, {})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        save_model(make_net(NETS["deep"], "numpy"), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_header_that_would_be_too_long_to_read_is_not_written(tmp_path):
    path = tmp_path / "net.safetensors"
    net = Sequential([nn.Affine(90_000)], input_shape=(1,), rng=0, class_names=[f"{i:0100d}" for i in range(90_000)])
    with pytest.raises(CheckpointError, match=r"would have a header of .* bytes, .*; expected 8388608 at most"):
        save_model(net, path)
    assert not path.exists()

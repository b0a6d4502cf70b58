"""Data sets: the digits, and CIFAR-10 found, downloaded, checked and read."""

import functools
import http.server
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest

from xpconv.data import balanced_class_weights, cifar10, load_cifar10, load_dataset, load_digits
from xpconv.data.cifar10 import BATCHES, CLASS_NAMES, find_cifar10, load_batch, read_cifar10
from xpconv.errors import ArgumentError, ArgumentTypeError, DatasetError

LAYOUTS = ("py", "bin")


# ---- digits


def test_digits_are_split_with_equal_class_proportions():
    data = load_digits()
    splits = data.splits()
    assert list(splits) == ["X_train", "y_train", "X_val", "y_val", "X_test", "y_test"]
    assert [len(splits[f"X_{split}"]) for split in ("train", "val", "test")] == [1297, 200, 300]
    for split in ("train", "val", "test"):
        X, y = splits[f"X_{split}"], splits[f"y_{split}"]
        assert X.shape == (len(y), 1, 8, 8)
        assert (X.dtype, y.dtype) == (np.uint8, np.int64)
        assert (X.min(), X.max()) == (0, 255)
        fractions = np.bincount(y, minlength=10) / len(y)
        assert abs(fractions - 0.1).max() < 0.015
    assert data.input_shape == (1, 8, 8)
    assert data.class_names == tuple("0123456789")


def test_every_digit_is_in_exactly_one_split():
    from sklearn import datasets

    data = load_digits()
    together = np.concatenate([data.X_train, data.X_val, data.X_test]).reshape(1797, 64)
    together = np.rint(together / 255 * 16).astype(np.uint8)  # the source's 17 grey levels
    expected = datasets.load_digits().data.astype(np.uint8)
    assert sorted(map(bytes, together)) == sorted(map(bytes, expected))


def test_the_split_of_the_digits_follows_the_seed():
    first, again, other = load_digits(), load_digits(0), load_digits(1)
    np.testing.assert_array_equal(first.X_test, again.X_test)
    assert not np.array_equal(first.X_test, other.X_test)


@pytest.mark.parametrize("seed", range(5))
def test_the_digits_and_their_split_are_those_of_scikit_learn(seed):
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    bundled, data = datasets.load_digits(), load_digits(seed)
    X = np.rint(bundled.images[:, None] * (255 / 16)).astype(np.uint8)
    X, X_test, y, y_test = train_test_split(
        X, bundled.target, test_size=300, stratify=bundled.target, random_state=seed
    )
    X, X_val, y, y_val = train_test_split(X, y, test_size=200, stratify=y, random_state=seed)
    expected = {"X_train": X, "y_train": y, "X_val": X_val, "y_val": y_val, "X_test": X_test, "y_test": y_test}
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(data, name), values, err_msg=name)


def test_the_digits_are_loaded_without_importing_scikit_learn():
    code = "import sys; from xpconv.data import load_digits; load_digits(); print([*sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "xpconv.data.digits" in shown
    assert not {"'sklearn'", "'scipy'"} & set(shown.strip("[]\n").split(", "))


def test_a_damaged_file_of_digits_is_named(monkeypatch, tmp_path):
    (tmp_path / "sklearn" / "datasets" / "data").mkdir(parents=True)
    (tmp_path / "sklearn" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        DatasetError, match=r"cannot read .*digits\.csv\.gz, the digits in scikit-learn \(.*No such file"
    ):
        load_digits()
    (tmp_path / "sklearn" / "datasets" / "data" / "digits.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match=r"cannot read .*\(Not a gzipped file.*: pip install --force-reinstall"):
        load_digits()


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DatasetError, match=r"are part of scikit-learn, which.*pip install \"xpconv\[train\]\""):
        load_digits()


def test_data_sets_are_found_by_name():
    assert load_dataset("digits").name == "digits"
    with pytest.raises(ArgumentError, match=r"data is 'mnist', and there is no such folder; expected one of digits"):
        load_dataset("mnist")


# ---- CIFAR-10


def write_batch(folder, layout, name, images, labels):
    folder.mkdir(parents=True, exist_ok=True)
    flat = images.reshape(len(images), -1)
    if layout == "bin":
        path = folder / f"{name}.bin"
        path.write_bytes(np.column_stack([labels.astype(np.uint8), flat]).tobytes())
    else:
        path = folder / name
        batch = {b"batch_label": b"fake", b"labels": labels.tolist(), b"data": flat}
        path.write_bytes(pickle.dumps(batch, protocol=2))
    return path


@pytest.fixture
def small_batches(monkeypatch):
    """Let a batch have four images."""
    monkeypatch.setattr(cifar10, "IMAGES_PER_BATCH", 4)


@pytest.fixture
def missing_cache(monkeypatch, tmp_path):
    """Let every folder that is searched and the download address be missing; return the cache's folder."""
    monkeypatch.delenv("XPCONV_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    pooch = pytest.importorskip("pooch")
    return pooch.os_cache("xpconv")


def write_cifar10(parent, layout):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 4, 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 10, (6, 4))
    folder = parent / f"cifar-10-batches-{layout}"
    for name, X, y in zip(BATCHES, images, labels, strict=True):
        write_batch(folder, layout, name, X, y)
    return folder, images.reshape(24, 3, 32, 32), labels.ravel()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 3])
def test_batches_of_any_length_are_read_in_either_layout(tmp_path, layout, count):
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, count)
    images, labels = load_batch(write_batch(tmp_path, layout, "data_batch_1", X, y))
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(images, X)
    np.testing.assert_array_equal(labels, y)


def test_pickles_of_old_python_and_numpy_are_read(tmp_path):
    # As in the published files: keys are Python 2's short strings, and NumPy's module has its old name.
    array = pickle.dumps(np.full((2, 3072), 7, np.uint8), protocol=2)[2:-1]
    old = array.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != array
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02}(U\x06labels](K\x06K\x09eU\x04data" + old + b"u.")
    images, labels = load_batch(path)
    np.testing.assert_array_equal(images, np.full((2, 3, 32, 32), 7, np.uint8))
    assert labels.tolist() == [6, 9]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_training_images_are_the_validation_split(tmp_path, small_batches, layout):
    folder, images, labels = write_cifar10(tmp_path, layout)
    for root in (folder, tmp_path):
        data = load_cifar10(root, num_validation=3)
        np.testing.assert_array_equal(data.X_train, images[:17])
        np.testing.assert_array_equal(data.y_train, labels[:17])
        np.testing.assert_array_equal(data.X_val, images[17:20])
        np.testing.assert_array_equal(data.y_val, labels[17:20])
        np.testing.assert_array_equal(data.X_test, images[20:])
        np.testing.assert_array_equal(data.y_test, labels[20:])
    assert data.X_train.dtype == np.uint8
    assert data.y_train.dtype == np.int64
    assert data.input_shape == (3, 32, 32)
    assert data.class_names == CLASS_NAMES


@pytest.mark.parametrize("count", [0, 50_000])
def test_training_and_validation_both_need_images(tmp_path, count):
    with pytest.raises(ArgumentError, match=f"num_validation is {count}; expected an int from 1 to 49999"):
        load_cifar10(tmp_path, num_validation=count)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_of_the_wrong_length_are_refused(tmp_path, layout):
    folder, *_ = write_cifar10(tmp_path, layout)
    with pytest.raises(DatasetError, match=r"data_batch_1.* has 4 images; expected 10000"):
        read_cifar10(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_missing_batch_is_named(tmp_path, small_batches, layout):
    folder, *_ = write_cifar10(tmp_path, layout)
    next(folder.glob("data_batch_3*")).unlink()
    with pytest.raises(DatasetError, match=r"cannot read the CIFAR-10 batch .*data_batch_3.*: No such file"):
        load_cifar10(tmp_path, num_validation=3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("keep", [0, 5000])
def test_truncated_batch_is_named(tmp_path, small_batches, layout, keep):
    folder, *_ = write_cifar10(tmp_path, layout)
    path = next(folder.glob("test_batch*"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r"test_batch.* is not a complete CIFAR-10 batch .*: extract"):
        load_cifar10(tmp_path, num_validation=3)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({b"labels": [1]}, "data"),
        ({b"labels": [1], b"data": np.zeros((2, 3072), np.uint8)}, r"uint8 array of shape \(1, 3072\)"),
        ({b"labels": [10], b"data": np.zeros((1, 3072), np.uint8)}, "integers from 0 to 9"),
        ({b"labels": [1], b"data": b"pixels"}, "uint8 array"),
        ({b"labels": [1], b"data": np.zeros((1, 3072), np.float32)}, "arrays of 'f4', which no batch needs"),
        ({b"labels": [1], b"data": np.array([[None]], object)}, "arrays of 'O8', which no batch needs"),
        ([], "TypeError"),
    ],
)
def test_pickles_that_are_not_batches_are_refused(tmp_path, batch, text):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DatasetError, match=rf"data_batch_1 is not a complete CIFAR-10 batch .*{text}"):
        load_batch(path)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickles_are_refused_and_not_executed(tmp_path, protocol):
    path, harmed = tmp_path / "data_batch_1", tmp_path / "harmed"
    for call in (Call(os.system, f"touch {harmed}"), Call(eval, f"open({str(harmed)!r}, 'w')")):
        path.write_bytes(pickle.dumps({b"labels": [1], b"data": call}, protocol))
        with pytest.raises(DatasetError, match=r"it asks for .*, which no batch needs"):
            load_batch(path)
        assert not harmed.exists()


def test_the_folder_in_the_environment_comes_before_the_cache(tmp_path, small_batches, missing_cache, monkeypatch):
    (tmp_path / "mine").mkdir()
    mine, *_ = write_cifar10(tmp_path / "mine", "bin")
    cached, *_ = write_cifar10(missing_cache, "py")
    assert find_cifar10() == cached
    monkeypatch.setenv("XPCONV_DATA", str(tmp_path / "mine"))
    assert find_cifar10() == mine
    monkeypatch.setenv("XPCONV_DATA", str(mine))
    assert find_cifar10() == mine
    monkeypatch.setenv("XPCONV_DATA", str(tmp_path))
    assert find_cifar10() == cached


def test_the_home_folder_is_found_by_its_tilde(tmp_path, small_batches, missing_cache, monkeypatch):
    folder, *_ = write_cifar10(tmp_path / "data", "py")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert find_cifar10("~/data") == folder
    monkeypatch.setenv("XPCONV_DATA", "~/data")
    assert find_cifar10() == folder


@pytest.mark.parametrize("value", ["missing", "file"])
def test_a_missing_folder_in_the_environment_is_an_error_and_nothing_is_downloaded(
    tmp_path, published, small_batches, missing_cache, monkeypatch, value
):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XPCONV_DATA", str(tmp_path / value))
    with pytest.raises(DatasetError, match=rf"XPCONV_DATA is '.*{value}', and there is no such folder: set it"):
        find_cifar10()
    assert not missing_cache.exists()


def test_a_named_folder_is_the_only_one_searched(tmp_path, small_batches, missing_cache):
    write_cifar10(missing_cache, "py")
    with pytest.raises(
        DatasetError,
        match=r"CIFAR-10 is not in .*other \(no such folder\): extract http.* so that "
        r".*other/cifar-10-batches-py/data_batch_1 exists, or set",
    ):
        find_cifar10(tmp_path / "other")


@pytest.mark.parametrize("download", [True, False])
def test_without_files_the_error_says_where_to_put_them(tmp_path, missing_cache, monkeypatch, download):
    monkeypatch.setenv("XPCONV_DATA", str(tmp_path))
    there = "" if download else r" \(no such folder\)"
    failed = r", and the download failed \(no connection to 127\.0\.0\.1\)" if download else ""
    with pytest.raises(DatasetError) as caught:
        find_cifar10(download=download)
    caught.match(
        rf"CIFAR-10 is not in {tmp_path} or {missing_cache}{there}{failed}: extract http\S* so that "
        rf"{missing_cache}/cifar-10-batches-py/data_batch_1 exists, "
        "or set XPCONV_DATA to the folder that contains cifar-10-batches-py"
    )


def test_pooch_is_needed_only_if_the_files_are_not_found(tmp_path, missing_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DatasetError, match=r"needs pooch.*pip install \"xpconv\[train\]\""):
        find_cifar10()
    folder, *_ = write_cifar10(tmp_path, "py")
    monkeypatch.setenv("XPCONV_DATA", str(tmp_path))
    assert find_cifar10() == folder


@pytest.fixture
def published(tmp_path, missing_cache, monkeypatch):
    """Serve a small archive at the download address."""
    pooch = pytest.importorskip("pooch")
    folder, *_ = write_cifar10(tmp_path / "source", "py")
    archive = tmp_path / "source" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(cifar10, "CHECKSUM", f"sha256:{pooch.file_hash(str(archive))}")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{web.server_port}/{archive.name}")
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        yield web
        web.shutdown()
        thread.join()


def test_a_download_is_checked_unpacked_and_cached(published, small_batches, missing_cache, monkeypatch):
    data = load_cifar10(num_validation=3)
    assert data.X_train.shape == (17, 3, 32, 32)
    assert os.listdir(missing_cache) == ["cifar-10-batches-py"]
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/gone")
    assert find_cifar10() == missing_cache / "cifar-10-batches-py"


def test_a_download_with_the_wrong_checksum_is_refused_and_leaves_nothing(published, missing_cache, monkeypatch):
    monkeypatch.setattr(cifar10, "CHECKSUM", f"sha256:{'0' * 64}")
    with pytest.raises(DatasetError, match=r"the download failed \(.*hash"):
        find_cifar10()
    assert os.listdir(missing_cache) == []


@pytest.mark.skipif(not os.environ.get("XPCONV_DATA"), reason="XPCONV_DATA is not set")
def test_all_published_images_are_read():
    data = load_cifar10(os.environ["XPCONV_DATA"])
    assert data.X_train.shape == (49_000, 3, 32, 32)
    assert (len(data.y_val), len(data.y_test)) == (1000, 10_000)
    assert data.y_train[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert set(data.y_test.tolist()) == set(range(10))


# ---- class weights


def test_balanced_class_weights_are_those_of_scikit_learn():
    compute_class_weight = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    y = np.random.default_rng(0).choice(4, 100, p=[0.1, 0.2, 0.3, 0.4])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=y)
    np.testing.assert_allclose(balanced_class_weights(y, 4), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("y", "names", "message"),
    [
        (
            [0, 2, 2],
            (),
            "y has no samples of class 1, 3; expected one or more of each class: add samples, or give each",
        ),
        ([0, 2, 3], ("cat", "dog", "bird", "cow"), "y has no samples of class dog; expected one or more"),
        ([], (), "y has shape (0,) and dtype float64; expected integer labels (N,)"),
        ([0, 4], (), "y has labels from 0 to 4; expected 0 to 3"),
    ],
)
def test_classes_that_cannot_be_balanced_are_named(y, names, message):
    with pytest.raises((ArgumentError, ArgumentTypeError), match=re.escape(message)):
        balanced_class_weights(np.array(y), 4, names)

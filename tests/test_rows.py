"""Data larger than memory: memory-mapped arrays, objects with a length and indices, and images decoded when needed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from xpconv import Solver, ThreeLayerConvNet, get_backend
from xpconv.cli import _app
from xpconv.data import Batches, load_folder
from xpconv.data._fingerprint import channel_statistics, fingerprint, image_digests, row_checksums
from xpconv.data.augment import parse_augmentation
from xpconv.data.images import ImageFiles, read_images
from xpconv.data.rows import SourceRows, as_rows, blocks_of
from xpconv.errors import ArgumentError, DatasetError
from xpconv.training import metrics
from xpconv.training.preflight import check_training

MIB = 2**20


class Source:
    """An object with nothing but a length and ``[indices]``; it notes the indices, which must increase."""

    def __init__(self, a):
        self.a, self.taken = a, []

    def __len__(self):
        return len(self.a)

    def __getitem__(self, indices):
        assert isinstance(indices, np.ndarray)
        assert (np.diff(indices) > 0).all()
        self.taken.append(len(indices))
        return self.a[indices]


def read_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("xpconv-")]


def images(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Return a folder of 2 x 40 pictures of several sizes and formats."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("a", "b")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 150, (10 + i % 5, 14, 3), dtype=np.uint8) + np.uint8(100 * label)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.{('png', 'jpg', 'bmp')[i % 3]}")
    return tmp_path / "images"


# ---- rows


@given(st.integers(1, 30), st.lists(st.integers(0, 29), max_size=40), st.integers(0, 30), st.integers(0, 30))
def test_rows_are_indexed_as_arrays_are(count, indices, start, stop):
    a = np.arange(count * 6, dtype=np.int32).reshape(count, 2, 3)
    rows, indices = as_rows(Source(a)), np.array([i % count for i in indices], np.int64)
    assert isinstance(rows, SourceRows)
    assert (rows.shape, rows.ndim, rows.dtype, rows.nbytes, len(rows)) == (a.shape, 3, a.dtype, a.nbytes, count)
    for index in (indices, slice(start, stop), (slice(start, stop), ...), count - 1, slice(None, None, 2)):
        np.testing.assert_array_equal(rows[index], a[index], strict=True)
    chosen = rows.select(indices)
    np.testing.assert_array_equal(chosen[:, ...], a[indices], strict=True)
    np.testing.assert_array_equal(chosen.select(np.arange(len(indices))[::-1])[:], a[indices][::-1], strict=True)
    np.testing.assert_array_equal(np.concatenate([*blocks_of(rows)]), a)


def test_what_cannot_be_read_as_rows_stays_as_it_is():
    for value in ([1, 2], (1,), "text", {1: 2}, range(3), np.ones(2), 7, None):
        assert as_rows(value) is value


def test_the_shape_and_dtype_of_an_object_are_taken_without_reading_it():
    class Shaped(Source):
        shape, dtype = (7, 3), np.dtype(np.uint8)

    source = Shaped(np.zeros((7, 3), np.uint8))
    rows = as_rows(source)
    assert (rows.shape, rows.dtype, source.taken) == ((7, 3), np.uint8, [])


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (np.array([20]), IndexError, "index 20 is out of bounds for 20 samples"),
        (np.array([-1]), IndexError, "out of bounds"),
        (np.array([0.5]), ArgumentError, "the index is .*; expected an integer, a slice or an array"),
        ((0, 1), ArgumentError, "the index is .*; expected an integer, a slice or an array"),
    ],
)
def test_indices_that_are_no_rows_are_refused(index, error, message):
    with pytest.raises(error, match=message):
        SourceRows(Source(images(20)))[index]


def test_an_object_that_returns_other_samples_than_it_promised_is_refused():
    class Wrong(Source):
        shape, dtype = (20, 3, 8, 8), np.dtype(np.float32)

    with pytest.raises(
        ArgumentError, match=r"reading 2 samples returned uint8 of shape \(2, 3, 8, 8\); expected float32 of"
    ):
        as_rows(Wrong(images(20)))[[3, 4]]


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_statistics_and_fingerprints_are_those_of_the_array(monkeypatch, dtype):
    X = images(50).astype(dtype)
    expected = X.mean(axis=(0, 2, 3), dtype=np.float64), X.std(axis=(0, 2, 3), dtype=np.float64)
    whole = [*channel_statistics(X)]
    np.testing.assert_allclose(whole, expected, rtol=1e-12)
    checksums, digests = row_checksums(X), image_digests(X)
    monkeypatch.setattr("xpconv.data.rows.BLOCK_BYTES", 1000)
    rows = as_rows(Source(X))
    np.testing.assert_allclose(channel_statistics(rows), expected, rtol=1e-12)
    np.testing.assert_array_equal(channel_statistics(rows), channel_statistics(X))
    if dtype == "uint8":
        np.testing.assert_array_equal(channel_statistics(rows), whole)
    np.testing.assert_array_equal(row_checksums(rows), checksums)
    assert image_digests(rows) == digests
    assert max(rows.source.taken) * X[0].nbytes <= 1000
    assert fingerprint(X) == fingerprint(X.copy())


# ---- training


def make_solver(X, y, backend="numpy", **options):
    net = ThreeLayerConvNet(
        input_dim=(3, 8, 8), num_filters=4, filter_size=3, hidden_dim=8, num_classes=2, rng=0, backend=backend
    )
    data = {"X_train": X, "y_train": y, "X_val": X, "y_val": y}
    options = {"batch_size": 10, "num_epochs": 2, "num_train_samples": 15, "verbose": False, "rng": 0, **options}
    return Solver(net, data, update_rule="adam", **options)


def memory_mapped(X, path):
    np.save(path / "images.npy", X)
    return np.load(path / "images.npy", mmap_mode="r")


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("kind", ["memmap", "object"])
@pytest.mark.parametrize("sampling", ["replacement", "epoch"])
def test_a_solver_trains_on_rows_to_the_bits_of_an_array(tmp_path, sampling, kind, dtype):
    X, y = images(60).astype(dtype), np.arange(60) % 2
    data = memory_mapped(X, tmp_path) if kind == "memmap" else Source(X)
    augment = parse_augmentation("crop-mixup")
    solvers = [make_solver(source, y, sampling=sampling, augment=augment) for source in (X, data)]
    for solver in solvers:
        solver.train()
    whole, read = (solver.state_dict() for solver in solvers)
    assert read["description"] == whole["description"]
    for name, a in whole["arrays"].items():
        np.testing.assert_array_equal(read["arrays"][name], a)
    assert not read_threads()


def test_memory_mapped_arrays_and_rows_are_not_read_as_a_whole(tmp_path, monkeypatch):
    X, y = np.broadcast_to(np.float32(1.5), (400, 3, 64, 64)), np.arange(400) % 2
    monkeypatch.setattr("xpconv.data.rows.BLOCK_BYTES", MIB)
    source = Source(X)
    net = ThreeLayerConvNet(input_dim=(3, 64, 64), num_filters=2, filter_size=3, hidden_dim=4, num_classes=2, rng=0)
    data = {"X_train": source, "y_train": y, "X_val": source, "y_val": y}
    solver = Solver(
        net, data, batch_size=5, num_epochs=1, num_train_samples=20, num_val_samples=10, verbose=False, rng=0
    )
    solver.train(lambda solver: (_ for _ in ()).throw(KeyboardInterrupt) if solver.iteration == 3 else None)
    solver.state_dict()
    check_training(net, solver.X_train, y, batch_size=5)
    metrics.probabilities(net, source, batch_size=20)
    assert max(source.taken) <= 100, "the checks before training take 100 samples at once"


def test_rows_that_are_not_finite_are_named(monkeypatch):
    monkeypatch.setattr("xpconv.data.rows.BLOCK_BYTES", 5000)
    X, y = images(60).astype(np.float32), np.arange(60) % 2
    X[41, 2, 3, 4] = np.nan
    for source in (X, Source(X)):
        with pytest.raises(ArgumentError, match=r"X_train\[41\] has NaN or infinite values; expected finite images"):
            make_solver(source, y)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_minibatches_of_rows_arrive_on_the_device(backend, prefetch):
    X, y = images(20), np.arange(20)
    draws = [np.array([3, 1, 3]), np.array([19, 0, 7]), np.array([5, 5, 5]), np.array([0, 1, 2]), np.array([2, 1, 0])]
    order = iter(draws)
    with Batches(Source(X), y, lambda: next(order), backend, prefetch=prefetch) as batches:
        for indices, (X_batch, y_batch) in zip(draws[:3], batches, strict=False):
            assert type(X_batch) is type(backend.asarray(X))
            np.testing.assert_array_equal(backend.to_host(X_batch), X[indices])
            np.testing.assert_array_equal(backend.to_host(y_batch), y[indices])
            np.testing.assert_array_equal(batches.rows, indices)


# ---- folders of images


def both(folder, shape=(3, 8, 8), **options):
    """Return a folder's images in memory, and decoded when they are needed."""
    return load_folder(folder, shape, **options), load_folder(folder, shape, max_memory=0, **options)


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_images_decoded_when_they_are_needed_are_those_in_memory(folder, monkeypatch, threads, resize):
    monkeypatch.setenv("XPCONV_NUM_THREADS", threads)
    (folder / "a" / "broken.png").write_text("x")
    with pytest.warns(UserWarning, match="left out 1 file of "):
        whole, lazy = both(folder, resize=resize)
    assert lazy.skipped == whole.skipped
    assert (lazy.class_names, lazy.input_shape) == (whole.class_names, whole.input_shape)
    for split in ("train", "val", "test"):
        X, files = whole.splits()[f"X_{split}"], lazy.splits()[f"X_{split}"]
        assert isinstance(files, ImageFiles)
        np.testing.assert_array_equal(files[:], X, strict=True)
        np.testing.assert_array_equal(lazy.splits()[f"y_{split}"], whole.splits()[f"y_{split}"])
        rows = np.random.default_rng(0).integers(0, len(X), 30)
        for numbers in (files, files.select(rows)):
            expected = X if numbers is files else X[rows]
            np.testing.assert_array_equal(row_checksums(numbers), row_checksums(expected))
            assert image_digests(numbers) == image_digests(expected)
            np.testing.assert_array_equal(channel_statistics(numbers), channel_statistics(expected))
            np.testing.assert_array_equal(numbers[3:7], expected[3:7])
    assert not read_threads()


def test_few_images_wait_to_be_stored(monkeypatch):
    """Without a bound, a slow consumer would have all images of a folder in memory."""
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    read, stored = [], []
    monkeypatch.setattr("xpconv.data.images._read", lambda path, *rest: read.append(path) or path)

    def store(i, image):
        assert image == str(len(stored)) == str(i)
        time.sleep(0.002)
        assert len(read) <= len(stored) + 4 * 3
        stored.append(image)

    read_images([str(i) for i in range(100)], (1, 2, 2), "crop", store)
    assert sorted(read, key=int) == stored
    assert len(stored) == 100


def test_the_limit_is_the_memory_of_all_images(folder):
    bytes_of_all = 80 * 3 * 128 * 128
    assert isinstance(load_folder(folder, (3, 128, 128), max_memory=bytes_of_all // MIB).X_test, ImageFiles)
    assert isinstance(load_folder(folder, (3, 128, 128), max_memory=bytes_of_all // MIB + 1).X_test, np.ndarray)
    with pytest.raises(ArgumentError, match="max_memory is -1; expected an int, 0 or more"):
        load_folder(folder, max_memory=-1)


def test_training_on_files_ends_with_the_same_bits(folder):
    states = []
    for data in both(folder):
        solver = make_solver(data.X_train, data.y_train, augment=parse_augmentation("crop-flip"), sampling="epoch")
        solver.train()
        states.append(solver.state_dict())
        assert not read_threads()
    assert states[0]["description"] == states[1]["description"]
    for name, a in states[0]["arrays"].items():
        np.testing.assert_array_equal(states[1]["arrays"][name], a)


def call(*words):
    return CliRunner().invoke(_app.app, [str(word) for word in words], env={"XP_BACKEND": None})


def test_commands_on_files_give_the_same_results(folder, tmp_path):
    outputs = []
    for name, memory in (("whole", 256), ("lazy", 0)):
        out = tmp_path / name
        words = ("--data", folder, "--image-size", 8, "--epochs", 2, "--augment", "crop", "--num-train", 50)
        result = call("train", *words, "--max-memory", memory, "--out", out)
        assert result.exit_code == 0, result.output
        evaluated = call("eval", out, "--max-memory", memory)
        config = json.loads((out / "config.json").read_text())
        outputs.append(
            (
                result.stdout.splitlines()[-1],
                evaluated.output,
                config["dataset"],
                (out / "model.safetensors").read_bytes(),
            )
        )
    assert outputs[0] == outputs[1]


def test_an_error_of_a_thread_names_the_file_and_leaves_no_thread(folder, monkeypatch):
    monkeypatch.setenv("XPCONV_NUM_THREADS", "3")
    data = load_folder(folder, (3, 8, 8), max_memory=0)
    bad = data.X_train.paths[7]
    with open(bad, "r+b") as file:
        file.truncate(60)
    solver = make_solver(data.X_train, data.y_train)
    with pytest.raises(DatasetError, match=f"cannot read the image {bad}: "):
        solver.train()
    assert not read_threads()
    os.remove(bad)
    with pytest.raises(DatasetError, match=f"cannot read the image {bad}: No such file or directory"):
        data.X_train[:]
    Image.new("RGB", (9, 9), "red").save(bad, "PNG")
    with pytest.raises(DatasetError, match=f"the image {bad} has changed while it was in use: start the command again"):
        data.X_train[:]
    assert not read_threads()


def test_files_survive_copies_of_a_solver_in_training(folder):
    data = load_folder(folder, (3, 8, 8), max_memory=0)
    copies = []
    solver = make_solver(data.X_train, data.y_train)
    solver.train(lambda solver: solver.iteration == 3 and copies.append(pickle.dumps(solver)))
    copy = pickle.loads(copies[0])
    copy.train()
    assert copy.loss_history == solver.loss_history


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_decodes_images_too(folder):
    data = load_folder(folder, (3, 8, 8), max_memory=0)
    expected = data.X_train[:10]
    with Batches(data.X_train, data.y_train, lambda: np.arange(5), get_backend("numpy")) as batches:
        next(batches)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of forks while there are threads
            child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if np.array_equal(data.X_train[:10], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_ctrl_c_ends_a_training_on_files(folder, tmp_path):
    words = [
        "train",
        "--data",
        folder,
        "--max-memory",
        0,
        "--epochs",
        10_000,
        "--print-every",
        1,
        "--out",
        tmp_path / "run",
    ]
    command = [sys.executable, "-m", "xpconv", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("(Iteration 20 "):
                break
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "to resume: xpconv train --resume" in rest
    assert time.monotonic() - start < 120

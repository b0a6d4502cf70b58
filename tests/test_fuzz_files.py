"""Files that nobody vouches for: each is read correctly or refused with one clear error, in little memory."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xpconv import Solver, load_model, save_model
from xpconv.data import cifar10
from xpconv.data.cifar10 import load_batch
from xpconv.data.images import read_image
from xpconv.errors import CheckpointError, DatasetError, NonFiniteLossError
from xpconv.io._safetensors import MAX_HEADER_BYTES, METADATA_KEY, ArrayFile, write_arrays
from xpconv.nn import Affine, BatchNorm, Conv, Dropout, GroupNorm, LayerNorm, MaxPool, Relu, Sequential

MEMORY_LIMIT = 1 << 23  # bytes; eight chunks of a checksum
fuzzed = settings(derandomize=True)


@contextlib.contextmanager
def refused(error=CheckpointError, name="file"):
    """Check that the block raises this error, in one line of moderate length that names the file."""
    with pytest.raises(error) as caught:
        yield
    assert_clear(caught.value, name)


def assert_clear(error, name):
    text = str(error)
    assert name in text
    assert text.isprintable()
    assert len(text) < 1500


@contextlib.contextmanager
def little_memory(limit=MEMORY_LIMIT):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


# ---- models and checkpoints


def make_model(*layers, input_shape=(3,), **options):
    return Sequential([*layers, Affine(2)], input_shape=input_shape, rng=0, backend="numpy", **options)


def make_solver():
    rng = np.random.default_rng(0)
    data = {
        "X_train": rng.standard_normal((6, 3)),
        "y_train": np.arange(6) % 2,
        "X_val": rng.standard_normal((4, 3)),
        "y_val": np.arange(4) % 2,
    }
    return Solver(
        make_model(Affine(2), BatchNorm(), Dropout(0.5)),
        data,
        update_rule="adam",
        batch_size=3,
        num_epochs=2,
        verbose=False,
        rng=0,
    )


def write_model(path):
    save_model(
        make_model(
            Conv(2, padding="same"),
            BatchNorm(),
            Relu(),
            MaxPool(),
            Dropout(),
            GroupNorm(groups=2),
            LayerNorm(),
            input_shape=(1, 4, 4),
            class_names=("a", "b"),
        ),
        path,
    )


def write_checkpoint(path):
    make_solver().train(lambda solver: solver.iteration == 2 and solver.save(path))


def read_checkpoint(path):
    solver = make_solver()
    solver.resume(path)
    with np.errstate(all="ignore"), contextlib.suppress(NonFiniteLossError):  # any number is allowed, however absurd
        solver.train()


KINDS = {"model": (write_model, load_model), "checkpoint": (write_checkpoint, read_checkpoint)}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a file of each kind and the function that reads it."""
    folder = tmp_path_factory.mktemp("files")
    for kind, (write, _) in KINDS.items():
        write(folder / f"{kind}-file")
    return {kind: (folder / f"{kind}-file", read) for kind, (_, read) in KINDS.items()}


@pytest.fixture(params=["model", "checkpoint"])
def smallest(request, tmp_path):
    """Return a small file and the function that reads it; a checkpoint is checked before a Solver uses it."""
    path = tmp_path / "file"
    if request.param == "model":
        save_model(make_model(), path)
        return path, load_model
    write_arrays(path, "xpconv-checkpoint", {"epoch": 1}, {"x": np.arange(9.0)})
    return path, lambda path: ArrayFile(path, "xpconv-checkpoint")


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_changed_byte_is_noticed(smallest, bits):
    path, read = smallest
    content = path.read_bytes()
    read(path)
    for i in range(len(content)):
        for bit in range(i % 8, i % 8 + bits):
            path.write_bytes(content[:i] + bytes([content[i] ^ 1 << bit % 8]) + content[i + 1 :])
            with refused():
                read(path)


def test_every_truncation_and_every_addition_is_noticed(smallest):
    path, read = smallest
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with refused():
            read(path)
    for more in (b"\0", b"\n", content):
        path.write_bytes(content + more)
        with refused():
            read(path)


def with_header(header, data=b""):
    """Return the bytes of a file that begins like a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


FOREIGN_FILES = {
    "nothing": b"",
    "length of the header alone": struct.pack("<Q", 5),
    "header of an exabyte": struct.pack("<Q", 1 << 60) + b"{}",
    "brackets": with_header(b"[" * 1_000_000),
    "braces": with_header(b'{"a":' * 1_000_000),
    "braces in the description": with_header({"__metadata__": {METADATA_KEY: '{"a":' * 1_000_000}}),
    "a number of a million digits": with_header({"__metadata__": {METADATA_KEY: "9" * 1_000_000}}),
    "metadata of another type": with_header({"__metadata__": [METADATA_KEY]}),
    "description of another type": with_header({"__metadata__": {METADATA_KEY: "[1]"}}),
    "twice the same key": with_header(b'{"__metadata__":{},"__metadata__":{}}'),
    "no UTF-8": with_header(b"\xff\xfe" * 100),
    "a pickle": pickle.dumps({"params": [1.0]}),
    "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@every_kind
@pytest.mark.parametrize("content", FOREIGN_FILES.values(), ids=FOREIGN_FILES)
def test_foreign_files_are_refused_with_little_memory(written, tmp_path, kind, content):
    (tmp_path / "file").write_bytes(content)
    with little_memory(MEMORY_LIMIT + 20 * len(content)), refused():
        written[kind][1](tmp_path / "file")


@every_kind
@settings(fuzzed, max_examples=100)
@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(with_header)))
def test_random_bytes_are_refused(written, tmp_path_factory, kind, content):
    path = tmp_path_factory.getbasetemp() / f"random-{kind}-file"
    path.write_bytes(content)
    with refused():
        written[kind][1](path)


@every_kind
@pytest.mark.parametrize("special", ["/dev/zero", "/dev/full", "."])
def test_files_that_are_not_regular_are_refused(written, tmp_path, kind, special):
    (tmp_path / "file").symlink_to(special)
    with refused():
        written[kind][1](tmp_path / "file")


# Anyone who can write a file can compute its checksum, so the files from here on have a correct one.


words = st.sampled_from(["", "Conv", "Relu", "float64", "adam", "\x1b[2J", "a\nb", "\ud800", "x" * 100])
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 5), st.sampled_from([2**31, 2**63, 10**30, 1e300, 0.5]), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=4,
)


def paths_in(tree, path=()):
    """Yield the path to each node of plain data, as a tuple of keys and indices."""
    yield path
    for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from paths_in(child, (*path, key))


def replaced(tree, path, value):
    if not path:
        return value
    first, *rest = path
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[first] = replaced(copy[first], rest, value)
    return copy


def read_array_file(path, file_format):
    file = ArrayFile(path, file_format)
    return file.description, file.read(file.specs, allow_nonfinite=file.specs)


@settings(fuzzed, max_examples=100)
@given(data=st.data())
@every_kind
def test_a_changed_description_is_refused_or_works(written, tmp_path_factory, kind, data):
    check_description(*written[kind], tmp_path_factory, kind, data)


@pytest.mark.slow
@settings(max_examples=3000, print_blob=True)
@given(data=st.data())
@every_kind
def test_thousands_of_changed_descriptions_are_refused_or_work(written, tmp_path_factory, kind, data):
    check_description(*written[kind], tmp_path_factory, kind, data)


def check_description(path, read, tmp_path_factory, kind, data):
    description, arrays = read_array_file(path, f"xpconv-{kind}")
    node = data.draw(st.sampled_from(list(paths_in(description))[1:]))
    other = tmp_path_factory.getbasetemp() / f"described-{kind}-file"
    write_arrays(other, f"xpconv-{kind}", replaced(description, node, data.draw(json_values)), arrays)
    with little_memory():
        try:
            read(other)
        except CheckpointError as error:
            assert_clear(error, str(other))


@settings(fuzzed, max_examples=100)
@given(data=st.data())
@every_kind
def test_arrays_that_do_not_match_the_description_are_refused(written, tmp_path_factory, kind, data):
    path, read = written[kind]
    description, arrays = read_array_file(path, f"xpconv-{kind}")
    name = data.draw(st.sampled_from(sorted(arrays)))
    a = arrays[name]
    with np.errstate(all="ignore"):  # integers have no NaN or infinity, and some are too large for float16
        others = [None, a.astype(np.float16), a[None], np.zeros((0, *a.shape)), a.reshape(-1)[:-1]]
        if a.dtype.kind == "f" and not name.endswith("_history") and not name.startswith("health."):
            others += [np.full_like(a, value) for value in (np.nan, np.inf)]
    other = data.draw(st.sampled_from(range(len(others))).map(others.__getitem__))
    arrays = {key: value for key, value in {**arrays, name: other}.items() if value is not None}
    path = tmp_path_factory.getbasetemp() / f"arrays-{kind}-file"
    write_arrays(path, f"xpconv-{kind}", description, arrays)
    with refused():
        read(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(input_shape=[1.0, 4, 4]),
        lambda d: d.update(input_shape=[True, 4, 4]),
        lambda d: d["layers"][0].update(filters=2.0),
        lambda d: d["layers"][0].update(kernel_size=[3.0, 3]),
    ],
)
def test_sizes_that_only_equal_integers_are_refused(written, tmp_path, change):
    description, arrays = read_array_file(written["model"][0], "xpconv-model")
    change(description)
    write_arrays(tmp_path / "file", "xpconv-model", description, arrays)
    with refused():
        load_model(tmp_path / "file")


@pytest.mark.parametrize("name", ["x", "__metadata__"])
def test_an_array_file_in_which_a_name_comes_twice_is_refused(tmp_path, name):
    path = tmp_path / "file"
    write_arrays(path, "example", {"a": 1}, {"x": np.ones(2), "y": np.zeros(2)})
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    entries = json.loads(content[8 : 8 + size])
    metadata = json.loads(entries["__metadata__"][METADATA_KEY])
    twice = json.dumps({name: entries[name]})[1:-1].replace(metadata["sha256"], "0" * 64)
    header = json.dumps(entries).replace(metadata["sha256"], "0" * 64)
    header = f"{{{twice}, {header[1:]}" if name == "x" else header.replace(twice, f"{twice}, {twice}")
    unsigned = with_header(header.encode(), content[8 + size :])
    checksum = hashlib.sha256(unsigned).hexdigest().encode()
    path.write_bytes(unsigned.replace(b"0" * 64, checksum, 1))
    with refused():
        ArrayFile(path, "example")


def test_a_file_that_is_gone_before_its_arrays_are_read_is_refused(tmp_path):
    write_arrays(tmp_path / "file", "example", {}, {"x": np.ones(2)})
    file = ArrayFile(tmp_path / "file", "example")
    (tmp_path / "file").unlink()
    with refused():
        file.read(file.specs)


def test_a_description_with_nan_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="file cannot store the description as JSON: Out of range float"):
        write_arrays(tmp_path / "file", "example", {"loss": float("nan")}, {})
    assert not (tmp_path / "file").exists()


def test_a_header_above_the_limit_is_neither_written_nor_read(tmp_path):
    with pytest.raises(CheckpointError, match=r"file would have a header of .* bytes"):
        write_arrays(tmp_path / "file", "example", {"text": "x" * MAX_HEADER_BYTES}, {})
    (tmp_path / "file").write_bytes(with_header(b" " * (MAX_HEADER_BYTES + 1)))
    with little_memory(), refused(name=f"its header has {MAX_HEADER_BYTES + 1} bytes"):
        ArrayFile(tmp_path / "file", "example")


HUGE = {
    "units": lambda d: d["layers"][-1].update(units=10**12),
    "many digits": lambda d: d["layers"][-1].update(units=10**4000),
    "filters": lambda d: d["layers"][0].update(filters=10**9),
    "window": lambda d: d["layers"][0].update(kernel_size=10**9, padding=10**9),
    "images": lambda d: d.update(input_shape=[3, 10**9, 10**9]),
    "dimensions": lambda d: d.update(input_shape=[1] * 100_000),
    "classes": lambda d: d.update(class_names=["a"] * 200_000),
    "norms": lambda d: d.update(layers=[{"type": "BatchNorm"}] * 5_000 + d["layers"]),
    "convolutions": lambda d: d.update(layers=[{"type": "Conv", "filters": 1}] * 3_000 + d["layers"]),
}


@pytest.mark.parametrize("change", HUGE.values(), ids=HUGE)
def test_huge_architectures_are_refused_with_little_memory(written, tmp_path, change):
    description, arrays = read_array_file(written["model"][0], "xpconv-model")
    change(description)
    write_arrays(tmp_path / "file", "xpconv-model", description, arrays)
    with little_memory(MEMORY_LIMIT + 80 * (tmp_path / "file").stat().st_size), refused():
        load_model(tmp_path / "file")


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\tb", "two\nlines", "\u202eright to left", 5, None])
def test_class_names_that_are_not_printable_are_refused(written, tmp_path, name):
    description, arrays = read_array_file(written["model"][0], "xpconv-model")
    write_arrays(tmp_path / "file", "xpconv-model", {**description, "class_names": ["a", name]}, arrays)
    with refused():
        load_model(tmp_path / "file")


@pytest.mark.parametrize("name", ["\x1b[31mred", "x" * 100_000])
def test_errors_about_arrays_with_hostile_names_are_printable(written, tmp_path, name):
    description, arrays = read_array_file(written["model"][0], "xpconv-model")
    write_arrays(tmp_path / "file", "xpconv-model", description, {**arrays, name: np.zeros(1)})
    with refused():
        load_model(tmp_path / "file")


# ---- CIFAR-10


def pickled(*operations):
    """Return a batch whose images are the result of these pickle operations."""
    return b"\x80\x02}(" + b"U\x06labels](K\x06eU\x04data" + b"".join(operations) + b"u."


def call(module, name, *arguments):
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


def nested(first, operation, levels=45):
    """Return operations for one list or tuple of lists or tuples, each of which holds its predecessor twice."""
    content = first
    for level in range(levels):
        content += b"0" + operation % (b"h%ch%c" % (level, level)) + b"q%c" % (level + 1)
    return content


RECONSTRUCT = "numpy.core.multiarray", "_reconstruct"
DATA, OTHER, TUPLES = (
    "data must be a uint8 array",
    "it has other operations than a batch, or more",
    "longer or deeper tuples",
)
HOSTILE_PICKLES = {  # reason of the refusal, and content
    "runs a command": ("it asks for os.system", pickled(call("os", "system", b"U\x04exit"))),
    "runs code": ("it asks for builtins.eval", pickled(call("builtins", "eval", b"U\x031/0"))),
    "imports": ("it asks for importlib.import_module", pickled(call("importlib", "import_module", b"U\x04this"))),
    "opens a file": ("it asks for builtins.open", pickled(call("builtins", "open", b"U\x09/dev/zero"))),
    "a dotted name": ("it asks for numpy.ndarray.__init__", b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93."),
    "a huge array": ("it calls numpy.ndarray", pickled(call("numpy", "ndarray", b"(J\xff\xff\xff\x7ft"))),
    "a huge array to be filled": (
        DATA,
        pickled(call(*RECONSTRUCT, b"cnumpy\nndarray\n", b"(J\xff\xff\xff\x7ft", b"U\x01b")),
    ),
    "long bytes": ("EOFError", b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little")),
    "a large memo index": (DATA, pickled(b"Nr\xff\xff\xff\x7f")),
    "a long number": (OTHER, b"\x80\x02\x8b\xff\xff\xff\x7f"),
    "lists in lists in lists": (DATA, pickled(nested(b"]q\x00", b"](%se"))),
    "labels in lists of lists": (
        "labels must be a list of ints",
        b"\x80\x02}(U\x06labels" + nested(b"]q\x00", b"](%se") + b"U\x04dataU\x01xu.",
    ),
    "tuples in tuples in tuples": (TUPLES, pickled(nested(b")q\x00", b"(%st"))),
    "a tuple of tuples as a key": (TUPLES, b"\x80\x02}" + nested(b")q\x00", b"(%st") + b"K\x01s."),
    "a tuple of tuples as an encoding": (
        TUPLES,
        pickled(call("_codecs", "encode", b"X\x01\0\0\0a", nested(b")q\x00", b"(%st"))),
    ),
    "a tuple of tuples as a dtype": (TUPLES, pickled(call("numpy", "dtype", nested(b")q\x00", b"(%st")))),
    "a long tuple of long tuples as a key": (
        TUPLES,
        b"\x80\x02}(" + b"K\x01" * 5000 + b"tq\x00(" + b"h\x00" * 5000 + b"tK\x01s.",
    ),
    "a set": (OTHER, b"\x80\x04\x8f."),
    "millions of operations": (OTHER, pickled(b"N0" * (1 << 20), b"N")),
    "another encoding": (
        "it asks for another encoding",
        pickled(call("_codecs", "encode", b"X\x01\0\0\0a", b"X\x03\0\0\0hex")),
    ),
    "attributes of the function that it gets": (DATA, pickled(b"c_codecs\nencode\n}X\x08\0\0\0hijackedU\x01xsb")),
    "a stored object": (OTHER, pickled(b"U\x01xQ")),
    "an extension": (OTHER, pickled(b"\x82\x01")),
    "labels in an array of lists": (
        "labels must be a list of ints",
        b"\x80\x02}(U\x06labels](]K\x01aeU\x04dataU\x01xu.",
    ),
}


@pytest.mark.parametrize(("reason", "content"), HOSTILE_PICKLES.values(), ids=HOSTILE_PICKLES)
def test_hostile_pickles_are_refused_and_not_executed(tmp_path, reason, content):
    (tmp_path / "batch").write_bytes(content)
    with little_memory(3 * MEMORY_LIMIT), refused(DatasetError, reason):
        load_batch(tmp_path / "batch")
    assert not hasattr(cifar10._encode_latin1, "hijacked")


@pytest.mark.parametrize("labels", [[1.0], [True], [None], [b"1"]])
def test_labels_that_are_not_integers_are_refused(tmp_path, labels):
    content = pickle.dumps({b"labels": labels, b"data": np.zeros((1, 3072), np.uint8)}, protocol=2)
    (tmp_path / "batch").write_bytes(content)
    with refused(DatasetError, "batch"):
        load_batch(tmp_path / "batch")


def batch_of(count):
    return pickle.dumps({b"labels": [3] * count, b"data": np.zeros((count, 3072), np.uint8)}, protocol=2)


@settings(fuzzed, max_examples=300)
@given(data=st.data())
def test_damaged_batches_are_refused_or_give_images(tmp_path_factory, data):
    content, path = bytearray(batch_of(1)), tmp_path_factory.getbasetemp() / "damaged_batch"
    for i in data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=3)):
        content[i] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), 100, 300, 3000]))])
    with little_memory():
        try:
            images, labels = load_batch(path)
        except DatasetError as error:
            assert_clear(error, "damaged_batch")
        else:
            assert images.shape == (len(labels), 3, 32, 32)
            assert images.dtype == np.uint8


@pytest.mark.parametrize("suffix", ["", ".bin"])
@pytest.mark.parametrize("special", ["/dev/zero", ".", "nowhere"])
def test_batches_that_are_not_regular_files_are_refused(tmp_path, suffix, special):
    (tmp_path / f"batch{suffix}").symlink_to(special)
    with refused(DatasetError, "batch"):
        load_batch(tmp_path / f"batch{suffix}")


def member(name, content=b"", **kind):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in kind.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


FOLDER = "cifar-10-batches-py"
ARCHIVES = {
    "path traversal": member("../../evil", b"x"),
    "path traversal inside": member(f"{FOLDER}/../../evil", b"x"),
    "absolute path": member("/tmp/evil", b"x"),
    "symbolic link": member(f"{FOLDER}/data_batch_1", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": member(f"{FOLDER}/data_batch_1", type=tarfile.LNKTYPE, linkname="../../evil"),
    "device": member(f"{FOLDER}/data_batch_1", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "pipe": member(f"{FOLDER}/data_batch_1", type=tarfile.FIFOTYPE),
    "another file": member(f"{FOLDER}/setup.py", b"x"),
    "too large a file": member(f"{FOLDER}/data_batch_1", bytes(1 << 26)),
    "name with an escape": member("\x1b[2J", b"x"),
}


def download(tmp_path, monkeypatch, archive):
    """Look for CIFAR-10 where the only source is this archive, taken for the downloaded one."""
    pooch = pytest.importorskip("pooch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("XPCONV_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", lambda *_, **__: str(archive))
    return cifar10.find_cifar10()


@pytest.mark.parametrize("entry", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_with_anything_else_are_refused_and_leave_nothing(tmp_path, monkeypatch, entry):
    info, content = entry
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        content.seek(0)
        tar.addfile(info, content)
    with refused(DatasetError, "the archive contains"):
        download(tmp_path, monkeypatch, tmp_path / "archive.tar.gz")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "archive.tar.gz"]


@pytest.mark.skipif(os.name != "posix", reason="files have no such modes here")
def test_files_of_an_archive_are_written_by_their_owner_alone(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        info, content = member(f"{FOLDER}/data_batch_1", b"x", mode=0o6777)
        tar.addfile(info, content)
    folder = download(tmp_path, monkeypatch, tmp_path / "archive.tar.gz")
    assert (folder / "data_batch_1").stat().st_mode & 0o6022 == 0


def test_damaged_archives_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        info, content = member(f"{FOLDER}/data_batch_1", os.urandom(5000))
        tar.addfile(info, content)
    complete = (tmp_path / "archive.tar.gz").read_bytes()
    for content in (b"", complete[:20], complete[:2000], b"<html>"):
        (tmp_path / "archive.tar.gz").write_bytes(content)
        with refused(DatasetError, "the download failed"):
            download(tmp_path, monkeypatch, tmp_path / "archive.tar.gz")
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "archive.tar.gz"]


# ---- images

SHAPE = 3, 4, 5
MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "JPEG": ["L", "RGB", "CMYK"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"],
    "GIF": ["L", "P", "RGB"],
    "BMP": ["1", "L", "P", "RGB"],
    "PPM": ["1", "L", "RGB"],
    "WEBP": ["RGB", "RGBA"],
}
FORMATS_AND_MODES = [(file_format, mode) for file_format, modes in MODES.items() for mode in modes]


def image_bytes(file_format, mode, **options):
    values = np.add.outer(np.arange(9), np.arange(7)) * 15
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).convert(mode).save(file, file_format, **options)
    return file.getvalue()


@pytest.mark.parametrize(("file_format", "mode"), FORMATS_AND_MODES)
def test_images_of_every_format_and_mode_are_read(tmp_path, file_format, mode):
    (tmp_path / "file").write_bytes(image_bytes(file_format, mode))
    for channels in (1, 3):
        pixels = read_image(tmp_path / "file", (channels, 9, 7))
        assert (pixels.shape, pixels.dtype) == ((channels, 9, 7), np.uint8)
        if mode != "1":
            assert pixels[:, 0, 0].max() < 40
            assert pixels[:, 7, 6].min() > 150


@settings(fuzzed, max_examples=300)
@given(data=st.data())
def test_damaged_images_are_refused_or_have_the_shape(tmp_path_factory, data):
    content = bytearray(image_bytes(*data.draw(st.sampled_from(FORMATS_AND_MODES))))
    for i in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[i] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged_image"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        pixels = read_image(path, SHAPE)
    except DatasetError as error:
        assert_clear(error, "damaged_image")
    else:
        assert (pixels.shape, pixels.dtype) == (SHAPE, np.uint8)


def png(width, height, data=b"", *, chunks=(), depth=8):
    """Return an RGB PNG file whose header claims this size and this number of bits per channel."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
        + b"".join(chunk(*arguments) for arguments in chunks)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def integers(file_format, dtype, value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), value, dtype)).save(file, file_format)
    return file.getvalue()


MORE_THAN_8_BITS = {
    "low grey levels of 16 bits in PNG": integers("PNG", np.uint16, 200),
    "low grey levels of 16 bits in TIFF": integers("TIFF", np.uint16, 200),
    "low grey levels of 16 bits in PPM": integers("PPM", np.uint16, 200),
    "colours of 16 bits": png(5, 4, zlib.compress((b"\0" + b"\0\xc8" * 15) * 4), depth=16),
    "colours of 16 bits in PPM": b"P6 2 2 65535\n" + b"\0\xc8" * 12,
    "colours of 12 bits in PPM": b"P6 2 2 4095\n" + b"\0\xc8" * 12,
    "colours of 12 bits in PPM as text": b"P3 2 2 4095\n" + b"200 " * 12,
    "integers of 32 bits": integers("TIFF", np.int32, 70_000),
    "negative integers": integers("TIFF", np.int32, -1),
    "floating-point numbers": image_bytes("TIFF", "F"),
}


@pytest.mark.parametrize("content", MORE_THAN_8_BITS.values(), ids=MORE_THAN_8_BITS)
def test_images_with_more_than_8_bits_a_channel_are_refused_with_a_remedy(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot read the image .*more than 8 bits per channel.*by the same factor"):
        read_image(tmp_path / "file", SHAPE)


def test_signed_bytes_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "file.tiff", tiffinfo={339: (2,)})
    with pytest.raises(DatasetError, match="its pixels are signed integers: save all images"):
        read_image(tmp_path / "file.tiff", SHAPE)


REFUSED_IMAGES = {
    "nothing": b"",
    "text": b"not an image",
    "terapixels": png(1 << 20, 1 << 20),
    "a decompression bomb": png(30_000, 30_000, zlib.compress(bytes(1 << 24), 9)),
    "no pixels": png(0, 0),
    "no height": png(5, 0),
    "a text bomb": png(1, 1, zlib.compress(bytes(4)), chunks=[(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))]),
    "a format that is not in the list": image_bytes("TGA", "L"),
    "a model": with_header({"__metadata__": {}}),
}


@pytest.mark.parametrize("content", REFUSED_IMAGES.values(), ids=REFUSED_IMAGES)
def test_files_that_are_not_images_and_huge_images_are_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with little_memory(), refused(DatasetError):
        read_image(tmp_path / "file", SHAPE)


@pytest.mark.parametrize("size", [(5800, 5800), (10_000, 10_000), (20_000, 20_000)])
def test_images_with_too_many_pixels_are_refused_with_a_remedy(tmp_path, size):
    (tmp_path / "file").write_bytes(png(*size, zlib.compress(bytes(1 << 20))))
    with (
        little_memory(),
        pytest.raises(DatasetError, match=r"cannot read the image .*file: it has too many pixels.*to 5792x5792 pixels"),
    ):
        read_image(tmp_path / "file", SHAPE)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path, monkeypatch):
    image = Image.fromarray(np.repeat(np.repeat(np.array([[0, 255]], np.uint8), 160, 0), 100, 1))
    image.save(tmp_path / "large.jpg", quality=95)
    image.save(tmp_path / "large.png")
    whole = read_image(tmp_path / "large.jpg", (1, 4, 4))
    monkeypatch.setattr("xpconv.data.images.MAX_PIXELS", 30_000)
    assert np.abs(read_image(tmp_path / "large.jpg", (1, 4, 4)).astype(int) - whole).max() <= 32  # at a sharp edge
    with pytest.raises(DatasetError, match="too many pixels"):
        read_image(tmp_path / "large.png", (1, 4, 4))
    with pytest.raises(DatasetError, match="too many pixels"):
        read_image(tmp_path / "large.jpg", (1, 160, 160))


def test_the_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("L", (5, 4), shade) for shade in (40, 200)]
    for file_format in ("GIF", "PNG", "TIFF", "WEBP"):
        frames[0].save(
            tmp_path / "file",
            file_format,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if file_format == "WEBP" else {}),
        )
        assert set(read_image(tmp_path / "file", (1, 4, 5)).ravel().tolist()) == {40}


@pytest.mark.parametrize("special", ["/dev/null", ".", "nowhere"])
def test_images_that_are_not_regular_files_are_refused(tmp_path, special):
    (tmp_path / "file").symlink_to(special)
    with refused(DatasetError):
        read_image(tmp_path / "file", SHAPE)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_among_images_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "file")
    with refused(DatasetError, "file: it is not a file"):
        read_image(tmp_path / "file", SHAPE)

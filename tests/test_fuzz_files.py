"""Files that are not trusted: whatever is in them, they are what they say or give one clear error, in little memory."""

import contextlib
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
from xpconv.io._safetensors import METADATA_KEY, ArrayFile, write_arrays
from xpconv.nn import Affine, BatchNorm, Conv, Dropout, GroupNorm, LayerNorm, MaxPool, Relu, Sequential

LITTLE = 1 << 23  # bytes: eight times the block that checksums are taken of
fuzzed = settings(derandomize=True)


@contextlib.contextmanager
def refused(error=CheckpointError, name="file"):
    """The block raises one error of this class, in one line of moderate length that names the file."""
    with pytest.raises(error) as caught:
        yield
    assert_clear(caught.value, name)


def assert_clear(error, name):
    text = str(error)
    assert name in text
    assert text.isprintable()
    assert len(text) < 1500


@contextlib.contextmanager
def little_memory(least=LITTLE):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < least
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
            Conv(2),
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


def try_checkpoint(path):
    solver = make_solver()
    solver.resume(path)
    with np.errstate(all="ignore"), contextlib.suppress(NonFiniteLossError):  # a number may be as absurd as it likes
        solver.train()


KINDS = {"model": (write_model, load_model), "checkpoint": (write_checkpoint, try_checkpoint)}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a file of each kind and how to read it."""
    folder = tmp_path_factory.mktemp("files")
    for kind, (write, _) in KINDS.items():
        write(folder / f"{kind}-file")
    return {kind: (folder / f"{kind}-file", read) for kind, (_, read) in KINDS.items()}


@pytest.fixture(params=["model", "checkpoint"])
def smallest(request, tmp_path):
    """Return a small file and how to read it: a checkpoint is checked before the Solver is looked at."""
    path = tmp_path / "file"
    if request.param == "model":
        save_model(make_model(), path)
        return path, load_model
    write_arrays(path, "xpconv-checkpoint", {"epoch": 1}, {"x": np.arange(9.0)})
    return path, lambda path: ArrayFile(path, "xpconv-checkpoint")


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_byte_that_is_another_is_noticed(smallest, bits):
    path, read = smallest
    content = path.read_bytes()
    read(path)
    for place in range(len(content)):
        for bit in range(place % 8, place % 8 + bits):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit % 8]) + content[place + 1 :])
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
    """Return the bytes of a safetensors file, or of something that begins like one."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


BOMBS = {
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
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@every_kind
@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_what_is_no_file_of_ours_is_refused_with_little_memory(written, tmp_path, kind, content):
    (tmp_path / "file").write_bytes(content)
    with little_memory(LITTLE + 20 * len(content)), refused():
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
def test_what_is_no_regular_file_is_refused(written, tmp_path, kind, special):
    (tmp_path / "file").symlink_to(special)
    with refused():
        written[kind][1](tmp_path / "file")


# Whoever can write a file can compute its checksum: from here on it is right.


words = st.sampled_from(["", "Conv", "Relu", "float64", "adam", "\x1b[2J", "a\nb", "\ud800", "x" * 100])
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 5), st.sampled_from([2**31, 2**63, 10**30, 1e300, 0.5]), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=4,
)


def places_of(tree, here=()):
    """Yield the way to each part of plain data."""
    yield here
    for key, part in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places_of(part, (*here, key))


def changed(tree, place, value):
    if not place:
        return value
    first, *rest = place
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[first] = changed(copy[first], rest, value)
    return copy


def described(path, form):
    file = ArrayFile(path, form)
    return file.description, file.read(file.specs, allow_nonfinite=file.specs)


@settings(fuzzed, max_examples=100)
@given(data=st.data())
@every_kind
def test_any_description_is_refused_or_describes_what_works(written, tmp_path_factory, kind, data):
    check_description(*written[kind], tmp_path_factory, kind, data)


@pytest.mark.slow
@settings(max_examples=3000, print_blob=True)
@given(data=st.data())
@every_kind
def test_thousands_of_descriptions(written, tmp_path_factory, kind, data):
    check_description(*written[kind], tmp_path_factory, kind, data)


def check_description(path, read, tmp_path_factory, kind, data):
    description, arrays = described(path, f"xpconv-{kind}")
    place = data.draw(st.sampled_from(list(places_of(description))[1:]))
    other = tmp_path_factory.getbasetemp() / f"described-{kind}-file"
    write_arrays(other, f"xpconv-{kind}", changed(description, place, data.draw(json_values)), arrays)
    with little_memory():
        try:
            read(other)
        except CheckpointError as error:
            assert_clear(error, str(other))


@settings(fuzzed, max_examples=100)
@given(data=st.data())
@every_kind
def test_arrays_that_are_not_those_described_are_refused(written, tmp_path_factory, kind, data):
    path, read = written[kind]
    description, arrays = described(path, f"xpconv-{kind}")
    name = data.draw(st.sampled_from(sorted(arrays)))
    a = arrays[name]
    others = [None, a.astype(np.float16), a[None], np.zeros((0, *a.shape)), a.reshape(-1)[:-1]]
    if not name.endswith("_history") and not name.startswith("health."):
        others += [np.full_like(a, value) for value in (np.nan, np.inf)]
    other = data.draw(st.sampled_from(range(len(others))).map(others.__getitem__))
    arrays = {key: value for key, value in {**arrays, name: other}.items() if value is not None}
    path = tmp_path_factory.getbasetemp() / f"arrays-{kind}-file"
    write_arrays(path, f"xpconv-{kind}", description, arrays)
    with refused():
        read(path)


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
    description, arrays = described(written["model"][0], "xpconv-model")
    change(description)
    write_arrays(tmp_path / "file", "xpconv-model", description, arrays)
    with little_memory(LITTLE + 80 * (tmp_path / "file").stat().st_size), refused():
        load_model(tmp_path / "file")


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\tb", "two\nlines", "\u202eright to left", 5, None])
def test_names_that_would_write_on_a_terminal_are_refused(written, tmp_path, name):
    description, arrays = described(written["model"][0], "xpconv-model")
    write_arrays(tmp_path / "file", "xpconv-model", {**description, "class_names": ["a", name]}, arrays)
    with refused():
        load_model(tmp_path / "file")


@pytest.mark.parametrize("name", ["\x1b[31mred", "x" * 100_000])
def test_arrays_with_hostile_names_are_told_of_legibly(written, tmp_path, name):
    description, arrays = described(written["model"][0], "xpconv-model")
    write_arrays(tmp_path / "file", "xpconv-model", description, {**arrays, name: np.zeros(1)})
    with refused():
        load_model(tmp_path / "file")


# ---- CIFAR-10


def pickled(*operations):
    """Return a batch whose images are what these pickle operations leave."""
    return b"\x80\x02}(" + b"U\x06labels](K\x06eU\x04data" + b"".join(operations) + b"u."


def call(module, name, *arguments):
    return f"c{module}\n{name}\n(".encode() + b"".join(arguments) + b"tR"


NUMPY = "numpy.core.multiarray", "_reconstruct"
EVIL = {
    "runs a command": pickled(call("os", "system", b"U\x04exit")),
    "runs code": pickled(call("builtins", "eval", b"U\x031/0")),
    "imports": pickled(call("importlib", "import_module", b"U\x04this")),
    "opens a file": pickled(call("builtins", "open", b"U\x09/dev/zero")),
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
    "a huge array": pickled(call("numpy", "ndarray", b"(J\xff\xff\xff\x7ft")),
    "a huge array to be filled": pickled(call(*NUMPY, b"cnumpy\nndarray\n", b"(J\xff\xff\xff\x7ft", b"U\x01b")),
    "long bytes": b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little"),
    "a far place in the memo": pickled(b"Nr\xff\xff\xff\x7f"),
    "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f",
    "lists in lists in lists": b"\x80\x02}(U\x06labels("
    + b"]q\x00"
    + b"".join(b"](" + b"h" + bytes([k]) * 1 + (b"h" + bytes([k])) * 19 + b"eq" + bytes([k + 1]) for k in range(8))
    + b"l.",
    "another encoding": pickled(call("_codecs", "encode", b"X\x01\0\0\0a", b"X\x03\0\0\0hex")),
    "attributes of what it is given": pickled(b"c_codecs\nencode\n}U\x08__name__U\x01xsb"),
    "a stored object": pickled(b"U\x01xQ"),
    "an extension": pickled(b"\x82\x01"),
    "labels in an array of lists": b"\x80\x02}(U\x06labels](]K\x01aeU\x04dataU\x01xu.",
}


@pytest.mark.parametrize("content", EVIL.values(), ids=EVIL)
def test_hostile_pickles_are_refused_and_nothing_happens(tmp_path, content):
    (tmp_path / "batch").write_bytes(content)
    with little_memory(), refused(DatasetError, "batch"):
        load_batch(tmp_path / "batch")


def batch_of(count):
    return pickle.dumps({b"labels": [3] * count, b"data": np.zeros((count, 3072), np.uint8)}, protocol=2)


@settings(fuzzed, max_examples=300)
@given(data=st.data())
def test_damaged_batches_are_refused_or_hold_images(tmp_path_factory, data):
    content, path = bytearray(batch_of(1)), tmp_path_factory.getbasetemp() / "damaged_batch"
    for place in data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
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
def test_batches_that_are_no_regular_files_are_refused(tmp_path, suffix, special):
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


def unpack(tmp_path, monkeypatch, archive, checksum=None):
    """Let the archive be what is downloaded, of the checksum that is expected."""
    pooch = pytest.importorskip("pooch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("XPCONV_DATA", raising=False)
    monkeypatch.setattr(pooch, "retrieve", lambda *_, **__: str(archive))
    return cifar10.find_cifar10()


@pytest.mark.parametrize("entry", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_hold_anything_else_are_refused_and_leave_nothing(tmp_path, monkeypatch, entry):
    info, content = entry
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        content.seek(0)
        tar.addfile(info, content)
    with refused(DatasetError, "the archive contains"):
        unpack(tmp_path, monkeypatch, tmp_path / "archive.tar.gz")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "archive.tar.gz"]


def test_damaged_archives_are_refused_and_leave_nothing(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        info, content = member(f"{FOLDER}/data_batch_1", os.urandom(5000))
        tar.addfile(info, content)
    whole = (tmp_path / "archive.tar.gz").read_bytes()
    for content in (b"", whole[:20], whole[:2000], b"<html>"):
        (tmp_path / "archive.tar.gz").write_bytes(content)
        with refused(DatasetError, "the download failed"):
            unpack(tmp_path, monkeypatch, tmp_path / "archive.tar.gz")
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "archive.tar.gz"]


# ---- pictures

SHAPE = 3, 4, 5
MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"],
    "GIF": ["L", "P", "RGB"],
    "BMP": ["1", "L", "P", "RGB"],
    "PPM": ["1", "L", "RGB", "I;16"],
    "WEBP": ["RGB", "RGBA"],
}
PICTURES = [(form, mode) for form, modes in MODES.items() for mode in modes]


def picture(form, mode, **options):
    values = np.add.outer(np.arange(9), np.arange(7)) * 15
    image = Image.fromarray((values * 257).astype(np.uint16) if mode == "I;16" else values.astype(np.uint8))
    file = io.BytesIO()
    (image if mode == "I;16" else image.convert(mode)).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(("form", "mode"), PICTURES)
def test_pictures_of_every_kind_are_read(tmp_path, form, mode):
    (tmp_path / "file").write_bytes(picture(form, mode))
    for channels in (1, 3):
        pixels = read_image(tmp_path / "file", (channels, 9, 7))
        assert (pixels.shape, pixels.dtype) == ((channels, 9, 7), np.uint8)
        if mode != "1":
            assert pixels[:, 0, 0].max() < 40
            assert pixels[:, 7, 6].min() > 150


@settings(fuzzed, max_examples=300)
@given(data=st.data())
def test_damaged_pictures_are_refused_or_have_the_shape(tmp_path_factory, data):
    content = bytearray(picture(*data.draw(st.sampled_from(PICTURES))))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged_picture"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        pixels = read_image(path, SHAPE)
    except DatasetError as error:
        assert_clear(error, "damaged_picture")
    else:
        assert (pixels.shape, pixels.dtype) == (SHAPE, np.uint8)


def png(width, height, data=b"", *, chunks=()):
    """Return a PNG file that claims this size."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + b"".join(chunk(*each) for each in chunks)
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def integers(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5), value, np.int32)).save(file, "TIFF")
    return file.getvalue()


NO_PICTURES = {
    "nothing": b"",
    "text": b"no picture",
    "a claim of terapixels": png(1 << 20, 1 << 20),
    "a bomb": png(30_000, 30_000, zlib.compress(bytes(1 << 24), 9)),
    "no pixels": png(0, 0),
    "no height": png(5, 0),
    "a bomb of text": png(1, 1, zlib.compress(bytes(4)), chunks=[(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27)))]),
    "a program for Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
    "floating-point numbers": picture("TIFF", "F"),
    "numbers of 32 bits": integers(70_000),
    "negative numbers": integers(-1),
    "a model": with_header({"__metadata__": {}}),
}


@pytest.mark.parametrize("content", NO_PICTURES.values(), ids=NO_PICTURES)
def test_what_is_no_picture_or_too_large_a_one_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with little_memory(), refused(DatasetError):
        read_image(tmp_path / "file", SHAPE)


def test_of_an_animated_picture_the_first_frame_counts(tmp_path):
    frames = [Image.new("L", (5, 4), shade) for shade in (40, 200)]
    for form in ("GIF", "PNG", "TIFF", "WEBP"):
        frames[0].save(
            tmp_path / "file",
            form,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if form == "WEBP" else {}),
        )
        assert set(read_image(tmp_path / "file", (1, 4, 5)).ravel().tolist()) == {40}


@pytest.mark.parametrize("special", ["/dev/null", ".", "nowhere"])
def test_pictures_that_are_no_regular_files_are_refused(tmp_path, special):
    (tmp_path / "file").symlink_to(special)
    with refused(DatasetError):
        read_image(tmp_path / "file", SHAPE)

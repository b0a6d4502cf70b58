"""CIFAR-10, in either of its published layouts (pickled or binary).

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009),
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import io
import os
import pickle
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np

from xpconv._validation import check_count
from xpconv.data.dataset import Dataset
from xpconv.errors import DatasetError, import_failure, printable

__all__ = ["find_cifar10", "load_batch", "load_cifar10", "read_cifar10"]

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CHECKSUM = "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
IMAGES_PER_BATCH = 10_000
IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32
MEMBERS = {f"{FOLDERS[0]}/{name}" for name in (*BATCHES, "batches.meta", "readme.html")}
MAX_MEMBER_BYTES = 1 << 25  # a batch has 31 MB
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_cifar10(
    root: str | os.PathLike[str] | None = None, *, num_validation: int = 1000, download: bool = True
) -> Dataset:
    """Return CIFAR-10: 60,000 colour images of 32 by 32 pixels in ten classes, uint8.

    The last `num_validation` of the 50,000 training images become the validation split, as in the course.

    Parameters
    ----------
    root, download
        As for `find_cifar10`.
    num_validation : int
        From 1 to 49,999.

    Raises
    ------
    DatasetError
        If the files are not found and cannot be downloaded, or a file is missing, truncated or not as published.
    ArgumentError
        If `num_validation` leaves no images for training or for validation.
    ArgumentTypeError
        If `num_validation` is not an integer.

    Examples
    --------
    >>> load_cifar10("no/such/folder")
    Traceback (most recent call last):
    xpconv.errors.DatasetError: CIFAR-10 is not in no/such/folder (no such folder): ...
    """
    num_training = 5 * IMAGES_PER_BATCH
    num_validation = check_count("num_validation", num_validation, 1, num_training - 1)
    X, y, X_test, y_test = read_cifar10(find_cifar10(root, download=download))
    cut = num_training - num_validation
    return Dataset("cifar10", X[:cut], y[:cut], X[cut:], y[cut:], X_test, y_test, CLASS_NAMES)


def find_cifar10(root: str | os.PathLike[str] | None = None, *, download: bool = True) -> Path:
    """Return the folder of the batches; if there is none, download them to the user's cache.

    Parameters
    ----------
    root : str or path, optional
        A folder of batches, or one that contains ``cifar-10-batches-py`` or ``cifar-10-batches-bin``; no other folder
        is searched. Without `root`, the folder named by the environment variable ``XPCONV_DATA`` is searched, then the
        user's cache; if neither has the batches, they are downloaded. A leading ``~`` is the user's home.
    download : bool
        Whether to download the batches if they are not found.

    Raises
    ------
    DatasetError
        If the batches are not found; the message says where to put them. If ``XPCONV_DATA`` names no folder, nothing
        else is searched.

    Examples
    --------
    >>> find_cifar10("no/such/folder")
    Traceback (most recent call last):
    xpconv.errors.DatasetError: CIFAR-10 is not in no/such/folder (no such folder): ...
    """
    configured = (os.environ.get("XPCONV_DATA") or None) if root is None else root
    searched = [] if configured is None else [Path(configured).expanduser()]
    if searched and root is None and not searched[0].is_dir():
        raise DatasetError(
            f"XPCONV_DATA is {printable(repr(configured))}, and there is no such folder: set it to the folder that "
            f"contains {FOLDERS[0]}, or unset it to have CIFAR-10 downloaded"
        )
    if searched and (folder := _batches_folder(searched[0])):
        return folder
    download_failure = ""
    if root is None:
        cache = cache_folder()
        searched.append(cache)
        if folder := _batches_folder(cache):
            return folder
        if download:
            try:
                return _download(cache)
            except Exception as error:  # a damaged archive may raise anything
                download_failure = f", and the download failed ({printable(error)})"
    names = " or ".join(str(folder) if folder.is_dir() else f"{folder} (no such folder)" for folder in searched)
    raise DatasetError(
        f"CIFAR-10 is not in {names}{download_failure}: extract {URL} so that "
        f"{searched[-1] / FOLDERS[0] / BATCHES[0]} exists, "
        f"or set XPCONV_DATA to the folder that contains {FOLDERS[0]}"
    )


def _batches_folder(root: Path) -> Path | None:
    """Return `root` or one of its published subfolders, whichever contains at least one batch."""
    for folder in (root, *(root / name for name in FOLDERS)):
        if any((folder / f"{name}{suffix}").is_file() for name in BATCHES for suffix in ("", ".bin")):
            return folder
    return None


def cache_folder() -> Path:
    try:
        import pooch
    except Exception as error:  # an incompatible library may raise anything
        text = import_failure("looking for CIFAR-10 needs pooch", error)
        raise DatasetError(f"{text}, or name the folder that contains it") from error
    return Path(pooch.os_cache("xpconv"))


def _download(cache: Path) -> Path:
    """Download, check and unpack the archive; the folder appears in the cache complete or not at all."""
    import pooch
    import requests

    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        try:
            archive = pooch.retrieve(URL, CHECKSUM, fname="cifar10.tar.gz", path=temporary)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise ConnectionError(f"no connection to {urlsplit(URL).hostname}") from error
        _unpack(archive, temporary)
        os.replace(Path(temporary, FOLDERS[0]), cache / FOLDERS[0])
    return cache / FOLDERS[0]


def _unpack(archive: str, folder: str) -> None:
    """Unpack an archive that contains nothing but the published files."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            known = member.isfile() and member.name in MEMBERS and member.size <= MAX_MEMBER_BYTES
            if not known and not (member.isdir() and member.name == FOLDERS[0]):
                raise ValueError(
                    f"the archive contains {printable(member.name)}, {member.size} bytes; it is not part of CIFAR-10"
                )
            tar.extract(member, folder, filter="data")


def read_cifar10(folder: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read the six batches of a folder, in either layout.

    Parameters
    ----------
    folder : str or path
        It contains ``data_batch_1`` to ``data_batch_5`` and ``test_batch``, all with or all without ``.bin``.

    Returns
    -------
    X_train, y_train, X_test, y_test : numpy.ndarray
        Images uint8 (50000, 3, 32, 32) and (10000, 3, 32, 32), labels int64, in the published order.

    Raises
    ------
    DatasetError
        If a batch is missing or does not have 10,000 images.

    Examples
    --------
    >>> read_cifar10("no/such/folder")
    Traceback (most recent call last):
    xpconv.errors.DatasetError: cannot read the CIFAR-10 batch no/such/folder/data_batch_1: ...
    """
    suffix = ".bin" if any(Path(folder).glob("*_batch*.bin")) else ""
    images = np.empty((len(BATCHES), IMAGES_PER_BATCH, *IMAGE_SHAPE), np.uint8)
    labels = np.empty((len(BATCHES), IMAGES_PER_BATCH), np.int64)
    for i, name in enumerate(BATCHES):
        path = Path(folder, name + suffix)
        X, y = load_batch(path)
        if len(y) != IMAGES_PER_BATCH:
            raise DatasetError(
                f"{path} has {len(y)} images; expected {IMAGES_PER_BATCH}, as in each batch of CIFAR-10: "
                "extract the published archive again"
            )
        images[i], labels[i] = X, y
    return images[:-1].reshape(-1, *IMAGE_SHAPE), labels[:-1].reshape(-1), images[-1], labels[-1]


def load_batch(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch file, binary if its name ends in ``.bin``, else pickled.

    Parameters
    ----------
    path : str or path
        A batch of any number of images.

    Returns
    -------
    images : numpy.ndarray
        uint8 (N, 3, 32, 32).
    labels : numpy.ndarray
        int64 (N,).

    Raises
    ------
    DatasetError
        If the file is missing, truncated or not a batch. A pickle of anything but byte arrays and byte strings is
        refused before it can run code.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "data_batch_1.bin")
    ...     written = path.write_bytes(
    ...         bytes([7]) + bytes(3072)
    ...     )  # a black image of a horse
    ...     images, labels = load_batch(path)
    >>> images.shape, labels
    ((1, 3, 32, 32), array([7]))
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DatasetError(f"cannot read the CIFAR-10 batch {path}: it is not a file")
    try:
        images, labels = (_read_binary if path.suffix == ".bin" else _read_pickle)(path)
    except OSError as error:
        raise DatasetError(f"cannot read the CIFAR-10 batch {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise DatasetError(
            f"{path} is not a complete CIFAR-10 batch ({type(error).__name__}: {printable(error)}): "
            "extract the published archive again"
        ) from error
    return images.reshape(-1, *IMAGE_SHAPE), labels


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    values = np.fromfile(path, np.uint8)
    if not values.size or values.size % (1 + IMAGE_BYTES):
        raise ValueError(f"{values.size} bytes are not a whole number of {1 + IMAGE_BYTES}-byte records")
    records = values.reshape(-1, 1 + IMAGE_BYTES)
    return records[:, 1:], _labels(records[:, 0])


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = _BytesUnpickler(path.read_bytes()).load()
    images, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError("labels must be a list of ints")
    labels = _labels(labels)
    expected = len(labels), IMAGE_BYTES
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape != expected:
        raise ValueError(f"data must be a uint8 array of shape {expected}")
    return images, labels


def _labels(values: Any) -> np.ndarray:
    labels, classes = np.asarray(values), range(len(CLASS_NAMES))
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not np.isin(labels, classes).all():
        raise ValueError(f"labels must be integers from 0 to {classes[-1]}")
    return labels.astype(np.int64)


def _empty_array(*_: object) -> np.ndarray:
    """Return an empty array whatever size the pickle asks for: the pickle's next step sets shape and content."""
    return np.empty(0, np.uint8)


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Encode text: pickles of protocol 2 store byte strings as text in Latin-1."""
    if encoding != "latin1":
        raise pickle.UnpicklingError("it asks for another encoding than Latin-1, which no batch needs")
    return text.encode(encoding)


def _refuse_ndarray(*_: object) -> None:
    raise pickle.UnpicklingError("it calls numpy.ndarray, which no batch needs")


def _uint8_dtype(code: str | bytes, *options: object) -> np.dtype[Any]:
    # NumPy's uint8 is immutable; the state of any other dtype may make NumPy take bytes for pointers.
    if code not in ("u1", b"u1"):
        shown = repr(code) if isinstance(code, str | bytes) else "another kind"
        raise pickle.UnpicklingError(f"it asks for arrays of {shown}, which no batch needs")
    return np.dtype(np.uint8)


class _Operations:
    """The operations of the unpickler by their codes, as far as batches need them, for a limited number of calls.

    Tuples are short and nested once, since hashing or printing deeper ones may take exponential time.
    """

    NAMES = (
        "PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 "
        "STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE "
        "EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS "
        "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GLOBAL STACK_GLOBAL REDUCE BUILD "
        "PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE"
    )
    BY_CODE: ClassVar[dict[int, str]] = {getattr(pickle, name)[0]: name for name in NAMES.split()}
    MAX_CALLS = 1 << 21  # a published batch of 10,000 images needs fewer than 100,000
    MAX_TUPLE = 16  # the state of a dtype has 9 entries

    def __init__(self) -> None:
        self.num_calls = 0

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.num_calls += 1
        if code not in self.BY_CODE or self.num_calls > self.MAX_CALLS:
            raise pickle.UnpicklingError("it has other operations than a batch, or more")
        operation: Callable[[Any], None] = pickle._Unpickler.dispatch[code]
        if "TUPLE" not in self.BY_CODE[code]:
            return operation

        def make_tuple(unpickler: Any) -> None:
            operation(unpickler)
            made = unpickler.stack[-1]
            inner = (entry for outer in made if isinstance(outer, tuple) for entry in outer)
            if len(made) > self.MAX_TUPLE or any(isinstance(entry, tuple) for entry in inner):
                raise pickle.UnpicklingError("it has longer or deeper tuples than a batch")

        return make_tuple


class _BytesUnpickler(pickle._Unpickler):
    """An unpickler that restores only byte arrays and byte strings.

    Its base class is the unpickler written in Python: the one written in C allocates any size that the file claims.
    """

    # The published files name modules of an old NumPy; importing these names would give deprecation warnings.
    ALLOWED: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        ("numpy", "ndarray"): _refuse_ndarray,
        ("numpy", "dtype"): _uint8_dtype,
        ("_codecs", "encode"): _encode_latin1,
    }

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.dispatch = _Operations()  # type: ignore[assignment,misc]

    def find_class(self, module: str, name: str) -> Any:
        try:
            function = self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs") from None
        # A new function each time, since a pickle can set attributes of the object it gets.
        return lambda *arguments: function(*arguments)

"""CIFAR-10, read from either of its published layouts.

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

import numpy as np

from xpconv.data.dataset import Dataset
from xpconv.errors import ArgumentError, DatasetError, printable

__all__ = ["find_cifar10", "load_batch", "load_cifar10", "read_cifar10"]

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CHECKSUM = "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
IMAGES_PER_BATCH = 10_000
IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32
MEMBERS = {f"{FOLDERS[0]}/{name}" for name in (*BATCHES, "batches.meta", "readme.html")}
MEMBER_BYTES = 1 << 25  # a batch has 31 million
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load_cifar10(
    root: str | os.PathLike[str] | None = None, *, num_validation: int = 1000, download: bool = True
) -> Dataset:
    """Return CIFAR-10: 60,000 colour images of 32 by 32 pixels in ten classes, uint8.

    The validation part is the last `num_validation` of the 50,000 training images, as in the course.

    Parameters
    ----------
    root, download
        As for `find_cifar10`.
    num_validation : int
        From 1 to 49,999.

    Raises
    ------
    DatasetError
        If the files are nowhere to be had, or one is missing, cut short or not what was published.
    ArgumentError
        If `num_validation` leaves a part empty.

    Examples
    --------
    >>> load_cifar10("no/such/folder")
    Traceback (most recent call last):
    xpconv.errors.DatasetError: CIFAR-10 is not in no/such/folder (no such folder): ...
    """
    num_training = 5 * IMAGES_PER_BATCH
    if not 1 <= num_validation < num_training:
        raise ArgumentError(
            f"num_validation is {num_validation}; expected 1 to {num_training - 1}, "
            "so that images are left to train on and to validate on"
        )
    X, y, X_test, y_test = read_cifar10(find_cifar10(root, download=download))
    cut = num_training - num_validation
    return Dataset("cifar10", X[:cut], y[:cut], X[cut:], y[cut:], X_test, y_test, CLASS_NAMES)


def find_cifar10(root: str | os.PathLike[str] | None = None, *, download: bool = True) -> Path:
    """Return the folder that holds the batches, downloading them to the user's cache where they are missing.

    Parameters
    ----------
    root : str or path, optional
        A folder of batches, or one that holds ``cifar-10-batches-py`` or ``cifar-10-batches-bin``; no other
        place is tried then. Without it the environment variable ``XPCONV_DATA`` names such a folder, after it
        comes the user's cache, and last the published address.
    download : bool
        Whether to fetch what is not found.

    Raises
    ------
    DatasetError
        If no place has them; the text says where they may be put.

    Examples
    --------
    >>> find_cifar10("no/such/folder")
    Traceback (most recent call last):
    xpconv.errors.DatasetError: CIFAR-10 is not in no/such/folder (no such folder): ...
    """
    given = os.environ.get("XPCONV_DATA") or None if root is None else root
    places = [] if given is None else [Path(given)]
    if places and (folder := _batches_in(places[0])):
        return folder
    reason = ""
    if root is None:
        cache = _cache()
        places.append(cache)
        if folder := _batches_in(cache):
            return folder
        if download:
            try:
                return _download(cache)
            except Exception as error:  # a damaged archive may raise anything
                reason = f", and downloading it failed ({printable(error)})"
    told = " or ".join(str(place) if place.is_dir() else f"{place} (no such folder)" for place in places)
    raise DatasetError(
        f"CIFAR-10 is not in {told}{reason}: extract {URL} so that "
        f"{places[-1] / FOLDERS[0] / BATCHES[0]} exists, "
        f"or set XPCONV_DATA to the folder that holds {FOLDERS[0]}"
    )


def _batches_in(place: Path) -> Path | None:
    """Return `place` or its published subfolder, whichever holds at least one of the batches."""
    for folder in (place, *(place / name for name in FOLDERS)):
        if any((folder / f"{name}{suffix}").is_file() for name in BATCHES for suffix in ("", ".bin")):
            return folder
    return None


def _cache() -> Path:
    try:
        import pooch
    except ImportError as error:
        raise DatasetError(
            f"looking for CIFAR-10 needs pooch, which cannot be imported ({error}): "
            'pip install "xpconv[train]", or give the folder that holds it'
        ) from error
    return Path(pooch.os_cache("xpconv"))


def _download(cache: Path) -> Path:
    """Fetch, check and unpack the archive; the folder appears in the cache whole or not at all."""
    import pooch

    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        archive = pooch.retrieve(URL, CHECKSUM, fname="cifar10.tar.gz", path=temporary)
        _unpack(archive, temporary)
        os.replace(Path(temporary, FOLDERS[0]), cache / FOLDERS[0])
    return cache / FOLDERS[0]


def _unpack(archive: str, folder: str) -> None:
    """Unpack the files that the published archive has, and refuse one that has others."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            known = member.isfile() and member.name in MEMBERS and member.size <= MEMBER_BYTES
            if not known and not (member.isdir() and member.name == FOLDERS[0]):
                raise ValueError(
                    f"the archive holds {printable(member.name)}, of {member.size} bytes, which is not part of CIFAR-10"
                )
            tar.extract(member, folder, filter="data")


def read_cifar10(folder: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read the six batches of one folder, of either layout.

    Parameters
    ----------
    folder : str or path
        Holds ``data_batch_1`` to ``data_batch_5`` and ``test_batch``, all with or all without ``.bin``.

    Returns
    -------
    X_train, y_train, X_test, y_test : numpy.ndarray
        Images uint8 (50000, 3, 32, 32) and (10000, 3, 32, 32), labels int64, in the published order.

    Raises
    ------
    DatasetError
        If a batch is missing or does not hold its 10,000 images.

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
                f"{path} holds {len(y)} images; a batch of CIFAR-10 has {IMAGES_PER_BATCH}: "
                "extract the published archive again"
            )
        images[i], labels[i] = X, y
    return images[:-1].reshape(-1, *IMAGE_SHAPE), labels[:-1].reshape(-1), images[-1], labels[-1]


def load_batch(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch file; the layout is binary if its name ends in ``.bin``, else pickled.

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
        If the file is missing, cut short, or holds anything else; a pickle that asks for more than arrays of
        bytes and byte strings is refused before it can run anything.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "data_batch_1.bin")
    ...     written = path.write_bytes(bytes([7]) + bytes(3072))  # a black image of a horse
    ...     images, labels = load_batch(path)
    >>> images.shape, labels
    ((1, 3, 32, 32), array([7]))
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise DatasetError(f"cannot read the CIFAR-10 batch {path}: it is no file")
    try:
        images, labels = (_read_binary if path.suffix == ".bin" else _read_pickle)(path)
    except OSError as error:
        raise DatasetError(f"cannot read the CIFAR-10 batch {path}: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise DatasetError(
            f"{path} is no whole CIFAR-10 batch ({type(error).__name__}: {printable(error)}): "
            "extract the published archive again"
        ) from error
    return images.reshape(-1, *IMAGE_SHAPE), labels


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    values = np.fromfile(path, np.uint8)
    if not values.size or values.size % (1 + IMAGE_BYTES):
        raise ValueError(f"{values.size} bytes are no whole number of {1 + IMAGE_BYTES}-byte records")
    records = values.reshape(-1, 1 + IMAGE_BYTES)
    return records[:, 1:], _labels(records[:, 0])


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    batch = _BytesOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
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
        raise ValueError(f"labels must be whole numbers from 0 to {classes[-1]}")
    return labels.astype(np.int64)


def _array(*_: object) -> np.ndarray:
    """Make what a pickle fills in a second step; of any other size than nothing it would be made at once."""
    return np.empty(0, np.uint8)


def _bytes(text: str, encoding: str) -> bytes:
    """Encode as Python 3 does for bytes in the files' old protocol."""
    return text.encode({"latin1": "latin1"}[encoding])


def _never(*_: object) -> None:
    raise pickle.UnpicklingError("it asks for an array of its own making, which no batch needs")


def _uint8(code: str | bytes, *options: object) -> np.dtype[Any]:
    # NumPy's own uint8 cannot be changed; a dtype that a file describes may claim that bytes are pointers.
    if code not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"it asks for arrays of {code!r}, which no batch needs")
    return np.dtype(np.uint8)


class _BytesOnly(pickle._Unpickler):
    """Rebuilds arrays of bytes, and byte strings, and looks up nothing else.

    It is the unpickler written in Python: the one in C takes as much memory as a few bytes ask for.
    """

    # The files were written by old NumPy, whose module names are deprecated: they are mapped, not imported.
    ALLOWED: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy.core.multiarray", "_reconstruct"): _array,
        ("numpy._core.multiarray", "_reconstruct"): _array,
        ("numpy", "ndarray"): _never,
        ("numpy", "dtype"): _uint8,
        ("_codecs", "encode"): _bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            make = self.ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs") from None
        return lambda *arguments: make(*arguments)  # a pickle can set attributes of what it gets

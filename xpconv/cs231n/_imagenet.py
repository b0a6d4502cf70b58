"""Readers of the course's two extracts of ImageNet."""

import io
import pickletools
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from xpconv.data.images import read_image
from xpconv.errors import DatasetError, printable

__all__ = ["read_imagenet_val", "read_tiny_imagenet"]

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGE_SHAPE = (3, 64, 64)
IMAGENET_VAL_URL = "http://cs231n.stanford.edu/imagenet_val_25.npz"
# operations of a pickle that push a constant, and those that fill a dict
CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
SETS = {"SETITEM", "SETITEMS"}


def read_tiny_imagenet(folder: Path, dtype: Any) -> dict[str, Any]:
    """Return class names, images and labels, as `load_tiny_imagenet` does without subtracting the mean image."""
    wnids = [wnid for wnid, *_ in _read_table(folder / "wnids.txt")]
    words = {wnid: names for wnid, names, *_ in _read_table(folder / "words.txt", num_columns=2)}
    _check_known(folder / "words.txt", wnids, words)
    train: list[tuple[Path, str]] = []
    for wnid in wnids:
        class_folder = folder / "train" / wnid
        names = [name for name, *_ in _read_table(class_folder / f"{wnid}_boxes.txt")]
        train += [(class_folder / "images" / name, wnid) for name in names]

    labels = {wnid: label for label, wnid in enumerate(wnids)}
    data: dict[str, Any] = {"class_names": [[name.strip() for name in words[wnid].split(",")] for wnid in wnids]}
    data["X_train"], data["y_train"] = _read_split(train, labels, dtype)
    data["X_val"], data["y_val"] = _read_split(_read_annotations(folder / "val", labels), labels, dtype)
    if (folder / "test" / "test_annotations.txt").is_file():
        data["X_test"], data["y_test"] = _read_split(_read_annotations(folder / "test", labels), labels, dtype)
    else:
        data["X_test"] = _read_images(sorted((folder / "test" / "images").glob("[!.]*")), dtype)
        data["y_test"] = None
    return data


def _read_annotations(folder: Path, labels: Mapping[str, int]) -> list[tuple[Path, str]]:
    """Return the path and the class of each image of a split."""
    annotations = folder / f"{folder.name}_annotations.txt"
    images = [(folder / "images" / name, wnid) for name, wnid, *_ in _read_table(annotations, num_columns=2)]
    _check_known(folder.parent / "wnids.txt", [wnid for _, wnid in images], labels)
    return images


def _check_known(path: Path, wnids: Iterable[str], known: Mapping[str, object]) -> None:
    for wnid in wnids:
        if wnid not in known:
            raise _tiny_imagenet_error(path, f"it does not have the class {wnid!r}")


def _read_table(path: Path, num_columns: int = 1) -> list[list[str]]:
    """Return the lines of a file that are not blank, split at tabs."""
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise _tiny_imagenet_error(path, getattr(error, "strerror", None) or error) from error
    for row in rows:
        if len(row) < num_columns:
            raise _tiny_imagenet_error(path, f"the line {row[0]!r} has no second column")
    return rows


def _read_split(
    images: Sequence[tuple[Path, str]], labels: Mapping[str, int], dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    return _read_images([path for path, _ in images], dtype), np.array([labels[wnid] for _, wnid in images], np.int64)


def _read_images(paths: Sequence[Path], dtype: Any) -> np.ndarray:
    images = np.empty((len(paths), *TINY_IMAGE_SHAPE), dtype)
    for image, path in zip(images, paths, strict=True):
        image[...] = read_image(path, TINY_IMAGE_SHAPE, resize="squash")
    return images


def _tiny_imagenet_error(path: Path, reason: object) -> DatasetError:
    return DatasetError(
        f"cannot read {path} ({printable(reason)}): extract {TINY_IMAGENET_URL} and pass the folder that it creates"
    )


def read_imagenet_val(path: Path) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return the images, the labels and the names of the classes of a file of ImageNet's validation images."""
    try:
        with np.load(path, allow_pickle=False) as arrays, zipfile.ZipFile(path) as archive:
            X, y = arrays["X"], arrays["y"]
            class_names = _read_class_names(archive.read("label_map.npy"))
        if X.ndim != 4 or X.shape[3] != 3 or y.shape != X.shape[:1] or y.dtype.kind not in "iu":
            raise ValueError(f"X has shape {X.shape} and y has shape {y.shape} and dtype {y.dtype}")
    except FileNotFoundError as error:
        raise DatasetError(
            f"there is no file {path}: download {IMAGENET_VAL_URL} to the folder {path.parent}"
        ) from error
    except Exception as error:  # a damaged file may raise anything
        raise DatasetError(
            f"cannot read {path} ({type(error).__name__}: {printable(error)}): download {IMAGENET_VAL_URL} again"
        ) from error
    return X, y, class_names


def _read_class_names(content: bytes) -> dict[int, str]:
    """Return a dict of ints to strings from an .npy file that has it as a pickle, without running the pickle.

    Its keys and values are the constants between the operation that makes the dict and the last one that fills it.
    """
    file = io.BytesIO(content)
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    operations = _operations(file)
    for name, _ in operations:
        if name == "EMPTY_DICT":
            break
    entries = list(takewhile(lambda operation: operation[0] in CONSTANTS | SETS, operations))
    constants = [value for name, value in entries if name in CONSTANTS]
    keys, names = constants[::2], constants[1::2]
    complete = bool(entries) and entries[-1][0] in SETS and len(keys) == len(names)
    if not complete or {*map(type, keys)} != {int} or {*map(type, names)} != {str}:
        raise ValueError("label_map is not a dict of ints to strings")
    return dict(zip(keys, names, strict=True))


def _operations(file: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """Yield the operations of a pickle and their arguments, those that repeat a constant as the constant itself."""
    memo: dict[Any, tuple[str, Any]] = {}
    current: tuple[str, Any] = ("", None)
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = current
        elif operation.name not in ("FRAME", "MARK"):
            repeats = operation.name in ("GET", "BINGET", "LONG_BINGET")
            current = memo[argument] if repeats else (operation.name, argument)
            yield current

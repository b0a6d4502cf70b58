"""A folder of images as a data set, with one subfolder for each class."""

import hashlib
import itertools
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from xpconv._validation import check_choice, check_count, check_flag
from xpconv.data._fingerprint import channel_sums, image_digests, row_checksums
from xpconv.data.dataset import Dataset
from xpconv.data.images import RESIZES, ImageFiles, check_image_shape, read_images, without_warnings
from xpconv.data.splitting import leave_none_empty
from xpconv.errors import DatasetError

__all__ = ["load_folder"]

SHAPE = (3, 32, 32)
MAX_MEMORY = 256  # MiB of images
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
SPLIT_NAMES = {  # names of folders, in lower case
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

# Systems put these beside images, as they do names that start with a dot.
SYSTEM_NAMES = {
    "$recycle.bin",
    "@eadir",
    "__macosx",
    "desktop.ini",
    "ehthumbs.db",
    "lost+found",
    "system volume information",
    "thumbs.db",
}

ClassFiles = dict[str, list[str]]  # the image files of each class, as paths from the folder that holds the classes


def load_folder(
    path: str | os.PathLike[str],
    shape: Sequence[int] = SHAPE,
    seed: int = 0,
    *,
    resize: str = "crop",
    strict: bool = False,
    max_memory: int = MAX_MEMORY,
) -> Dataset:
    """Return the images of a folder that has one subfolder for each class, named after the class.

    The images of a class may lie in further subfolders of its folder.

    A hash of its name, its class and the seed determines the split of each image, so that new, renamed and removed
    files move no other image: about 70 % of a class are for training, 15 % for validation and 15 % for testing. In a
    class so small that a split would stay empty, the image with the nearest hash goes there, at least one to each. If
    the folder has a subfolder ``train`` that contains the classes, the splits are the subfolders ``train``, ``val`` and
    ``test``, or ``training``, ``valid``, ``validation``, ``dev`` and ``testing``, in any case; a missing one gets a
    fraction of the images of ``train``.

    Parameters
    ----------
    path : str or path
        The folder. Files beside the subfolders are ignored, and so are names that start with a dot and what systems
        add: ``__MACOSX``, ``Thumbs.db``, ``desktop.ini`` and the like.
    shape : (int, int, int)
        Channels (1 for grey, 3 for RGB), height and width to which `read_image` resizes every image.
    seed : int
        Determines which image goes to which split, whatever `shape` is.
    resize : {"crop", "squash", "strokes"}
        As for `read_image`: crop images of another aspect ratio, or scale height and width independently.
    strict : bool
        Whether a file that is not a readable image raises an error. Otherwise it is left out with a warning, and
        `Dataset.skipped` names it.
    max_memory : int
        The most memory that decoded images may take, in MiB. If all images would take more, they are read once to check
        them, and then decoded again whenever they are needed, as `ImageFiles`; minibatches have the same bits.

    Returns
    -------
    Dataset
        Images are uint8, as arrays or `ImageFiles`, classes are in alphabetical order, and the name is `path`.

    Raises
    ------
    DatasetError
        If the folder does not exist or has fewer than two classes, a class has too few images, the splits differ in
        their classes, or no image of a class or split is readable; if `strict`, at the first file that is not readable.
    ArgumentError, ArgumentTypeError
        If `shape` is not the shape of an image, or an option is out of range.

    Warns
    -----
    UserWarning
        If files are left out.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for color in "blue", "red":
    ...         Path(folder, color).mkdir()
    ...         for i in range(20):
    ...             Image.new("RGB", (40, 30), color).save(
    ...                 Path(folder, color, f"{i}.png")
    ...             )
    ...     colors = load_folder(folder)
    >>> colors.class_names, colors.X_train.shape, colors.X_val.shape, colors.X_test.shape
    (('blue', 'red'), (31, 3, 32, 32), (4, 3, 32, 32), (5, 3, 32, 32))
    """
    shape = check_image_shape(shape)
    check_choice("resize", resize, RESIZES)
    check_flag("strict", strict)
    folders = _split_folders(Path(path))
    files = {split: _class_files(folder) for split, folder in folders.items()}
    class_names = tuple(files["train"])
    if len(class_names) < 2:
        raise DatasetError(
            f"{folders['train']} has {len(class_names)} subfolder{'s' * (len(class_names) != 1)} of images "
            f"({', '.join(class_names) or 'none'}); "
            "expected two or more, one for each class"
        )
    for split, classes in files.items():
        if tuple(classes) != class_names:
            differing = ", ".join(sorted(set(classes) ^ set(class_names)))
            raise DatasetError(
                f"{folders[split]} and {folders['train']} differ in {differing}; expected the same classes in both"
            )
    _check_class_sizes(files, folders["train"])
    assigned = _assign_splits(files, seed)
    num_bytes = sum(map(len, assigned.values())) * prod(shape)
    read = _read_all if num_bytes <= check_count("max_memory", max_memory, 0) * 2**20 else _check_all
    splits, skipped = dict[str, Any](), list[str]()
    for split, entries in assigned.items():
        paths = [os.path.join(folders.get(split, folders["train"]), file) for file, _ in entries]
        X, errors = read(paths, shape, resize, strict)
        y = np.delete(np.array([label for _, label in entries], np.int64), [*errors])
        _check_readable(split, y, class_names, errors)
        splits |= {f"X_{split}": X, f"y_{split}": y}
        skipped += [str(error) for error in errors.values()]
    if skipped:
        warnings.warn(
            f"left out {len(skipped)} file{'s' * (len(skipped) != 1)} of {path}; the first: {skipped[0]}",
            stacklevel=2,
        )
    return Dataset(str(path), **splits, class_names=class_names, skipped=tuple(skipped))


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split that has one; if `root` contains the classes, it is the training folder."""
    splits: dict[str, Path] = {}
    others = []
    for folder in _subfolders(root) if root.is_dir() else []:
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            others.append(folder.name)
        elif split in splits:
            raise DatasetError(f"{folder} and {splits[split]} both name the {split} images; expected one: rename one")
        else:
            splits[split] = folder
    if "train" not in splits or not _subfolders(splits["train"]):
        return {"train": root}
    if others:
        warnings.warn(
            f"{root} has {', '.join(others)} beside {splits['train'].name}, which are ignored; folders of images for "
            "validation and tests are called val and test",
            stacklevel=3,
        )
    return splits


def _subfolders(path: Path) -> list[Path]:
    """Return the subfolders in alphabetical order."""
    return [path / entry.name for entry in _entries(path) if entry.is_dir()]


def _entries(path: str | Path) -> list[os.DirEntry[str]]:
    """Return what people put into a folder, in alphabetical order."""
    with os.scandir(path) as entries:
        kept = [
            entry
            for entry in entries
            if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_NAMES and entry.name != "Icon\r"
        ]
    return sorted(kept, key=lambda entry: entry.name)


def _files_below(folder: str, name: str, parents: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yield the paths of all files below a subfolder; `parents` are the folders around it, for links that go round."""
    place = os.path.join(folder, name)
    status = os.stat(place)
    if (identity := (status.st_dev, status.st_ino)) in parents:
        return
    for entry in _entries(place):
        path = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _files_below(folder, path, parents | {identity})
        else:
            yield path


def _class_files(folder: Path) -> ClassFiles:
    """Return the files below the subfolder of each class."""
    try:
        classes = {subfolder.name: [*_files_below(str(folder), subfolder.name)] for subfolder in _subfolders(folder)}
    except OSError as error:
        raise DatasetError(
            f"cannot read the folder {error.filename} ({error.strerror}); expected a folder with "
            "one subfolder of images for each class"
        ) from error
    for name, files in classes.items():
        if not files:
            raise DatasetError(
                f"{folder / name} has no images; expected one subfolder of images for each class: fill it or remove it"
            )
    return classes


def _check_class_sizes(files: dict[str, ClassFiles], train_folder: Path) -> None:
    """Check that each class has an image for each split that is taken from the training images."""
    splits = ["train", *(split for split in FRACTIONS if split not in files)]
    for name, class_files in files["train"].items():
        if (count := len(class_files)) < len(splits):
            raise DatasetError(
                f"{train_folder / name} has {count} image{'s' * (count != 1)}; expected {len(splits)} "
                f"or more, at least one for each of {', '.join(splits)}"
            )


def _assign_splits(files: dict[str, ClassFiles], seed: int) -> dict[str, list[tuple[str, int]]]:
    """Return each split's files with their labels; splits without a folder are taken from the training images."""
    missing = [split for split in FRACTIONS if split not in files]
    fractions = [1 - sum(FRACTIONS[split] for split in missing), *(FRACTIONS[split] for split in missing)]
    assigned: dict[str, list[tuple[str, int]]] = {split: [] for split in FRACTIONS}
    for split, classes in files.items():
        for label, class_files in enumerate(classes.values()):
            parts = _split_by_name(class_files, fractions, seed) if split == "train" else [class_files]
            for name, part in zip(["train", *missing] if split == "train" else [split], parts, strict=True):
                assigned[name] += [(file, label) for file in part]
    for split in ("train", *missing):
        assigned[split].sort(key=lambda entry: _position(entry[0], seed))  # mixes the classes
    return assigned


def _split_by_name(files: list[str], fractions: Sequence[float], seed: int) -> list[list[str]]:
    """Split the files of a class by the positions of their names, at least one to each split."""
    files = sorted(files, key=lambda file: _position(file, seed))
    positions = [_position(file, seed) for file in files]
    cuts = leave_none_empty(np.searchsorted(positions, np.cumsum(fractions)[:-1]), len(files))
    return [files[start:end] for start, end in itertools.pairwise([0, *cuts, len(files)])]


def _position(file: str, seed: int) -> float:
    """Return a number from 0 to 1 that depends on nothing but the class, the name in its folder and the seed."""
    name = unicodedata.normalize("NFC", f"{seed}/{file}")  # macOS decomposes accents
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / (1 << 48)


def _read_all(
    paths: list[str], shape: tuple[int, int, int], resize: str, strict: bool
) -> tuple[np.ndarray, dict[int, DatasetError]]:
    """Return the images of a split, and the errors of files that cannot be read, by their numbers in `paths`."""
    images = np.empty((len(paths), *shape), np.uint8)
    errors = _read_each(paths, shape, resize, strict, images.__setitem__)
    return np.delete(images, [*errors], axis=0) if errors else images, errors


def _check_all(
    paths: list[str], shape: tuple[int, int, int], resize: str, strict: bool
) -> tuple[ImageFiles, dict[int, DatasetError]]:
    """Return what `_read_all` returns, without keeping the images in memory."""
    sums = np.empty((len(paths), shape[0], 2), np.int64)
    checksums, digests = np.empty(len(paths), np.uint32), list[bytes]()

    def note(i: int, image: np.ndarray) -> None:
        checksums[i], sums[i] = row_checksums(image[None])[0], channel_sums(image[None])[0]
        digests.extend(image_digests(image[None]))

    errors = _read_each(paths, shape, resize, strict, note)
    kept = np.delete(np.arange(len(paths)), [*errors])
    return ImageFiles([paths[i] for i in kept], shape, resize, checksums[kept], digests, sums[kept]), errors


def _read_each(
    paths: list[str],
    shape: tuple[int, int, int],
    resize: str,
    strict: bool,
    note: Callable[[int, np.ndarray], object],
) -> dict[int, DatasetError]:
    """Call `note` with the number and the pixels of each image, and return the errors of the others."""
    errors = dict[int, DatasetError]()

    def store(i: int, image: np.ndarray | DatasetError) -> None:
        if not isinstance(image, DatasetError):
            note(i, image)
        elif strict or isinstance(image.__cause__, ImportError):
            raise image
        else:
            errors[i] = image

    with without_warnings():
        read_images(paths, shape, resize, store)
    return errors


def _check_readable(split: str, y: np.ndarray, class_names: tuple[str, ...], errors: dict[int, DatasetError]) -> None:
    """Check that leaving unreadable files out left images: of each class for training, of any class in other splits."""
    empty = np.flatnonzero(np.bincount(y, minlength=len(class_names)) == 0)
    if errors and (len(y) == 0 or (split == "train" and len(empty))):
        names = ", ".join(class_names[label] for label in empty.tolist())
        raise DatasetError(
            f"no {split} image of {names} can be read: the first error is: {next(iter(errors.values()))}"
        )

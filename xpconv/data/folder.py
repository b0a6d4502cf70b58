"""A folder of images as a data set, with one subfolder for each class."""

import hashlib
import itertools
import os
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xpconv.data.dataset import Dataset
from xpconv.data.images import check_image_shape, read_image
from xpconv.data.splitting import leave_none_empty
from xpconv.errors import DatasetError

__all__ = ["load_folder"]

SHAPE = (3, 32, 32)
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
SPLIT_NAMES = {  # names of folders, in lower case
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

# Systems put these beside images, as they do names that start with a dot.
SYSTEM_NAMES = {"$recycle.bin", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "lost+found", "thumbs.db"}

ClassFiles = dict[str, list[Path]]  # the image files of each class


def load_folder(path: str | os.PathLike[str], shape: Sequence[int] = SHAPE, seed: int = 0) -> Dataset:
    """Return the images of a folder that has one subfolder for each class, named after the class.

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

    Returns
    -------
    Dataset
        Images are uint8, classes are in alphabetical order, and the name is `path`.

    Raises
    ------
    DatasetError
        If the folder does not exist or has fewer than two classes, a class has too few images, the splits differ in
        their classes, or a file is not a readable image.
    ArgumentError, ArgumentTypeError
        If `shape` is not the shape of an image.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for color in "blue", "red":
    ...         Path(folder, color).mkdir()
    ...         for i in range(20):
    ...             Image.new("RGB", (40, 30), color).save(Path(folder, color, f"{i}.png"))
    ...     colors = load_folder(folder)
    >>> colors.class_names, colors.X_train.shape, colors.X_val.shape, colors.X_test.shape
    (('blue', 'red'), (31, 3, 32, 32), (4, 3, 32, 32), (5, 3, 32, 32))
    """
    shape = check_image_shape(shape)
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
    paths, labels = _assign_splits(files, seed)
    images = {f"X_{split}": _read_images(split_paths, shape) for split, split_paths in paths.items()}
    return Dataset(str(path), **images, **{f"y_{split}": y for split, y in labels.items()}, class_names=class_names)


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
    return [entry for entry in _entries(path) if entry.is_dir()]


def _entries(path: Path) -> list[Path]:
    """Return what people put into a folder, in alphabetical order."""
    return sorted(
        entry
        for entry in path.iterdir()
        if not entry.name.startswith(".") and entry.name.lower() not in SYSTEM_NAMES and entry.name != "Icon\r"
    )


def _class_files(folder: Path) -> ClassFiles:
    """Return the files in the subfolder of each class."""
    try:
        classes = {subfolder.name: _entries(subfolder) for subfolder in _subfolders(folder)}
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
        if len(class_files) < len(splits):
            raise DatasetError(
                f"{train_folder / name} has {len(class_files)} images; expected {len(splits)} or more, at least one "
                f"for each of {', '.join(splits)}"
            )


def _assign_splits(files: dict[str, ClassFiles], seed: int) -> tuple[dict[str, list[Path]], dict[str, np.ndarray]]:
    """Return the files and the labels of every split; splits without a folder are taken from the training images."""
    missing = [split for split in FRACTIONS if split not in files]
    fractions = [1 - sum(FRACTIONS[split] for split in missing), *(FRACTIONS[split] for split in missing)]
    assigned: dict[str, list[tuple[Path, int]]] = {split: [] for split in FRACTIONS}
    for split, classes in files.items():
        for label, class_files in enumerate(classes.values()):
            parts = _split_by_name(class_files, fractions, seed) if split == "train" else [class_files]
            for name, part in zip(["train", *missing] if split == "train" else [split], parts, strict=True):
                assigned[name] += [(file, label) for file in part]
    for split in ("train", *missing):
        assigned[split].sort(key=lambda entry: _position(entry[0], seed))  # mixes the classes
    paths = {split: [file for file, _ in entries] for split, entries in assigned.items()}
    return paths, {split: np.array([label for _, label in entries], np.int64) for split, entries in assigned.items()}


def _split_by_name(files: list[Path], fractions: Sequence[float], seed: int) -> list[list[Path]]:
    """Split the files of a class by the positions of their names, at least one to each split."""
    files = sorted(files, key=lambda file: _position(file, seed))
    positions = [_position(file, seed) for file in files]
    cuts = leave_none_empty(np.searchsorted(positions, np.cumsum(fractions)[:-1]), len(files))
    return [files[start:end] for start, end in itertools.pairwise([0, *cuts, len(files)])]


def _position(file: Path, seed: int) -> float:
    """Return a number from 0 to 1 that depends on nothing but the class, the name and the seed."""
    name = unicodedata.normalize("NFC", f"{seed}/{file.parent.name}/{file.name}")  # macOS decomposes accents
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / (1 << 48)


def _read_images(paths: list[Path], shape: Sequence[int]) -> np.ndarray:
    images = np.empty((len(paths), *shape), np.uint8)
    for image, path in zip(images, paths, strict=True):
        image[...] = read_image(path, shape)
    return images

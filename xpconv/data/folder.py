"""A folder of images as a data set, one subfolder a class."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xpconv.data.dataset import Dataset
from xpconv.data.images import check_image_shape, read_image
from xpconv.data.splitting import stratified_split
from xpconv.errors import DatasetError

__all__ = ["load_folder"]

SHAPE = (3, 32, 32)
SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


def load_folder(path: str | os.PathLike[str], shape: Sequence[int] = SHAPE, seed: int = 0) -> Dataset:
    """Return the images of a folder that has one subfolder for each class, named as the class.

    Each class is split at random: 70 % of its images to train on, 15 % to validate, 15 % held out. If the folder
    has a subfolder ``train`` with the classes in it, then those images are trained on, those of ``val`` validated
    on and those of ``test`` held out; where ``val`` or ``test`` is missing, its share is taken from ``train``.

    Parameters
    ----------
    path : str or path
        The folder. Names that start with a dot, and files beside the subfolders, are passed over.
    shape : (int, int, int)
        Channels (1 is grey, 3 RGB), height and width to which `read_image` brings every image.
    seed : int
        Decides which image goes to which part; the part of an image does not depend on `shape`.

    Returns
    -------
    Dataset
        Its images are uint8, its classes in the order of their names, its name is `path`.

    Raises
    ------
    DatasetError
        If there is no such folder, it has fewer than two classes, a class has too few images for its parts, a part
        has other classes than ``train``, or a file of a class is no image that can be read.

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
    (('blue', 'red'), (28, 3, 32, 32), (6, 3, 32, 32), (6, 3, 32, 32))
    """
    check_image_shape(shape)
    root = Path(path)
    split = bool(_folders(root / "train")) if (root / "train").is_dir() else False
    sources = {part: root / part for part in SHARES if (root / part).is_dir()} if split else {"train": root}
    found = {part: _files(source) for part, source in sources.items()}
    names = tuple(found["train"])
    if len(names) < 2:
        raise DatasetError(
            f"{sources['train']} has {len(names)} subfolders of images ({', '.join(names) or 'none'}); "
            "expected two or more, one for each class"
        )
    for part, classes in found.items():
        if tuple(classes) != names:
            differing = ", ".join(sorted(set(classes) ^ set(names)))
            raise DatasetError(
                f"{sources[part]} and {sources['train']} differ in {differing}; expected the same classes in both"
            )
    paths, labels = _divide(found, names, seed, sources["train"])
    images = {f"X_{part}": _read(files, shape) for part, files in paths.items()}
    return Dataset(str(path), **images, **{f"y_{part}": y for part, y in labels.items()}, class_names=names)


def _folders(path: Path) -> list[Path]:
    """Return the subfolders, in the order of their names."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(source: Path) -> dict[str, list[Path]]:
    """Return for each class the files of its folder, which are to be images."""
    try:
        found = {
            folder.name: sorted(file for file in folder.iterdir() if not file.name.startswith("."))
            for folder in _folders(source)
        }
    except OSError as error:
        raise DatasetError(
            f"cannot read the folder {error.filename} ({error.strerror}); expected a folder with "
            "one subfolder of images for each class"
        ) from error
    for name, files in found.items():
        if not files:
            raise DatasetError(
                f"{source / name} holds no images; expected one subfolder of images for each class: "
                "fill it or remove it"
            )
    return found


def _divide(
    found: dict[str, dict[str, list[Path]]],
    names: tuple[str, ...],
    seed: int,
    source: Path,
) -> tuple[dict[str, list[Path]], dict[str, np.ndarray]]:
    """Return the files and the labels of every part; parts that were not found are taken from train."""
    parts = ["train", *(part for part in SHARES if part not in found)]
    shares = [1 - sum(SHARES[part] for part in parts[1:]), *(SHARES[part] for part in parts[1:])]
    for name, files in found["train"].items():
        if len(files) < len(parts):
            raise DatasetError(
                f"{source / name} holds {len(files)} images; expected {len(parts)} or more, one at "
                f"least for each of {', '.join(parts)}"
            )
    paths, labels = {}, {}
    for part, classes in found.items():
        files = [file for name in names for file in classes[name]]
        y = np.repeat(np.arange(len(names)), [len(classes[name]) for name in names])
        chosen = stratified_split(y, shares, seed) if part == "train" else [np.arange(len(y))]
        for own, indices in zip(parts if part == "train" else [part], chosen, strict=True):
            paths[own], labels[own] = [files[i] for i in indices], y[indices]
    return paths, labels


def _read(paths: list[Path], shape: Sequence[int]) -> np.ndarray:
    images = np.empty((len(paths), *shape), np.uint8)
    for image, path in zip(images, paths, strict=True):
        image[...] = read_image(path, shape)
    return images

"""The evaluation of a saved model: its file, its data set, whether it fits, and the accuracy."""

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xpconv.backend import Backend
from xpconv.cli._run_folder import CONFIG, MODEL, read_config
from xpconv.cli._tables import echo
from xpconv.data import Dataset
from xpconv.data._file_kind import MODEL as MODEL_KIND
from xpconv.data._file_kind import file_kind, is_picture
from xpconv.data._fingerprint import DIGEST_BYTES, image_digests
from xpconv.data.images import check_image_shape, read_image, read_strokes
from xpconv.errors import ArgumentError, CheckpointError, printable
from xpconv.io import load_model
from xpconv.nn import Sequential
from xpconv.training import metrics
from xpconv.training.metrics import MirrorAveraged

__all__ = [
    "accuracy",
    "check_fits",
    "data_of_run",
    "image_to_predict",
    "model_path",
    "probabilities",
    "read_model",
    "resize_of",
    "warn_of_training_images",
]


def accuracy(model: Sequential, X: np.ndarray, y: np.ndarray, tta: str = "none") -> float:
    """Return the fraction of samples whose highest score is their label's, 0 to 1."""
    with np.errstate(all="ignore"):  # scores that are NaN are an error
        return metrics.accuracy(_averaged(model, tta), X, y, model.backend, batch_size=500)


def probabilities(model: Sequential, X: np.ndarray, tta: str = "none") -> np.ndarray:
    """Return the probability of each class for images."""
    with np.errstate(all="ignore"):  # scores that are NaN are an error
        return metrics.probabilities(_averaged(model, tta), X)


def _averaged(model: Sequential, tta: str) -> Sequential | MirrorAveraged:
    """Return a model with a test-time augmentation."""
    return model if tta == "none" else MirrorAveraged(model, shift=int(tta == "flip-shift"))


def model_path(path: Path) -> Path:
    """Return the path of a model that is given by its file or by the folder of its run."""
    return path / MODEL if path.is_dir() else path


def read_model(path: Path, backend: str | Backend, images: Sequence[Path] = ()) -> Sequential:
    """Read a model that is given by its file or by the folder of its run.

    Raises
    ------
    CheckpointError
        As `xpconv.load_model`. If the file is a picture and one of the `images` that follow it on the command line is
        a model, the text says that they are swapped.
    """
    try:
        return load_model(model_path(path), backend)
    except CheckpointError as error:
        swapped = next((other for other in images if file_kind(model_path(other)) == MODEL_KIND), None)
        if swapped is None or not is_picture(path):
            raise
        raise CheckpointError(
            f"{path} is {file_kind(path)} but {swapped} is {file_kind(model_path(swapped))}: give the model first, as "
            f"in xpconv predict {shlex.quote(str(swapped))} {shlex.quote(str(path))}"
        ) from error


def resize_of(model: Sequential) -> str:
    """Return how a model wants image files of another aspect ratio to be fitted; an older one has squashed images."""
    return (model.preprocessing and model.preprocessing.resize) or "squash"


def image_to_predict(path: Path, model: Sequential) -> tuple[np.ndarray, list[str]]:
    """Return an image file as a model takes it, with remarks on how it was read and on how unusual it is.

    Raises
    ------
    DatasetError, ArgumentError
        As `read_image`.
    """
    remarks, shown = [], printable(path, max_length=10_000)
    if resize_of(model) == "strokes":
        channels, height, width = check_image_shape(model.input_shape)
        strokes = read_strokes(path, height, width)
        image = np.tile(strokes.pixels, (channels, 1, 1))
        if strokes.inverted and image.any():
            remarks.append(f"{shown} has dark strokes on a light background: inverted")
        usual = strokes.plain
    else:
        image, usual = read_image(path, model.input_shape, resize_of(model)), True
    typical = None if model.preprocessing is None else model.preprocessing.typical
    if not usual or (typical is not None and typical.distances(image[None])[0] > 1):
        remarks.append(f"warning: {shown} is unlike the training images, so its class may be meaningless")
    return image, remarks


def check_fits(model: Sequential, dataset: Dataset) -> None:
    """Raise ArgumentError unless the model takes the data set's images and knows its classes."""
    classes = model.class_names or tuple(map(str, range(model.num_classes)))
    if model.input_shape != dataset.input_shape or classes != dataset.class_names:
        raise ArgumentError(
            f"the model takes samples of shape {model.input_shape} and knows {', '.join(classes)}, "
            f"but {dataset.name} has images of shape {dataset.input_shape} of "
            f"{', '.join(dataset.class_names)}: choose the data set that it was trained on"
        )


def data_of_run(model_path: Path) -> str:
    """Return the data set that the ``config.json`` beside a model names, or ``digits`` if there is none."""
    try:
        return str(read_config(model_path.with_name(CONFIG))["settings"]["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return "digits"


def warn_of_training_images(model_path: Path, dataset: Dataset) -> None:
    """Print a warning if test images are among the training images that the ``config.json`` beside a model records."""
    try:
        recorded = read_config(model_path.with_name(CONFIG))["dataset"]["training_images"]
        digests = base64.b64decode(recorded)
    except (OSError, ValueError, KeyError, TypeError):
        return
    known = {digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)}
    count = sum(digest in known for digest in image_digests(dataset.X_test))
    if count:
        echo(
            f"xpconv: warning: the model was trained on {count} of the {len(dataset.y_test)} test images, so the "
            "accuracy on new images may be lower: remove duplicates, or put the images back as they were",
            error=True,
        )

"""The evaluation of a saved model: its data set, whether it fits, and the accuracy."""

import json
from pathlib import Path

import numpy as np

from xpconv.cli._run_folder import CONFIG
from xpconv.data import Dataset
from xpconv.errors import ArgumentError
from xpconv.nn import Sequential
from xpconv.training import metrics

__all__ = ["accuracy", "check_fits", "data_of_run"]


def accuracy(model: Sequential, X: np.ndarray, y: np.ndarray) -> float:
    """Return the fraction of samples whose highest score is their label's, 0 to 1."""
    return metrics.accuracy(model, X, y, model.backend, batch_size=500)


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
        return str(json.loads(model_path.with_name(CONFIG).read_text("utf-8"))["settings"]["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return "digits"

"""The files that a training run leaves: the model, its metrics, pictures, and the configuration."""

import base64
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from xpconv import viz
from xpconv.backend import get_backend, to_host
from xpconv.cli._metrics import histories_by_epoch, metrics_table
from xpconv.cli._report import epoch_table, run_report, saved_epoch
from xpconv.cli._run_folder import CONFIG, FILES
from xpconv.cli._settings import Settings
from xpconv.data import DATASETS, Dataset
from xpconv.data._fingerprint import image_digests
from xpconv.io._atomic import write_bytes
from xpconv.io.model import save_model
from xpconv.nn import Sequential
from xpconv.ops.numpy._workers import num_threads
from xpconv.training import metrics
from xpconv.training.solver import Solver
from xpconv.viz._figure import import_figure

__all__ = ["first_filters", "require_matplotlib", "save_config", "save_results"]


def require_matplotlib() -> None:
    """Raise XpconvError, before any work is done, if matplotlib cannot be imported."""
    import_figure()


def save_results(
    folder: Path, settings: Settings, solver: Solver, dataset: Dataset, untrained_filters: np.ndarray
) -> list[Path]:
    """Write all files of a run and return their paths, the model's first.

    Parameters
    ----------
    folder : path
    settings, solver, dataset
        Those of the run.
    untrained_filters : array
        The `first_filters` before training, which are drawn beside those of the trained model.
    """
    model = solver.model
    paths = [folder / name for name in FILES]
    model_path, metrics_path, curves, filters, confusion, mistakes, report_path, config_path = paths
    save_model(model, model_path)
    _write(metrics_path, metrics_table(solver))
    histories = histories_by_epoch(solver)
    viz.save_curves(histories, curves)
    kind = "filters" if len(model.params["W1"].shape) == 4 else "weights"
    viz.save_filters(first_filters(model), filters, f"first-layer {kind}", before=untrained_filters)
    probs = metrics.probabilities(model, dataset.X_test)
    predicted = probs.argmax(axis=1)
    viz.save_confusion_matrix(dataset.y_test, predicted, dataset.class_names, confusion)
    viz.save_mistakes(dataset.X_test, dataset.y_test, probs, dataset.class_names, mistakes)
    report = metrics.classification_report(dataset.y_test, predicted, dataset.class_names)
    pictures = {
        "Training curves": curves,
        "Confusion matrix of the test images": confusion,
        "Test images whose true classes got the lowest probabilities": mistakes,
        "First layer before and after training": filters,
    }
    config = _config(settings, solver, dataset)
    saved = saved_epoch(histories, settings.patience_on)
    _write(report_path, run_report(model, settings, epoch_table(histories), saved, report, config, pictures))
    save_config(config_path.parent, settings, solver, dataset, finished=not solver.interrupted)
    return paths


def save_config(folder: Path, settings: Settings, solver: Solver, dataset: Dataset, *, finished: bool = False) -> None:
    """Write ``config.json``: what one needs to repeat, resume and judge the run."""
    config = {**_config(settings, solver, dataset), "finished": finished}
    _write(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def first_filters(model: Sequential) -> np.ndarray:
    """Return a copy of the first layer's weights as filters; each affine unit has one of the image's shape."""
    w = np.array(to_host(model.params["W1"]))
    return w if w.ndim == 4 else w.T.reshape(-1, *model.input_shape)


def _config(settings: Settings, solver: Solver, dataset: Dataset) -> Mapping[str, Any]:
    library = get_backend(settings.backend).library.replace("_", "-")
    return {
        "command": settings.command(),
        "settings": asdict(settings),
        "dataset": {
            "name": dataset.name,
            "input_shape": dataset.input_shape,
            "class_names": dataset.class_names,
            "sizes": {
                field.name: len(getattr(dataset, field.name))
                for field in fields(dataset)
                if field.name.startswith("y_")
            },
            "training_images": _training_digests(settings, dataset),
        },
        "model": solver.model.config(),
        "iterations": solver.iteration,
        "interrupted": solver.interrupted,
        "skipped": solver.skipped,
        "versions": {name: _version(name) for name in dict.fromkeys(("xpconv", "numpy", library))}
        | {"python": platform.python_version()},
        "platform": platform.platform(),
        "threads": num_threads(),
    }


def _training_digests(settings: Settings, dataset: Dataset) -> str | None:
    """Return digests of the training images, by which eval finds them among test images; None for a fixed data set."""
    if settings.data in DATASETS:
        return None
    return base64.b64encode(b"".join(image_digests(dataset.X_train)[: settings.num_train])).decode()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # CuPy's package is named after the CUDA version
        return None

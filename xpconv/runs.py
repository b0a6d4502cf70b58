"""Training runs: from settings to a trained model, and the files that one leaves."""

import csv
import io
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from xpconv import viz
from xpconv.backend import get_backend, to_host
from xpconv.checkpoint import save_model
from xpconv.data import Dataset
from xpconv.data.augment import AUGMENTATIONS
from xpconv.errors import ArgumentError, XpconvError
from xpconv.files import atomic_path
from xpconv.models import ConvNet, ThreeLayerConvNet
from xpconv.nn import Affine, BatchNorm, Relu
from xpconv.primitives.tiling import num_threads
from xpconv.sequential import Preprocessing, Sequential
from xpconv.solver import Solver

__all__ = ["DEFAULTS", "MODELS", "Settings", "accuracy", "build_model", "build_solver", "check_fit", "data_of_run",
           "require_matplotlib", "run_folder", "save_run"]

FILES = ("model.safetensors", "metrics.csv", "curves.png", "filters.png", "config.json")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What determines a run: the same settings give the same model.

    Parameters
    ----------
    data : {"digits", "cifar10"}
    model : {"three-layer", "fc", "convnet"}
    epochs, batch_size, learning_rate, lr_decay, reg
        As for `Solver` and `Sequential`; DEFAULTS has good ones for each data set.
    optimizer : {"sgd", "sgd_momentum", "rmsprop", "adam"}
    dtype : {"float32", "float64"}
    backend : str
    seed : int
    num_train : int, optional
        Train on the first so many samples only.
    augment : {"none", "shift", "mirror"}
        Which images to add to those, as in AUGMENTATIONS.

    Examples
    --------
    >>> Settings(data="digits", **DEFAULTS["digits"]).model
    'three-layer'
    """

    data: str
    model: str = "three-layer"
    epochs: int
    batch_size: int
    learning_rate: float
    lr_decay: float
    optimizer: str = "adam"
    reg: float
    dtype: str = "float32"
    backend: str = "numpy"
    seed: int = 0
    num_train: int | None = None
    augment: str

    def command(self) -> str:
        """Return the command that repeats the run."""
        words = (f"--{name.replace('_', '-')} {value}" for name, value in asdict(self).items() if value is not None)
        return " ".join(["xpconv train", *words])


DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 8, "batch_size": 50, "learning_rate": 1e-3, "lr_decay": 0.85, "reg": 1e-3,
               "augment": "shift"},
    "cifar10": {"epochs": 5, "batch_size": 50, "learning_rate": 1e-3, "lr_decay": 0.8, "reg": 1e-3,
                "augment": "none"},
}
"""For each data set the settings that train well on it."""


def _three_layer(shape: tuple[int, int, int], classes: int, **options: Any) -> Sequential:
    if min(shape[1:]) < 16:
        size: dict[str, Any] = {"num_filters": 64, "filter_size": 3, "hidden_dim": 128, "weight_scale": None}
    else:  # so many inputs of the hidden layer learn faster from small weights
        size = {"num_filters": 32, "filter_size": 5, "hidden_dim": 100, "weight_scale": 1e-2}
    return ThreeLayerConvNet(input_dim=shape, num_classes=classes, **size, **options)


def _fully_connected(shape: tuple[int, int, int], classes: int, **options: Any) -> Sequential:
    # Its input stays an image, so that channels can be normalised and files predicted.
    hidden = [layer for units in (100, 100) for layer in (Affine(units), BatchNorm(), Relu())]
    return Sequential([*hidden, Affine(classes)], input_shape=shape, name="FullyConnectedNet", **options)


def _conv_net(shape: tuple[int, int, int], classes: int, **options: Any) -> Sequential:
    return ConvNet([32, "pool", 64, "pool", 128], input_dim=shape, num_classes=classes, **options)


MODELS = {"three-layer": _three_layer, "fc": _fully_connected, "convnet": _conv_net}
"""The nets by name, each with the function ``(image shape, number of classes, **options)`` that builds it."""


def require_matplotlib() -> None:
    """Raise an error, before any work is done, if pictures could not be drawn after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise XpconvError(f"drawing the curves needs matplotlib, which cannot be imported ({error}): "
                          'pip install "xpconv[train]"') from error


def build_solver(settings: Settings, dataset: Dataset, *, print_every: int = 100) -> Solver:
    """Return the Solver, and in it the model, that the settings ask for.

    Raises
    ------
    ArgumentError
        If a setting cannot be used.
    BackendUnavailableError
        If the backend cannot run here.
    """
    count = len(dataset.y_train) if settings.num_train is None else settings.num_train
    if not 1 <= count <= len(dataset.y_train):
        raise ArgumentError(f"num_train is {count}; expected 1 to {len(dataset.y_train)}, as many samples as "
                            f"{dataset.name} has to train on")
    X, y = AUGMENTATIONS[settings.augment](dataset.X_train[:count], dataset.y_train[:count])
    stream = np.random.default_rng(settings.seed)
    model = build_model(settings, dataset, X, stream)
    return Solver(model, {**dataset.splits(), "X_train": X, "y_train": y}, update_rule=settings.optimizer,
                  optim_config={"learning_rate": settings.learning_rate}, lr_decay=settings.lr_decay,
                  batch_size=settings.batch_size, num_epochs=settings.epochs, print_every=print_every, rng=stream)


def build_model(settings: Settings, dataset: Dataset, X: np.ndarray, stream: np.random.Generator) -> Sequential:
    """Return the untrained model; it normalises each channel by the mean and standard deviation of `X`."""
    channels = np.moveaxis(X, 1, 0).reshape(X.shape[1], -1)
    mean, std = channels.mean(axis=1)[:, None, None], channels.std(axis=1)[:, None, None]
    return MODELS[settings.model](dataset.input_shape, len(dataset.class_names), reg=settings.reg,
                                  dtype=settings.dtype, backend=settings.backend, rng=stream,
                                  preprocessing=Preprocessing(mean, np.where(std > 0, std, 1.0)),
                                  class_names=dataset.class_names)


def accuracy(model: Sequential, X: np.ndarray, y: np.ndarray, batch_size: int = 500) -> float:
    """Return the share of samples whose highest score is their label's, 0 to 1."""
    starts = range(0, len(y), batch_size)
    scores = [to_host(model.loss(X[start:start + batch_size])) for start in starts]
    return float(np.mean(np.argmax(np.concatenate(scores), axis=1) == y))


def check_fit(model: Sequential, dataset: Dataset) -> None:
    """Raise ArgumentError unless the model was made for such images and such classes."""
    classes = model.class_names or tuple(map(str, range(model.num_classes)))
    if model.input_shape != dataset.input_shape or classes != dataset.class_names:
        raise ArgumentError(f"the model takes samples of shape {model.input_shape} and knows {', '.join(classes)}, "
                            f"but {dataset.name} has images of shape {dataset.input_shape} of "
                            f"{', '.join(dataset.class_names)}: choose the data set that it was trained on")


@contextmanager
def run_folder(out: Path | None) -> Iterator[Path]:
    """Make the folder for a run's files, which may be there but hold no run yet.

    Parameters
    ----------
    out : path, optional
        By default a new folder ``runs/<date>_<time>``.

    Yields
    ------
    pathlib.Path
        The folder; it can be written to. If the block fails and left nothing in it, it is removed again.

    Raises
    ------
    ArgumentError
        If it holds a run's files already.
    OSError
        If it cannot be made or written to.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as parent, run_folder(Path(parent, "first")) as folder:
    ...     folder.name
    'first'
    """
    folder = _unused_name() if out is None else out
    held = [name for name in FILES if os.path.lexists(folder / name)]
    if held:
        raise ArgumentError(f"out is {folder}, which already holds {', '.join(held)}: "
                            "choose another folder, or move that run away")
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=out is not None)
    try:
        tempfile.TemporaryFile(dir=folder).close()
        yield folder
    except BaseException:
        if new:
            with suppress(OSError):  # it holds something
                folder.rmdir()
        raise


def _unused_name() -> Path:
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(folder for suffix in suffixes if not (folder := Path("runs", name + suffix)).exists())


def save_run(folder: Path, settings: Settings, solver: Solver, dataset: Dataset) -> list[Path]:
    """Write everything that a run leaves and return the paths, the model's first."""
    model = solver.model
    paths = [folder / name for name in FILES]
    model_path, metrics_path, curves_path, filters_path, config_path = paths
    save_model(model, model_path)
    _write(metrics_path, _metrics(solver))
    viz.save_curves(vars(solver), curves_path)
    w = to_host(model.params["W1"])
    units = w if w.ndim == 4 else w.T.reshape(-1, *model.input_shape)
    viz.save_filters(units, filters_path, "first-layer filters" if w.ndim == 4 else "first-layer weights")
    _write(config_path, json.dumps(_config(settings, solver, dataset), indent=2) + "\n")
    return paths


def data_of_run(model_path: Path) -> str:
    """Return the data set that the ``config.json`` beside a model names, or ``digits`` if there is none."""
    try:
        return str(json.loads(model_path.with_name("config.json").read_text("utf-8"))["settings"]["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return "digits"


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _metrics(solver: Solver) -> str:
    """Return a table with a row for each iteration and accuracies where they were checked."""
    per_epoch = max(len(solver.y_train) // solver.batch_size, 1)
    checked = sorted({1, *range(per_epoch, solver.iteration + 1, per_epoch)})
    accuracies = dict(zip(checked, zip(solver.train_acc_history, solver.val_acc_history, strict=False), strict=False))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["iteration", "epoch", "loss", "train_accuracy", "val_accuracy"])
    for iteration, loss in enumerate(solver.loss_history, start=1):
        epoch = (iteration - 1) // per_epoch + 1
        table.writerow([iteration, epoch, loss, *accuracies.get(iteration, ("", ""))])
    return text.getvalue()


def _config(settings: Settings, solver: Solver, dataset: Dataset) -> Mapping[str, Any]:
    """Return everything that one needs to repeat the run and to judge it."""
    library = get_backend(settings.backend).library.replace("_", "-")
    return {
        "command": settings.command(),
        "settings": asdict(settings),
        "dataset": {"name": dataset.name, "input_shape": dataset.input_shape, "class_names": dataset.class_names,
                    "sizes": {field.name: len(getattr(dataset, field.name)) for field in fields(dataset)
                              if field.name.startswith("y_")}},
        "model": solver.model.config(),
        "iterations": solver.iteration,
        "interrupted": solver.interrupted,
        "versions": {name: _version(name) for name in dict.fromkeys(("xpconv", "numpy", library))}
                    | {"python": platform.python_version()},
        "platform": platform.platform(),
        "threads": num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # CuPy's package is named after the CUDA version
        return None

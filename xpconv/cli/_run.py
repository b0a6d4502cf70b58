"""Training runs: from settings to a Solver, and from a trained model to the files that it leaves."""

import csv
import io
import json
import platform
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from xpconv import viz
from xpconv._validation import check_choice, check_count
from xpconv.backend import get_backend, to_host
from xpconv.data import DATASETS, Dataset, load_dataset
from xpconv.data.augment import parse_augmentation
from xpconv.errors import ArgumentError, ArgumentTypeError, XpconvError
from xpconv.io._atomic import write_bytes
from xpconv.io.model import save_model
from xpconv.nn import Affine, BatchNorm, ConvNet, Preprocessing, Relu, Sequential, ThreeLayerConvNet
from xpconv.ops.numpy._workers import num_threads
from xpconv.training import metrics
from xpconv.training.schedules import Schedule, constant, cosine, step_decay, warmup
from xpconv.training.solver import Solver

__all__ = [
    "DEFAULTS",
    "MODELS",
    "SCHEDULES",
    "Settings",
    "accuracy",
    "build_model",
    "build_solver",
    "check_fit",
    "data_of_run",
    "defaults_for",
    "load_data",
    "require_matplotlib",
    "save_config",
    "save_run",
]

FILES = (
    "model.safetensors",
    "metrics.csv",
    "curves.png",
    "filters.png",
    "confusion.png",
    "mistakes.png",
    "config.json",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What determines a run: the same settings give the same model, however often it is stopped and resumed.

    Parameters
    ----------
    data : {"digits", "cifar10"} or str
        Another word is the path of a folder of images.
    model : {"three-layer", "fc", "convnet"}
    epochs, batch_size, learning_rate, lr_decay, reg
        As for `Solver` and `Sequential`; DEFAULTS has good ones for each data set.
    optimizer : {"sgd", "sgd_momentum", "rmsprop", "adam"}
    dtype : {"float32", "float64"}
    backend : str
    seed : int
    num_train : int, optional
        Train on the first so many samples only.
    augment : str
        Which images to add to those, and how to change each minibatch, as for `xpconv.data.augment.parse_augmentation`.
    image_size : int, optional
        Height and width to which the images of a folder are brought.
    schedule : {"step", "cosine", "constant"}
        How the learning rate changes; "step" multiplies it by `lr_decay` after each `decay_every` epochs.
    warmup : int
        Epochs in which the learning rate rises from near 0.
    sampling, patience, on_nonfinite
        As for `Solver`.
    checkpoint_every : int, optional
        Iterations between two checkpoints.

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
    image_size: int | None = None
    schedule: str = "step"
    decay_every: int = 1
    warmup: int = 0
    sampling: str = "replacement"
    patience: int | None = None
    on_nonfinite: str = "stop"
    checkpoint_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("data", "augment", "backend"):
            if not isinstance(value := getattr(self, name), str):
                raise ArgumentTypeError(f"{name} is {value!r}; expected a text")
        check_choice("model", self.model, MODELS)
        check_choice("schedule", self.schedule, SCHEDULES)
        for name in ("epochs", "batch_size", "decay_every"):
            check_count(name, getattr(self, name))
        for name in ("num_train", "image_size", "patience", "checkpoint_every"):
            if (value := getattr(self, name)) is not None:
                check_count(name, value)
        for name in ("seed", "warmup", "learning_rate", "lr_decay", "reg"):
            kind = int if name in ("seed", "warmup") else (int, float)
            if not isinstance(value := getattr(self, name), kind) or isinstance(value, bool) or not value >= 0:
                raise ArgumentError(f"{name} is {value!r}; expected a number, 0 or more")

    def command(self) -> str:
        """Return the command that repeats the run."""
        words = (
            f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
            for name, value in asdict(self).items()
            if value is not None
        )
        return " ".join(["xpconv train", *words])


DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 8, "batch_size": 50, "learning_rate": 1e-3, "lr_decay": 0.85, "reg": 1e-3, "augment": "shift"},
    "cifar10": {"epochs": 5, "batch_size": 50, "learning_rate": 1e-3, "lr_decay": 0.8, "reg": 1e-3, "augment": "none"},
    "a folder": {
        "epochs": 20,
        "batch_size": 50,
        "learning_rate": 1e-3,
        "lr_decay": 0.9,
        "reg": 1e-3,
        "augment": "none",
    },
}
"""For each data set the settings that train well on it."""


def defaults_for(data: str) -> dict[str, Any]:
    """Return the settings that train well on a data set, given its name or its folder."""
    return DEFAULTS[data if data in DATASETS else "a folder"]


def load_data(settings: Settings) -> Dataset:
    """Return the data set that the settings name.

    Raises
    ------
    ArgumentError
        If there is none, or it is no folder but an image size is given.
    DatasetError
        If its files cannot be had or read.
    """
    if settings.image_size is None:
        return load_dataset(settings.data)
    if settings.data in DATASETS:
        raise ArgumentError(
            f"image_size is {settings.image_size}, but the images of {settings.data} have a size of "
            "their own: give it with a folder of images, or leave it out"
        )
    return load_dataset(settings.data, (3, settings.image_size, settings.image_size))


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


SCHEDULES: dict[str, Callable[[Settings, int], Schedule]] = {
    "step": lambda settings, per_epoch: step_decay(settings.decay_every * per_epoch, settings.lr_decay),
    "cosine": lambda settings, per_epoch: cosine(settings.epochs * per_epoch),
    "constant": lambda settings, per_epoch: constant,
}
"""The learning-rate schedules by name, each made for settings and a number of iterations an epoch."""

SMALLEST = 4  # pixels of an image that two pools halve
MODELS = {"three-layer": _three_layer, "fc": _fully_connected, "convnet": _conv_net}
"""The nets by name, each with the function ``(image shape, number of classes, **options)`` that builds it."""


def require_matplotlib() -> None:
    """Raise an error, before any work is done, if pictures could not be drawn after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise XpconvError(
            f'drawing the curves needs matplotlib, which cannot be imported ({error}): pip install "xpconv[train]"'
        ) from error


def build_solver(settings: Settings, dataset: Dataset, *, print_every: int = 100, preflight: bool = False) -> Solver:
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
        raise ArgumentError(
            f"num_train is {count}; expected 1 to {len(dataset.y_train)}, as many samples as "
            f"{dataset.name} has to train on"
        )
    extend, change = parse_augmentation(settings.augment)
    X, y = extend(dataset.X_train[:count], dataset.y_train[:count])
    stream = np.random.default_rng(settings.seed)
    model = build_model(settings, dataset, X, stream)
    return Solver(
        model,
        {**dataset.splits(), "X_train": X, "y_train": y},
        update_rule=settings.optimizer,
        optim_config={"learning_rate": settings.learning_rate},
        schedule=_schedule(settings, max(len(y) // settings.batch_size, 1)),
        sampling=settings.sampling,
        patience=settings.patience,
        batch_size=settings.batch_size,
        num_epochs=settings.epochs,
        print_every=print_every,
        augment=change,
        on_nonfinite=settings.on_nonfinite,
        rng=stream,
        preflight=preflight,
    )


def _schedule(settings: Settings, per_epoch: int) -> Schedule:
    return warmup(settings.warmup * per_epoch, SCHEDULES[settings.schedule](settings, per_epoch))


def build_model(settings: Settings, dataset: Dataset, X: np.ndarray, stream: np.random.Generator) -> Sequential:
    """Return the untrained model; it normalises each channel by the mean and standard deviation of `X`."""
    channels = np.moveaxis(X, 1, 0).reshape(X.shape[1], -1)
    mean, std = channels.mean(axis=1)[:, None, None], channels.std(axis=1)[:, None, None]
    height, width = dataset.input_shape[1:]
    if settings.model != "fc" and min(height, width) < SMALLEST:
        raise ArgumentError(
            f"images of {dataset.name} have {height}x{width} pixels; expected {SMALLEST}x{SMALLEST} or "
            f"more, which {settings.model} pools: take a larger image_size, or the model fc"
        )
    return MODELS[settings.model](
        dataset.input_shape,
        len(dataset.class_names),
        reg=settings.reg,
        dtype=settings.dtype,
        backend=settings.backend,
        rng=stream,
        preprocessing=Preprocessing(mean, np.where(std > 0, std, 1.0)),
        class_names=dataset.class_names,
    )


def accuracy(model: Sequential, X: np.ndarray, y: np.ndarray) -> float:
    """Return the share of samples whose highest score is their label's, 0 to 1."""
    return metrics.accuracy(model, X, y, model.backend, batch_size=500)


def check_fit(model: Sequential, dataset: Dataset) -> None:
    """Raise ArgumentError unless the model was made for such images and such classes."""
    classes = model.class_names or tuple(map(str, range(model.num_classes)))
    if model.input_shape != dataset.input_shape or classes != dataset.class_names:
        raise ArgumentError(
            f"the model takes samples of shape {model.input_shape} and knows {', '.join(classes)}, "
            f"but {dataset.name} has images of shape {dataset.input_shape} of "
            f"{', '.join(dataset.class_names)}: choose the data set that it was trained on"
        )


def save_run(folder: Path, settings: Settings, solver: Solver, dataset: Dataset) -> list[Path]:
    """Write everything that a run leaves and return the paths, the model's first."""
    model = solver.model
    paths = [folder / name for name in FILES]
    model_path, metrics_path, curves_path, filters_path, confusion_path, mistakes_path, config_path = paths
    save_model(model, model_path)
    _write(metrics_path, _metrics(solver))
    viz.save_curves(_by_epoch(solver), curves_path)
    before, after = (_units(net) for net in (_untrained(settings, dataset), model))
    kind = "filters" if len(model.params["W1"].shape) == 4 else "weights"
    viz.save_filters(after, filters_path, f"first-layer {kind}", before=before)
    odds = metrics.probabilities(model, dataset.X_test)
    viz.save_confusion_matrix(dataset.y_test, odds.argmax(axis=1), dataset.class_names, confusion_path)
    viz.save_mistakes(dataset.X_test, dataset.y_test, odds, dataset.class_names, mistakes_path)
    save_config(config_path.parent, settings, solver, dataset, finished=not solver.interrupted)
    return paths


def save_config(folder: Path, settings: Settings, solver: Solver, dataset: Dataset, *, finished: bool = False) -> None:
    """Write what one needs to repeat the run, to go on with it and to judge it."""
    config = {**_config(settings, solver, dataset), "finished": finished}
    _write(folder / "config.json", json.dumps(config, indent=2) + "\n")


def _units(model: Sequential) -> np.ndarray:
    """Return the weights of the first layer as filters; those of an affine layer see whole images."""
    w = to_host(model.params["W1"])
    return w if w.ndim == 4 else w.T.reshape(-1, *model.input_shape)


def _untrained(settings: Settings, dataset: Dataset) -> Sequential:
    """Return the model as it was before training: the same seed draws the same weights."""
    return build_model(settings, dataset, dataset.X_train[:1], np.random.default_rng(settings.seed))


def data_of_run(model_path: Path) -> str:
    """Return the data set that the ``config.json`` beside a model names, or ``digits`` if there is none."""
    try:
        return str(json.loads(model_path.with_name("config.json").read_text("utf-8"))["settings"]["data"])
    except (OSError, ValueError, KeyError, TypeError):
        return "digits"


def _write(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def _per_epoch(solver: Solver) -> int:
    return max(solver.y_train.shape[0] // solver.batch_size, 1)


def _by_epoch(solver: Solver) -> dict[str, Any]:
    """Return the histories, those of checks from epoch 0 on, of which nothing is known where iterations are epochs."""
    first = [nan] if _per_epoch(solver) == 1 else []
    return {
        **vars(solver),
        "train_acc_history": first + solver.train_acc_history,
        "val_acc_history": first + solver.val_acc_history,
        "health_history": {name: first + values for name, values in solver.health_history.items()},
    }


def _metrics(solver: Solver) -> str:
    """Return a table with a row for each iteration, and accuracies and health where they were checked."""
    per_epoch = _per_epoch(solver)
    checked = sorted({1, *range(per_epoch, solver.iteration + 1, per_epoch)})
    health = list(solver.health_history)
    checks = zip(solver.train_acc_history, solver.val_acc_history, *solver.health_history.values(), strict=False)
    measured = dict(zip(checked, checks, strict=False))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["iteration", "epoch", "loss", "learning_rate", "train_accuracy", "val_accuracy", *health])
    steps = zip(solver.loss_history, solver.learning_rate_history, strict=False)
    for iteration, (loss, rate) in enumerate(steps, start=1):
        epoch = (iteration - 1) // per_epoch + 1
        table.writerow([iteration, epoch, loss, rate, *measured.get(iteration, [""] * (2 + len(health)))])
    return text.getvalue()


def _config(settings: Settings, solver: Solver, dataset: Dataset) -> Mapping[str, Any]:
    """Return everything that one needs to repeat the run and to judge it."""
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


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # CuPy's package is named after the CUDA version
        return None

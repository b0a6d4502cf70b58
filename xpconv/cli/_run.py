"""A training run: from its settings to data, model and Solver, and the training with its checkpoints."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xpconv.cli._metrics import LiveMetrics
from xpconv.cli._nets import build_net
from xpconv.cli._results import save_config
from xpconv.cli._run_folder import CHECKPOINTS, METRICS, MODEL
from xpconv.cli._settings import Settings, decays_weights, parse_class_weights
from xpconv.cli._tables import echo
from xpconv.cli._workers import backend_of_worker, device_of_worker
from xpconv.data import DATASETS, Dataset, balanced_class_weights, load_dataset
from xpconv.data._fingerprint import channel_statistics
from xpconv.data.augment import mirroring_words, parse_augmentation
from xpconv.data.folder import MAX_MEMORY
from xpconv.data.rows import Rows
from xpconv.data.typical import measure_images
from xpconv.errors import ArgumentError, CheckpointError
from xpconv.io.model import load_model
from xpconv.nn import Preprocessing, Sequential
from xpconv.parallel import Communicator
from xpconv.training.checkpoint import CheckpointFolder, read_checkpoint
from xpconv.training.schedules import Schedule, constant, cosine, one_cycle, step_decay, warmup
from xpconv.training.solver import Solver

__all__ = [
    "build_solver",
    "load_data",
    "load_initial_model",
    "memory_for_images",
    "remove_checkpoints",
    "train_with_checkpoints",
]


def load_initial_model(settings: Settings, communicator: Communicator | None = None) -> Sequential | None:
    """Return the model that `init` names, on this worker's device; None if the settings name none.

    Raises
    ------
    BackendUnavailableError
        If the backend cannot run here.
    CheckpointError
        As `xpconv.load_model`.
    """
    if settings.init is None:
        return None
    return load_model(settings.init, device_of_worker(settings.backend, communicator or Communicator()))


def memory_for_images(data: str, max_memory: int | None) -> int:
    """Return the MiB of memory for the images of a folder: `max_memory`, or its default.

    Raises
    ------
    ArgumentError
        If `max_memory` is given for data that are not a folder.

    Examples
    --------
    >>> memory_for_images("my/pictures", None)
    256
    """
    if max_memory is not None and data in DATASETS:
        raise ArgumentError(
            f"max_memory is {max_memory}, which has no effect on {data}: leave it out, or take a folder of images"
        )
    return MAX_MEMORY if max_memory is None else max_memory


def load_data(settings: Settings, max_memory: int | None = None, initial: Sequential | None = None) -> Dataset:
    """Return the data set that the settings name.

    Images of a folder get the `image_size` of the settings, else that of the `initial` model.

    Parameters
    ----------
    settings : Settings
    max_memory : int, optional
        As for `load_folder`.
    initial : Sequential, optional
        As `load_initial_model` returned it.

    Raises
    ------
    ArgumentError
        If there is none of that name, or `max_memory` is given for a data set that is not a folder.
    DatasetError
        If its files cannot be found or read.
    """
    size = settings.image_size
    if size is None and initial is not None:
        size = initial.input_shape[-1]
    options: dict[str, Any] = {"resize": settings.resize, "strict": settings.strict}
    options["max_memory"] = memory_for_images(settings.data, max_memory)
    return load_dataset(settings.data, None if size is None else (3, size, size), **options)


def build_solver(
    settings: Settings,
    dataset: Dataset,
    *,
    print_every: int = 100,
    preflight: bool = False,
    communicator: Communicator | None = None,
    initial: Sequential | None = None,
) -> Solver:
    """Return the Solver that the settings describe, with its model on this worker's device.

    If the settings name a model to start from, `initial` is that model, as `load_initial_model` returned it; the
    Solver trains it.

    Raises
    ------
    ArgumentError
        If a setting does not fit the data set.
    BackendUnavailableError
        If the backend cannot run here.
    """
    count = len(dataset.y_train) if settings.num_train is None else settings.num_train
    if not 1 <= count <= len(dataset.y_train):
        raise ArgumentError(
            f"num_train is {count}; expected 1 to {len(dataset.y_train)}, the number of training samples of "
            f"{dataset.name}"
        )
    augment = parse_augmentation(settings.augment, settings.seed % 2**32)
    if settings.data == "digits" and (mirrors := mirroring_words(settings.augment)):
        warnings.warn(
            f"augment has {' and '.join(mirrors)}, but mirroring changes the class of some digits, such as 2 and 5: "
            "leave it out",
            stacklevel=2,
        )
    X, y = _first(dataset.X_train, count), dataset.y_train[:count]
    rng = np.random.default_rng(settings.seed)
    backend, communicator = backend_of_worker(settings.backend, communicator or Communicator())
    if initial is None:
        model = _new_model(replace(settings, backend=backend), dataset, X, rng)
    else:
        model = _adapted_model(initial, settings, dataset, X, rng)
    model.loss_options = _loss_options(settings, y, dataset.class_names)
    model.precision = settings.precision
    return Solver(
        model,
        {**dataset.splits(), "X_train": X, "y_train": y},
        update_rule=settings.optimizer,
        optim_config=_optim_config(settings),
        param_options=_param_options(settings),
        clip_norm=settings.clip_norm,
        ema=settings.ema,
        lookahead=settings.lookahead,
        schedule=_schedule(settings, max(len(y) // settings.batch_size, 1)),
        sampling=settings.sampling,
        patience=settings.patience,
        patience_on=settings.patience_on,
        batch_size=settings.batch_size,
        microbatches=settings.microbatches,
        norm_sync=settings.norm_sync,
        num_epochs=settings.epochs,
        print_every=print_every,
        augment=augment,
        on_nonfinite=settings.on_nonfinite,
        rng=rng,
        preflight=preflight,
        communicator=communicator,
    )


def _optim_config(settings: Settings) -> dict[str, float]:
    """Return the options of the update rule that the settings give; the others have the rule's defaults."""
    options = {name: getattr(settings, name) for name in ("learning_rate", "momentum", "weight_decay")}
    return {name: value for name, value in options.items() if value is not None}


def _param_options(settings: Settings) -> dict[str, dict[str, float]] | None:
    """Leave norms and biases out of weight decay."""
    decays = decays_weights(settings.optimizer, settings.weight_decay)
    return {"gamma*|beta*|b*": {"weight_decay": 0}} if decays else None


def _loss_options(settings: Settings, y: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the options of the loss that the settings ask for; labels `y` give balanced weights."""
    options: dict[str, Any] = {"label_smoothing": settings.label_smoothing} if settings.label_smoothing else {}
    if settings.class_weights is not None:
        weights = parse_class_weights(settings.class_weights)
        options["class_weights"] = weights or balanced_class_weights(y, len(class_names), class_names)
    return options


def _first(X: Any, count: int) -> Any:
    return X.select(np.arange(count)) if isinstance(X, Rows) else X[:count]


def _schedule(settings: Settings, iterations_per_epoch: int) -> Schedule:
    schedule: Schedule = constant
    if settings.schedule == "step":
        schedule = step_decay(settings.decay_every * iterations_per_epoch, settings.lr_decay)
    elif settings.schedule == "cosine":
        schedule = cosine(settings.epochs * iterations_per_epoch)
    elif settings.schedule == "one-cycle":
        schedule = one_cycle(settings.epochs * iterations_per_epoch)
    return warmup(round(settings.warmup * iterations_per_epoch), schedule)


def _new_model(settings: Settings, dataset: Dataset, X: np.ndarray, rng: np.random.Generator) -> Sequential:
    """Return an untrained model, which normalises each channel by the mean and standard deviation of `X`."""
    mean, std = (values[:, None, None] for values in channel_statistics(X))
    return build_net(
        settings.model,
        dataset.input_shape,
        len(dataset.class_names),
        {name: getattr(settings, name) for name in ("layers", "norm", "width", "dropout")},
        reg=settings.reg,
        dtype=settings.dtype,
        backend=settings.backend,
        rng=rng,
        preprocessing=Preprocessing(mean, np.where(std > 0, std, 1.0), settings.resize, measure_images(X)),
        class_names=dataset.class_names,
    )


def _adapted_model(
    model: Sequential, settings: Settings, dataset: Dataset, X: Any, rng: np.random.Generator
) -> Sequential:
    """Return a trained model, with a new last layer if the classes are others, and with frozen layers."""
    if model.input_shape != tuple(dataset.input_shape):
        raise ArgumentError(
            f"init is {settings.init}, a model for images of shape {model.input_shape}, but those of {dataset.name} "
            f"have {tuple(dataset.input_shape)}: take a model for such images, or for a folder another image_size"
        )
    if model.dtype != settings.dtype:
        raise ArgumentError(
            f"dtype is {settings.dtype}, but the model of init has {model.dtype}: take --dtype {model.dtype}"
        )
    model.reg = settings.reg
    if model.preprocessing is not None:  # It tells eval and predict how the images of this training were resized.
        model.preprocessing = replace(model.preprocessing, resize=settings.resize, typical=measure_images(X))
    if model.class_names != tuple(dataset.class_names):
        model.replace_head(len(dataset.class_names), class_names=dataset.class_names, rng=rng)
    if settings.freeze is not None:
        model.freeze(settings.freeze)
    return model


def train_with_checkpoints(
    folder: Path | None, settings: Settings, solver: Solver, dataset: Dataset, *, resume: bool = False
) -> None:
    """Train, writing a checkpoint every `settings.checkpoint_every` iterations and when training ends.

    The metrics are written now and then. From the last checkpoint, --resume finishes a run that is killed while it
    writes its results.

    Parameters
    ----------
    folder : path, optional
        The run's folder; None on workers other than rank 0.
    settings, solver, dataset
        As `build_solver` took and returned them.
    resume : bool
        Continue from the newest undamaged checkpoint if there is one.

    Raises
    ------
    ArgumentError
        If there is a model but no checkpoint to resume from: starting over would replace the model.
    CheckpointError
        If the checkpoint belongs to a run with other settings.
    NonFiniteLossError
        As `Solver.train`; earlier checkpoints stay.
    OSError
        If a file cannot be written.
    """
    if folder is None:
        if resume:
            _load_state(solver, None)
        solver.train()
        return
    checkpoints, every = CheckpointFolder(folder / CHECKPOINTS), settings.checkpoint_every
    if resume:
        _resume(folder, solver, checkpoints, dataset.name)
    save_config(folder, settings, solver, dataset)
    live = LiveMetrics(folder / METRICS)

    def record(solver: Solver) -> None:
        live.update(solver)
        if every and solver.iteration % every == 0:
            checkpoints.save(solver)

    solver.train(record)
    if solver.resumable:
        checkpoints.save(solver)


def remove_checkpoints(folder: Path) -> None:
    """Remove the last checkpoint of a finished run that was to keep none."""
    for path in CheckpointFolder(folder / CHECKPOINTS).files():
        path.unlink()
    with suppress(OSError):  # it holds files of others, or there is none
        (folder / CHECKPOINTS).rmdir()


def _resume(folder: Path, solver: Solver, checkpoints: CheckpointFolder, data: str) -> None:
    newest = checkpoints.newest(lambda text: echo(f"xpconv: {text}", error=True))
    if newest is None and (folder / MODEL).exists():
        raise ArgumentError(
            f"resume is {folder}, which holds a model but no undamaged checkpoint to continue from: to start over, "
            "which would replace that model, train into another folder"
        )
    if newest is None:
        echo(f"no checkpoint in {checkpoints.path}: starting over")
    try:
        _load_state(solver, newest)
    except CheckpointError as error:
        error.add_note(f"the data are now those of {data}")
        raise
    if newest is not None:
        checkpoints.prune(newest)  # a run that was killed after writing `newest` may have left older ones
        print(f"resumed at iteration {solver.iteration}", flush=True)


def _load_state(solver: Solver, checkpoint: Path | None) -> None:
    """Continue from the checkpoint of rank 0, which sends its state to the other workers."""
    if solver.communicator.size == 1:
        if checkpoint is not None:
            solver.resume(checkpoint)
        return
    state = solver.communicator.broadcast(None if checkpoint is None else read_checkpoint(checkpoint))
    if state is not None:
        solver.load_state_dict(state)

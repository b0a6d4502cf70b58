"""``xpconv train``."""

import os
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from xpconv.cli._evaluate import accuracy, model_path
from xpconv.cli._metrics import histories_by_epoch
from xpconv.cli._options import (
    BackendOption,
    augment_option,
    choice_option,
    class_weights_option,
    data_option,
    layers_option,
    max_memory_option,
    number_option,
    setting_option,
)
from xpconv.cli._report import saved_epoch
from xpconv.cli._results import first_filters, require_matplotlib, save_results
from xpconv.cli._run import build_solver, load_data, load_initial_model, remove_checkpoints, train_with_checkpoints
from xpconv.cli._run_folder import is_finished, read_settings, remove_leftovers, run_folder, run_of
from xpconv.cli._settings import Settings, settings_for
from xpconv.cli._tables import echo, print_net
from xpconv.cli._workers import join_workers
from xpconv.data import DATASETS, Dataset
from xpconv.errors import printable
from xpconv.nn import Sequential
from xpconv.parallel import Communicator
from xpconv.training._progress import outlive_output
from xpconv.training.solver import Solver

__all__ = ["train", "warnings_in_one_line"]


def train(
    ctx: typer.Context,
    data: Annotated[
        str, data_option("Images to train on; DIR is a folder of images with one subfolder per class.")
    ] = "digits",
    model: Annotated[str | None, choice_option("model", "Architecture of the net.")] = None,
    layers: Annotated[
        str | None, layers_option("If --model is convnet: the filters of its convolutions, and pool for poolings.")
    ] = None,
    norm: Annotated[
        str | None,
        choice_option("norm", "Norm after each convolution (in fc, hidden layer).", "batch; none in three-layer"),
    ] = None,
    width: Annotated[
        int | None,
        setting_option("width", "If --model is a resnet: filters of its first convolution.", "16; 64 in resnet9"),
    ] = None,
    dropout: Annotated[
        float | None, setting_option("dropout", "Probability that a value before the last layer is dropped.", "0")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Start from this model.safetensors, or its folder; for other classes its last layer is replaced.",
            show_default=False,
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="With --init: do not train these layers, as in conv*|batchnorm*; the table of layers has their names.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        setting_option(
            "epochs", "Passes over the training images; more for a folder of few images, for 300 iterations."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        setting_option("batch_size", "Images per minibatch; at most a tenth of a folder's images by default."),
    ] = None,
    microbatches: Annotated[
        int | None,
        setting_option(
            "microbatches",
            "Cut each minibatch into this number of micro-batches and add their gradients, to save memory or to share "
            "the work among workers of mpiexec: a power of two that divides --batch-size.",
            "1, or one for each worker",
        ),
    ] = None,
    norm_sync: Annotated[
        str | None,
        choice_option(
            "norm_sync",
            "With --microbatches: batch norm over the whole minibatch, or over each micro-batch (ghost).",
            Settings.norm_sync,
        ),
    ] = None,
    learning_rate: Annotated[float | None, setting_option("learning_rate", "Step size of the optimizer.")] = None,
    lr_decay: Annotated[
        float | None,
        setting_option("lr_decay", "If --schedule is step: factor of the learning rate every --decay-every epochs."),
    ] = None,
    decay_every: Annotated[
        int | None,
        setting_option(
            "decay_every",
            "If --schedule is step: epochs between changes of the learning rate.",
            str(Settings.decay_every),
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        choice_option(
            "schedule",
            "How the learning rate changes: it falls in steps, or along half a cosine to 0; it rises for 30% of the "
            "iterations, then falls (one-cycle); or it stays constant.",
        ),
    ] = None,
    warmup: Annotated[
        float,
        setting_option("warmup", "Epochs over which the learning rate rises from near 0; 0.5 is half an epoch."),
    ] = Settings.warmup,
    optimizer: Annotated[str | None, choice_option("optimizer", "Update rule of the parameters.")] = None,
    momentum: Annotated[
        float | None,
        setting_option("momentum", "Momentum of sgd_momentum, sgd_nesterov or muon.", "that of the optimizer"),
    ] = None,
    reg: Annotated[
        float | None, setting_option("reg", "Strength of the L2 penalty on weights; 0 by default with weight decay.")
    ] = None,
    weight_decay: Annotated[
        float | None,
        setting_option(
            "weight_decay",
            "Weight decay of the optimizer: decoupled in adamw, lion and muon. Norms and biases are not decayed.",
            "0.01 for adamw, else 0",
        ),
    ] = None,
    clip_norm: Annotated[
        float | None, setting_option("clip_norm", "Largest L2 norm of all gradients together.", "no limit")
    ] = None,
    ema: Annotated[
        float | None,
        setting_option("ema", "Evaluate and save a moving average of the weights with this decay.", "no average"),
    ] = None,
    lookahead: Annotated[
        int | None,
        setting_option(
            "lookahead",
            "Iterations between two moves of slow weights, which are evaluated and saved.",
            "no slow weights",
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None, setting_option("label_smoothing", "Part of each label that the loss spreads over all classes.")
    ] = None,
    class_weights: Annotated[
        str | None,
        class_weights_option(
            "Weight of each class in the loss: balanced, so that rare classes count as much as others, or numbers "
            "in the order of the classes, as in 1,2.5,1."
        ),
    ] = None,
    augment: Annotated[
        str | None,
        augment_option(
            "Change each minibatch at random: shift images (crop, with mirrored borders reflect), turn and stretch "
            "them (affine), mirror them (flip, in turn alternate), cover a square (cutout), change brightness or "
            "contrast, or average images and labels (mixup); join several with -, as in crop-flip. A number after a "
            "word is its strength: crop4 and cutout8 in pixels, affine0.1, contrast0.5, mixup0.4."
        ),
    ] = None,
    dtype: Annotated[str, choice_option("dtype", "Floating-point type to compute with.")] = Settings.dtype,
    precision: Annotated[
        str,
        choice_option(
            "precision", "With mixed, which needs a GPU, training keeps the activations in float16, and is faster."
        ),
    ] = Settings.precision,
    backend: BackendOption = Settings.backend,
    seed: Annotated[
        int, setting_option("seed", "Determines initial weights, minibatches and dropout.")
    ] = Settings.seed,
    num_train: Annotated[
        int | None, setting_option("num_train", "Number of images to train on, the first ones.", "all")
    ] = None,
    sampling: Annotated[
        str | None, choice_option("sampling", "Draw each minibatch from all images, or use each image once per epoch.")
    ] = None,
    patience: Annotated[
        int | None,
        setting_option(
            "patience", "Stop after this many epochs without a better check, as --patience-on says.", "never"
        ),
    ] = None,
    patience_on: Annotated[
        str | None,
        choice_option(
            "patience_on",
            "What makes a check better, and its model the one to save: a higher validation accuracy or a "
            "lower validation loss.",
        ),
    ] = None,
    image_size: Annotated[
        int | None, setting_option("image_size", "Height and width to which images of a folder are resized.", "32")
    ] = None,
    resize: Annotated[
        str | None,
        choice_option(
            "resize",
            "Fit images of another aspect ratio by cropping their sides, or by squashing them; or find the strokes of "
            "a drawn character and let them fill the image. The model records it for images to predict.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at a file of a folder that is not a readable image.")
    ] = Settings.strict,
    max_memory: Annotated[int | None, max_memory_option()] = None,
    print_every: Annotated[int, number_option("Iterations between two printed losses.", 1)] = 100,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the results.", show_default="runs/<date>_<time>")
    ] = None,
    on_nonfinite: Annotated[
        str, choice_option("on_nonfinite", "If a loss or gradient is not finite: stop, or skip that minibatch.")
    ] = Settings.on_nonfinite,
    checkpoint_every: Annotated[
        int | None,
        setting_option(
            "checkpoint_every", "Iterations between two checkpoints, which --resume continues from.", "only at Ctrl-C"
        ),
    ] = None,
    preflight: Annotated[
        bool, typer.Option("--preflight", help="First check model, data and settings for likely problems.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Continue the run in this folder with its settings.", show_default=False),
    ] = None,
) -> None:
    """Train a net on real images and save it.

    Writes the model, its metrics, its settings and pictures to a folder. Ctrl-C ends the training early and still
    saves them, with a checkpoint. --resume continues from the newest checkpoint, or starts over if there is none.
    """
    require_matplotlib()
    given = _options_given(ctx)
    if resume is not None:
        _refuse_settings_beside_resume(given)
    options: dict[str, Any] = {
        "model": model,
        "layers": layers,
        "norm": norm,
        "width": width,
        "dropout": dropout,
        "init": None if init is None else os.path.abspath(model_path(init)),
        "freeze": freeze,
        "epochs": epochs,
        "batch_size": batch_size,
        "microbatches": microbatches,
        "norm_sync": norm_sync,
        "learning_rate": learning_rate,
        "lr_decay": lr_decay,
        "optimizer": optimizer,
        "reg": reg,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
        "ema": ema,
        "lookahead": lookahead,
        "label_smoothing": label_smoothing,
        "class_weights": class_weights,
        "dtype": dtype,
        "precision": precision,
        "backend": backend,
        "seed": seed,
        "num_train": num_train,
        "augment": augment,
        "image_size": image_size,
        "resize": resize,
        "strict": strict or None,
        "schedule": schedule,
        "decay_every": decay_every,
        "warmup": warmup,
        "sampling": sampling,
        "patience": patience,
        "patience_on": patience_on,
        "on_nonfinite": on_nonfinite,
        "checkpoint_every": checkpoint_every,
    }
    with join_workers() as communicator, warnings_in_one_line(shown=communicator.rank == 0):
        if resume is None:
            settings, dataset, initial = _new_run(data, options, max_memory, communicator)
        else:
            resume = run_of(resume)
            settings = communicator.broadcast(
                _settings_to_resume(resume, checkpoint_every, data if "data" in given else None)
                if communicator.rank == 0
                else None
            )
            if settings is None:
                return
            initial = load_initial_model(settings, communicator)
            dataset = load_data(settings, max_memory, initial)
        with outlive_output():
            solver = build_solver(
                settings,
                dataset,
                print_every=print_every,
                preflight=preflight,
                communicator=communicator,
                initial=initial,
            )
            _train_and_report(resume or out, settings, solver, dataset, resume=resume is not None)
    if solver.interrupted:
        raise KeyboardInterrupt


def _new_run(
    data: str, options: dict[str, Any], max_memory: int | None, communicator: Communicator
) -> tuple[Settings, Dataset, Sequential | None]:
    """Return the settings of a new run, its data, and the model that it starts from, if it is a trained one."""
    if options["microbatches"] is None and communicator.size > 1:
        options = {**options, "microbatches": communicator.size}
        echo(
            f"{communicator.size} workers, one micro-batch each: to resume this run on more workers, start it with "
            f"more micro-batches, as in --microbatches {2 * communicator.size}"
        )
    settings = settings_for(data, **options)
    initial = load_initial_model(settings, communicator)
    dataset = load_data(settings, max_memory, initial)
    count, given = len(dataset.y_train), options["num_train"]
    return settings_for(data, count if given is None else min(given, count), **options), dataset, initial


def _settings_to_resume(resume: Path, checkpoint_every: int | None, data: str | None) -> Settings | None:
    """Return the settings of a run that is to be resumed; None if it is finished."""
    settings = read_settings(resume, checkpoint_every)
    if data is not None:
        settings = _with_moved_images(settings, data)
    if not is_finished(resume):
        return settings
    remove_leftovers(resume)
    echo(f"{resume} is finished: nothing is left to train")
    return None


def _train_and_report(out: Path | None, settings: Settings, solver: Solver, dataset: Dataset, *, resume: bool) -> None:
    """Train; on rank 0, save the results and print the test accuracy."""
    print_net(solver.model)
    if solver.communicator.rank > 0:
        train_with_checkpoints(None, settings, solver, dataset, resume=resume)
        return
    folder = _train_and_save(out, settings, solver, dataset, resume=resume)
    typer.echo(f"test accuracy: {accuracy(solver.model, dataset.X_test, dataset.y_test):.4f}")
    if solver.skipped:
        plural = "s" * (solver.skipped != 1)
        typer.echo(f"skipped {solver.skipped} iteration{plural} whose loss or gradients were not finite")
    if dataset.skipped:
        count = len(dataset.skipped)
        echo("\n".join([f"left out {count} file{'s' * (count != 1)} that cannot be read:", *dataset.skipped]))
    if solver.interrupted and solver.resumable:
        echo(f"to resume: xpconv train --resume {shlex.quote(str(folder))}")


@contextmanager
def warnings_in_one_line(*, shown: bool = True) -> Iterator[None]:
    """Show each warning as one line on standard error, except those of overflows, which the Solver reports itself."""

    def show(message: object, *place: object, **more: object) -> None:
        if shown:
            typer.echo(f"xpconv: warning: {printable(message)}", err=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning, module=r"xpconv\b")
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.showwarning = show
        yield


def _options_given(ctx: typer.Context) -> list[str]:
    """Return the names of the options on the command line; the others have defaults or come from the environment."""
    return [name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]


def _refuse_settings_beside_resume(given: list[str]) -> None:
    allowed = ("resume", "print_every", "checkpoint_every", "data", "max_memory")
    if others := [f"--{name.replace('_', '-')}" for name in given if name not in allowed]:
        raise typer.BadParameter(f"--resume takes the settings of its run: leave out {', '.join(others)}.")


def _with_moved_images(settings: Settings, data: str) -> Settings:
    """Return the settings of a run whose folder of images has moved to `data`."""
    if {settings.data, data} & {*DATASETS}:
        raise typer.BadParameter(
            "--data with --resume says where the run's folder of images is now, but the run is on "
            f"{settings.data}: leave out --data."
        )
    return replace(settings, data=data)


def _train_and_save(out: Path | None, settings: Settings, solver: Solver, dataset: Dataset, *, resume: bool) -> Path:
    with run_folder(out, resume=resume) as folder:
        untrained_filters = first_filters(solver.model)
        train_with_checkpoints(folder, settings, solver, dataset, resume=resume)
        echo(f"saved model: {saved_epoch(histories_by_epoch(solver), settings.patience_on)}")
        for path in save_results(folder, settings, solver, dataset, untrained_filters):
            echo(f"wrote {path}")
        if settings.checkpoint_every is None and not solver.interrupted:
            remove_checkpoints(folder)
    return folder

"""The command line: ``xpconv train | eval | predict | info``."""

import os
import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from typer.core import TyperGroup

import xpconv
from xpconv import runs
from xpconv.backend import get_backend, to_host
from xpconv.data import DATASETS, load_dataset
from xpconv.data.augment import AUGMENTATIONS
from xpconv.data.images import read_image
from xpconv.errors import ArgumentError, XpconvError
from xpconv.optim import UPDATE_RULES

__all__ = ["app", "main"]

INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended


class _Commands(TyperGroup):
    """The commands, with errors that a user can cause told in one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output has gone, as in `xpconv info | head -1`
        except (XpconvError, OSError) as error:
            _complain(error)
            raise typer.Exit(1) from error
        except MemoryError as error:
            _complain(f"out of memory ({error}): take a smaller --batch-size")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(INTERRUPTED) from error


def _complain(problem: object) -> None:
    typer.echo(f"xpconv: error: {problem}", err=True)


app = typer.Typer(cls=_Commands, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
                  add_completion=False)


def main() -> None:
    """Run the command line."""
    app(prog_name="xpconv")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xpconv {xpconv.__version__}")
        raise typer.Exit


@app.callback()
def _common(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", callback=_version,
                                                  is_eager=True)] = False) -> None:
    """Train ConvNets with hand-written forward and backward passes on NumPy, CuPy or any array-API library."""


def _one_of(choices: Collection[str], text: str, default: str | bool = True) -> Any:
    """Return an option that takes one of these words."""
    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}.")
        return value

    return typer.Option(metavar="|".join(choices), callback=check, help=text, show_default=default)


def _defaults(name: str) -> str:
    """Return how the help tells a setting's defaults."""
    values = {data: settings[name] for data, settings in runs.DEFAULTS.items()}
    if len(set(values.values())) == 1:
        return str(values["digits"])
    return ", ".join(f"{value} for {data}" for data, value in values.items())


def _tuned(name: str, text: str, **limits: Any) -> Any:
    """Return an option whose default depends on the data set."""
    return typer.Option(help=text, show_default=_defaults(name), **limits)


def _selected(spec: str) -> str:
    """Return the backend's full name if it can run here."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            backend = get_backend(spec)
        except ArgumentError as error:
            raise typer.BadParameter(str(error)) from error
    for note in notes:
        typer.echo(f"xpconv: {note.message}", err=True)
    return str(backend)


BackendOption = Annotated[str, typer.Option(
    envvar="XP_BACKEND", callback=_selected, metavar="LIBRARY[:DEVICE]",
    help="The array library that computes: numpy, cupy, cupy:1, torch, torch:cuda, array_api_strict, or auto.")]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A model.safetensors that train left.")]


@app.command(epilog="Example: xpconv train --data cifar10 --model convnet --epochs 10 --out runs/cifar10")
def train(
    data: Annotated[str, _one_of(DATASETS, "Images to train on.")] = "digits",
    model: Annotated[str, _one_of(runs.MODELS, "The net.")] = "three-layer",
    epochs: Annotated[int | None, _tuned("epochs", "Passes over the training images.", min=1)] = None,
    batch_size: Annotated[int | None, _tuned("batch_size", "Images in a minibatch.", min=1)] = None,
    learning_rate: Annotated[float | None, _tuned("learning_rate", "Step size of the optimizer.", min=0)] = None,
    lr_decay: Annotated[float | None, _tuned("lr_decay", "Its factor after each epoch.", min=0)] = None,
    optimizer: Annotated[str, _one_of(UPDATE_RULES, "How parameters are updated.")] = "adam",
    reg: Annotated[float | None, _tuned("reg", "Weight of the L2 penalty on weights.", min=0)] = None,
    augment: Annotated[str | None, _one_of(AUGMENTATIONS, "Images to add: each one moved by a pixel, or mirrored.",
                                           default=_defaults("augment"))] = None,
    dtype: Annotated[str, _one_of(("float32", "float64"), "Floating-point numbers to compute with.")] = "float32",
    backend: BackendOption = "numpy",
    seed: Annotated[int, typer.Option(min=0, help="Determines weights, minibatches and dropout.")] = 0,
    num_train: Annotated[int | None, typer.Option(min=1, help="Train on the first so many images.")] = None,
    print_every: Annotated[int, typer.Option(min=1, help="Iterations between two losses shown.")] = 100,
    out: Annotated[Path | None, typer.Option(help="Folder for the files.", show_default="runs/<date>_<time>")] = None,
) -> None:
    """Train a net on real images and save it.

    Leaves the model, its metrics, curves and filters and its settings in a folder. Ctrl-C ends the training early and
    still saves.
    """
    runs.require_matplotlib()
    dataset = load_dataset(data)
    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "lr_decay": lr_decay,
             "reg": reg, "augment": augment}
    tuned = runs.DEFAULTS[data] | {name: value for name, value in given.items() if value is not None}
    settings = runs.Settings(data=data, model=model, optimizer=optimizer, dtype=dtype, backend=backend, seed=seed,
                             num_train=num_train, **tuned)
    solver = runs.build_solver(settings, dataset, print_every=print_every)
    with runs.run_folder(out) as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of overflows, which the Solver reports in one line
            solver.train()
        for path in runs.save_run(folder, settings, solver, dataset):
            typer.echo(f"wrote {path}")
    typer.echo(f"test accuracy: {runs.accuracy(solver.model, dataset.X_test, dataset.y_test):.4f}")
    if solver.interrupted:
        raise typer.Exit(INTERRUPTED)


@app.command(name="eval", epilog="Example: xpconv eval runs/first/model.safetensors")
def evaluate(
    model: ModelArgument,
    data: Annotated[str | None, _one_of(DATASETS, "Its data set, by default the one in config.json beside it.")] = None,
    backend: BackendOption = "numpy",
) -> None:
    """Print the accuracy of a model on test images.

    They are the test images of its data set, which no training sees.
    """
    net = xpconv.load_model(model, backend)
    dataset = load_dataset(data or runs.data_of_run(model))
    runs.check_fit(net, dataset)
    typer.echo(f"test accuracy: {runs.accuracy(net, dataset.X_test, dataset.y_test):.4f}")


@app.command(epilog="Example: xpconv predict runs/first/model.safetensors seven.png eight.jpg")
def predict(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files of any size.")],
    invert: Annotated[bool, typer.Option("--invert", help="Exchange dark and light first: the digits are light "
                                                          "strokes on a dark ground.")] = False,
    backend: BackendOption = "numpy",
) -> None:
    """Tell the classes of image files.

    Prints one line an image: its path, its class and the class's probability, with tabs between.
    """
    net = xpconv.load_model(model, backend)
    failed = False
    for path in images:
        try:
            image = read_image(path, net.input_shape)
        except XpconvError as error:
            _complain(error)
            failed = True
            continue
        scores = to_host(net.loss((255 - image if invert else image)[None]))[0].astype(np.float64)
        odds = np.exp(scores - scores.max())
        best = int(np.argmax(odds))
        name = net.class_names[best] if net.class_names else str(best)
        typer.echo(os.fsencode(path) + f"\t{name}\t{odds[best] / odds.sum():.4f}".encode())
    if failed:
        raise typer.Exit(1)


@app.command(epilog="Example: xpconv info | grep cupy")
def info() -> None:
    """Show versions, backends and settings.

    A backend that cannot run here is shown with what it lacks.
    """
    from xpconv.report import environment

    rows = environment()
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for name, value in rows:
        table.add_row(Text(name, "bold"), Text(value))
    Console().print(table)

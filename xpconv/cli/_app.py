"""The command line: ``xpconv train | eval | predict | compare | bench | export | check | info``."""

import os
import shlex
import signal
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from typer.core import TyperGroup

from xpconv._version import __version__
from xpconv.backend import LIBRARIES, get_backend
from xpconv.cli import _run, _run_folder
from xpconv.cli._compare import differences, read_run, summary
from xpconv.cli._info import environment
from xpconv.cli._tables import print_table
from xpconv.data import DATASETS, load_dataset
from xpconv.data.augment import AUGMENTATIONS, parse_augmentation
from xpconv.data.images import read_image
from xpconv.data.sampling import SAMPLERS
from xpconv.errors import ArgumentError, XpconvError
from xpconv.io import load_model
from xpconv.training._progress import ignore_broken_pipe
from xpconv.training._signals import terminate_as_interrupt
from xpconv.training.metrics import probabilities
from xpconv.training.optim import UPDATE_RULES
from xpconv.viz import save_comparison

__all__ = ["app"]


class _Commands(TyperGroup):
    """The commands, with errors that a user can cause told in one line."""

    def invoke(self, ctx: Any) -> Any:
        with terminate_as_interrupt() as terminated:
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise  # the reader of our output has gone, as in `xpconv info | head -1`
            except (XpconvError, OSError) as error:
                _complain(error)
                raise typer.Exit(1) from error
            except MemoryError as error:
                _complain(f"out of memory ({error}): take a smaller --batch-size, or smaller or fewer images")
                raise typer.Exit(1) from error
            except KeyboardInterrupt as error:
                raise typer.Exit(128 + (terminated or [signal.SIGINT])[0]) from error  # as shells tell of signals


def _complain(problem: object) -> None:
    if isinstance(problem, OSError) and problem.filename:
        problem = f"{problem.filename}: {problem.strerror}"
    typer.echo(f"xpconv: error: {problem}", err=True)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Example: xpconv train --out first && xpconv eval first/model.safetensors",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xpconv {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train ConvNets with hand-written forward and backward passes on NumPy, CuPy or any array-API library."""


def _one_of(choices: Collection[str], text: str, default: str | bool = True) -> Any:
    """Return an option that takes one of these words."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}.")
        return value

    return typer.Option(
        metavar="|".join(choices), callback=check, autocompletion=_completion(choices), help=text, show_default=default
    )


def _completion(words: Collection[str]) -> Callable[[str], list[str]]:
    """Return what offers words to the shell at a press of the tab key; where none fits, it offers files."""

    def fitting(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return fitting


def _data(value: str | None) -> str | None:
    """Return the name of a data set, or the full path of a folder."""
    if value is None or value in DATASETS:
        return value
    if not os.path.isdir(value):
        raise typer.BadParameter(f"{value!r} is none of {', '.join(DATASETS)}, and there is no such folder.")
    return os.path.abspath(value)


def _images(text: str) -> Any:
    """Return an option that takes a data set or a folder of images."""
    return typer.Option(
        metavar="|".join([*DATASETS, "DIR"]), callback=_data, autocompletion=_completion(DATASETS), help=text
    )


def _augment(value: str | None) -> str | None:
    """Return the words if each means something."""
    try:
        parse_augmentation(value or "none")
    except ArgumentError as error:
        raise typer.BadParameter(str(error)) from error
    return value


def _defaults(name: str) -> str:
    """Return how the help tells a setting's defaults."""
    values = {data: settings[name] for data, settings in _run.DEFAULTS.items()}
    if len(set(values.values())) == 1:
        return str(values["digits"])
    return ", ".join(f"{value} for {data}" for data, value in values.items())


def _number(text: str, least: int, default: str | bool = True) -> Any:
    return typer.Option(metavar="NUMBER", min=least, help=text, show_default=default)


def _tuned(name: str, text: str, least: int) -> Any:
    """Return an option that takes a number whose default depends on the data set."""
    return _number(text, least, _defaults(name))


def _selected(ctx: typer.Context, spec: str) -> str:
    """Return the backend's full name if it can run here."""
    if ctx.resilient_parsing:  # the shell completes a word
        return spec
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


BackendOption = Annotated[
    str,
    typer.Option(
        envvar="XP_BACKEND",
        callback=_selected,
        metavar="LIBRARY[:DEVICE]",
        autocompletion=_completion([*LIBRARIES, "auto"]),
        help="The array library that computes: numpy, cupy, cupy:1, torch, torch:cuda, array_api_strict, or auto.",
    ),
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A model.safetensors that train left.")]


def _settings_to_resume(ctx: typer.Context) -> _run.Settings:
    """Return those of the run to go on with; complain of options that it has decided."""
    given = {
        name: value
        for name, value in ctx.params.items()
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    free = ("resume", "print_every", "checkpoint_every", "data")
    if others := [f"--{name.replace('_', '-')}" for name in given if name not in free]:
        raise typer.BadParameter(f"--resume takes the settings of its run: leave out {', '.join(others)}.")
    settings = _run_folder.settings_of(given["resume"], given.get("checkpoint_every"))
    if "data" not in given:
        return settings
    if {settings.data, given["data"]} & {*DATASETS}:
        raise typer.BadParameter(
            "--data beside --resume tells where the run's folder of images is now; it has "
            f"{settings.data}: leave out --data."
        )
    return replace(settings, data=given["data"])


@app.command(epilog="Example: xpconv train --data cifar10 --model convnet --epochs 10 --out runs/cifar10")
def train(
    ctx: typer.Context,
    data: Annotated[str, _images("Images to train on; DIR is a folder of images, one subfolder a class.")] = "digits",
    model: Annotated[str, _one_of(_run.MODELS, "The net.")] = "three-layer",
    epochs: Annotated[int | None, _tuned("epochs", "Passes over the training images.", 1)] = None,
    batch_size: Annotated[int | None, _tuned("batch_size", "Images in a minibatch.", 1)] = None,
    learning_rate: Annotated[float | None, _tuned("learning_rate", "Step size of the optimizer.", 0)] = None,
    lr_decay: Annotated[
        float | None, _tuned("lr_decay", "Its factor each --decay-every epochs, if --schedule is step.", 0)
    ] = None,
    decay_every: Annotated[int, _number("See --lr-decay.", 1)] = 1,
    schedule: Annotated[
        str, _one_of(_run.SCHEDULES, "How it changes: in steps, along half a cosine to 0, or not.")
    ] = "step",
    warmup: Annotated[int, _number("Epochs in which it rises from near 0.", 0)] = 0,
    optimizer: Annotated[str, _one_of(UPDATE_RULES, "How parameters are updated.")] = "adam",
    reg: Annotated[float | None, _tuned("reg", "Weight of the L2 penalty on weights.", 0)] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(AUGMENTATIONS),
            callback=_augment,
            autocompletion=_completion(AUGMENTATIONS),
            show_default=_defaults("augment"),
            help="Images to add, each moved by a pixel (shift) or mirrored, or random changes of each minibatch (crop, "
            "flip); join several by -, as in crop-flip.",
        ),
    ] = None,
    dtype: Annotated[str, _one_of(("float32", "float64"), "Floating-point numbers to compute with.")] = "float32",
    backend: BackendOption = "numpy",
    seed: Annotated[int, _number("Determines weights, minibatches and dropout.", 0)] = 0,
    num_train: Annotated[int | None, _number("Train on the first so many images.", 1)] = None,
    sampling: Annotated[
        str, _one_of(SAMPLERS, "Draw each minibatch from all images, or each image once an epoch.")
    ] = "replacement",
    patience: Annotated[
        int | None, _number("Stop after so many epochs without a better validation accuracy.", 1, "never")
    ] = None,
    image_size: Annotated[
        int | None, _number("Height and width to which the images of a folder are brought.", 1, "32")
    ] = None,
    print_every: Annotated[int, _number("Iterations between two losses shown.", 1)] = 100,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the files.", show_default="runs/<date>_<time>")
    ] = None,
    on_nonfinite: Annotated[
        str, _one_of(("stop", "skip"), "At a loss or gradient that is not finite: stop, or pass over that minibatch.")
    ] = "stop",
    checkpoint_every: Annotated[
        int | None, _number("Iterations between two checkpoints, from which --resume goes on.", 1, "one at Ctrl-C")
    ] = None,
    preflight: Annotated[bool, typer.Option("--preflight", help="First look for what would spoil it.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Go on with the run in this folder, with its own settings.", show_default=False
        ),
    ] = None,
) -> None:
    """Train a net on real images and save it.

    Leaves the model, its metrics, its settings and pictures in a folder. Ctrl-C ends the training early and still
    saves, with a checkpoint. --resume goes on from the newest one, or starts over where there is none.
    """
    _run.require_matplotlib()
    defaults = _run.defaults_for(data)  # each is an option of that name
    tuned = {name: value if (given := ctx.params[name]) is None else given for name, value in defaults.items()}
    settings = _run.Settings(
        data=data,
        model=model,
        optimizer=optimizer,
        dtype=dtype,
        backend=backend,
        seed=seed,
        num_train=num_train,
        image_size=image_size,
        schedule=schedule,
        decay_every=decay_every,
        warmup=warmup,
        sampling=sampling,
        patience=patience,
        on_nonfinite=on_nonfinite,
        checkpoint_every=checkpoint_every,
        **tuned,
    )
    if resume is not None:
        settings = _settings_to_resume(ctx)
        if _run_folder.settle(resume):
            typer.echo(f"{resume} is finished: nothing is left to train")
            raise typer.Exit
    dataset = _run.load_data(settings)
    solver = _run.build_solver(settings, dataset, print_every=print_every, preflight=preflight)
    with warnings.catch_warnings(), ignore_broken_pipe():
        warnings.simplefilter("ignore", RuntimeWarning)  # of overflows, which the Solver reports in one line
        with _run_folder.run_folder(resume or out, resume=resume is not None) as folder:
            _run_folder.train_in(folder, settings, solver, dataset, resume=resume is not None)
            for path in _run.save_run(folder, settings, solver, dataset):
                typer.echo(f"wrote {path}")
        typer.echo(f"test accuracy: {_run.accuracy(solver.model, dataset.X_test, dataset.y_test):.4f}")
        if solver.skipped:
            typer.echo(f"skipped {solver.skipped} iterations whose loss or gradients were not finite")
        if solver.interrupted:
            if solver.resumable:
                typer.echo(f"to go on: xpconv train --resume {shlex.quote(str(folder))}")
            raise KeyboardInterrupt


@app.command(name="eval", epilog="Example: xpconv eval runs/first/model.safetensors")
def evaluate(
    model: ModelArgument,
    data: Annotated[str | None, _images("Its data set, by default the one in config.json beside it.")] = None,
    backend: BackendOption = "numpy",
) -> None:
    """Print the accuracy of a model on test images.

    They are the test images of its data set, which no training sees.
    """
    net = load_model(model, backend)
    dataset = load_dataset(data or _run.data_of_run(model), net.input_shape)
    _run.check_fit(net, dataset)
    typer.echo(f"test accuracy: {_run.accuracy(net, dataset.X_test, dataset.y_test):.4f}")


@app.command(epilog="Example: xpconv predict runs/first/model.safetensors seven.png eight.jpg")
def predict(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files of any size.")],
    invert: Annotated[
        bool,
        typer.Option("--invert", help="Exchange dark and light first: the digits are light strokes on a dark ground."),
    ] = False,
    backend: BackendOption = "numpy",
) -> None:
    """Tell the classes of image files.

    Prints one line an image: its path, its class and the class's probability, with tabs between.
    """
    net = load_model(model, backend)
    failed = False
    for path in images:
        try:
            image = read_image(path, net.input_shape)
        except XpconvError as error:
            _complain(error)
            failed = True
            continue
        odds = probabilities(net, (255 - image if invert else image)[None])[0]
        best = int(np.argmax(odds))
        name = net.class_names[best] if net.class_names else str(best)
        typer.echo(os.fsencode(path) + f"\t{name}\t{odds[best]:.4f}".encode())
    if failed:
        raise typer.Exit(1)


def _ending(suffix: str) -> Callable[[Path], Path]:
    """Return the check of the name of a file to write."""

    def check(path: Path) -> Path:
        if path.suffix != suffix:
            raise typer.BadParameter(f"{str(path)!r}: expected a name that ends in {suffix}.")
        return path

    return check


@app.command(epilog="Example: xpconv export runs/first/model.safetensors digits.onnx")
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", callback=_ending(".onnx"), help="The file to write.")],
) -> None:
    """Write a model as an ONNX file, which other programs run.

    It takes images as training did, float32 (N, C, H, W) for any N, and gives scores, float32 (N, classes);
    preprocessing is inside, and the metadata names the classes.
    """
    from xpconv.io.onnx import require_onnx, to_onnx

    require_onnx()
    to_onnx(load_model(model, "numpy"), out)
    typer.echo(f"wrote {out}")


@app.command(epilog="Example: xpconv compare runs/sgd runs/adam --out comparison.png")
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that train left.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="OUT.png", callback=_ending(".png"), help=("The picture to write; an older one is replaced.")
        ),
    ] = Path("comparison.png"),
) -> None:
    """Draw the curves of several runs over each other.

    The legend names the settings in which they differ. Prints one line a run: iterations, the loss over the last
    tenth of them, and the best validation accuracy with its epoch.
    """
    _run.require_matplotlib()
    read = [read_run(folder) for folder in folders]
    save_comparison(dict(zip(differences(read), (run.history for run in read), strict=True)), out)
    header, *rows = summary(read)
    print_table(rows, header)
    typer.echo(f"wrote {out}")


@app.command(epilog="Example: xpconv check my_layer.py --input x=4,6 --input w=6,3 --input b=3")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="A Python file; it is run.")],
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="The only layer to check.", show_default="all")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=SHAPE",
            help=("An array for forward, such as x=4,3,8,8, filled at random; give one for each."),
        ),
    ] = None,
) -> None:
    """Check a layer of your own: a forward and a backward function.

    The file has NAME_forward(x, ...), which returns (out, cache), and NAME_backward(dout, cache), which returns a
    gradient for each array. Other arguments than arrays, such as a stride, come from a function NAME_inputs() in the
    file that returns a dict of arguments. Checked are gradients, shapes, dtypes, that inputs and caches are left
    alone, and other array libraries. Exits with 1 if something is wrong.
    """
    from xpconv.cli._check import check_file, parse_shapes

    reports = check_file(file, layer, parse_shapes(shapes or []))
    typer.echo("\n\n".join(map(str, reports)))
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command(epilog="Example: xpconv bench runs/first/model.safetensors --backend cupy --batch-size 512")
def bench(
    net: Annotated[
        Path, typer.Argument(metavar="MODEL|CONFIG", help=("A model.safetensors or a config.json that train left."))
    ],
    batch_size: Annotated[int, _number("Images in a minibatch.", 1)] = 100,
    backend: BackendOption = "cupy",
) -> None:
    """Compare training steps of a net of yours on NumPy and on another backend.

    Prints the time and the memory of a step on both, on the same random images, and says whether it pays to move.
    """
    from xpconv.cli._bench import load_net, measure_step, table, verdict

    if backend == "numpy":
        raise typer.BadParameter("numpy is what the other backend is compared with: name another, such as cupy.")
    steps = measure_step([load_net(net, place) for place in ("numpy", backend)], batch_size)
    header, *rows = table(steps)
    print_table(rows, header)
    typer.echo(verdict(*steps))


@app.command(epilog="Example: xpconv info | grep cupy")
def info() -> None:
    """Show versions, backends and settings.

    A backend that cannot run here is shown with what it lacks.
    """
    print_table(environment())

"""The application: its commands, and how their errors are shown."""

import re
import signal
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from typer.core import TyperGroup

from xpconv._version import __version__
from xpconv.cli._compare import differences, read_run, summary
from xpconv.cli._evaluate import (
    accuracy,
    check_fits,
    data_of_run,
    image_to_predict,
    model_path,
    probabilities,
    read_model,
    resize_of,
    warn_of_training_images,
)
from xpconv.cli._info import environment
from xpconv.cli._options import (
    BackendOption,
    ModelArgument,
    TtaOption,
    data_option,
    file_suffix,
    max_memory_option,
    number_option,
)
from xpconv.cli._results import require_matplotlib
from xpconv.cli._run import memory_for_images
from xpconv.cli._tables import echo, print_table
from xpconv.cli._train import train, warnings_in_one_line
from xpconv.cli._workers import backend_of_worker, join_workers
from xpconv.data import load_dataset
from xpconv.errors import XpconvError, printable
from xpconv.training._progress import writable
from xpconv.training._signals import terminate_as_interrupt
from xpconv.training.metrics import classification_report
from xpconv.viz import save_comparison

__all__ = ["app"]


class _Commands(TyperGroup):
    """The commands; errors that a user can cause are shown in one line."""

    def main(self, *args: Any, **options: Any) -> Any:
        out, err = map(writable, (sys.stdout, sys.stderr))
        with redirect_stdout(out), redirect_stderr(err):
            try:
                return super().main(*args, **options)
            except OSError as error:  # help or the version cannot be written
                _show_error(error)
                raise SystemExit(1) from error

    def invoke(self, ctx: Any) -> Any:
        with terminate_as_interrupt() as terminated:
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise  # the reader of our output has gone, as in `xpconv info | head -1`
            except XpconvError as error:
                _show_error(error, self.commands[ctx.invoked_subcommand])
                raise typer.Exit(1) from error
            except OSError as error:
                _show_error(error)
                raise typer.Exit(1) from error
            except MemoryError as error:
                details = f" ({error})" if str(error) else ""
                _show_error(
                    f"out of memory{details}: take a smaller --batch-size, a smaller net, or smaller or fewer images"
                )
                raise typer.Exit(1) from error
            except KeyboardInterrupt as error:
                number = (terminated or [signal.SIGINT])[0]
                raise typer.Exit(128 + number) from error  # a shell's exit code for a signal


def _show_error(problem: object, command: Any = None) -> None:
    """Print an error in one line, with the names of the command's options in place of those of settings."""
    notes = "".join(f" ({note})" for note in getattr(problem, "__notes__", ()))
    if isinstance(problem, OSError) and problem.filename:
        problem = f"{problem.filename}: {problem.strerror}"
    parameters = command.params if command else ()
    options = {each.name: each.opts[0] for each in parameters if each.opts[0].startswith("--")}
    echo(f"xpconv: error: {_name_options(str(problem), options)}{notes}", error=True)


def _name_options(message: str, options: Mapping[str, str]) -> str:
    """Return a message with options in place of the settings that they set, such as ``--lr-decay`` for ``lr_decay``.

    A name without an underscore may be an English word, and is replaced only where the message begins with it. Names
    of entries in files, which follow an opening bracket, stay.

    Examples
    --------
    >>> options = {"lr_decay": "--lr-decay", "momentum": "--momentum"}
    >>> _name_options("momentum is 2: take less momentum and lr_decay", options)
    '--momentum is 2: take less momentum and --lr-decay'
    """
    at_start, anywhere = "|".join(options), "|".join(name for name in options if "_" in name)
    pattern = rf"^({at_start})(?= is | has )|(?<![\w/.'(-])({anywhere})(?![\w/.='(])"
    return re.sub(pattern, lambda found: options.get(found[0], found[0]), message)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Example: xpconv train --out first && xpconv eval first/model.safetensors",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xpconv {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Train ConvNets with hand-written forward and backward passes on NumPy, CuPy or any array-API library."""


app.command(epilog="Example: xpconv train --data cifar10 --epochs 10 --out runs/cifar10")(train)


@app.command(name="eval", epilog="Example: xpconv eval runs/first/model.safetensors")
def evaluate(
    model: ModelArgument,
    data: Annotated[
        str | None, data_option("Data set of the test images, by default the one in config.json beside the model.")
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Also print precision, recall and F1 of each class.")
    ] = False,
    tta: TtaOption = "none",
    backend: BackendOption = "numpy",
    max_memory: Annotated[int | None, max_memory_option()] = None,
) -> None:
    """Print the accuracy of a model on test images.

    Training does not see these images of the data set. If a folder has changed so that it does, eval says so.
    """
    net = read_model(model, backend)
    data = data or data_of_run(model_path(model))
    memory = memory_for_images(data, max_memory)
    with warnings_in_one_line():
        dataset = load_dataset(data, net.input_shape, resize=resize_of(net), max_memory=memory)
    check_fits(net, dataset)
    warn_of_training_images(model_path(model), dataset)
    if tta != "none" and dataset.name == "digits":
        echo(f"xpconv: warning: tta is {tta}, but mirroring changes the class of some digits: leave it out", error=True)
    if not per_class:
        typer.echo(f"test accuracy: {accuracy(net, dataset.X_test, dataset.y_test, tta):.4f}")
        return
    probs = probabilities(net, dataset.X_test, tta)
    report = classification_report(dataset.y_test, probs, dataset.class_names)
    print_table(report.rows(), report.HEADER)
    typer.echo(f"test accuracy: {report.accuracy:.4f}")


@app.command(epilog="Example: xpconv predict runs/first/model.safetensors seven.png eight.jpg")
def predict(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files of any size.")],
    tta: TtaOption = "none",
    backend: BackendOption = "numpy",
) -> None:
    """Predict the classes of image files.

    Prints one line per image: path, class and probability of the class, separated by tabs. A warning names each image
    that is unlike the training images. For a model of the digits, an image shows one digit, dark on light or light on
    dark.
    """
    net = read_model(model, backend, images)
    failed = False
    for path in images:
        try:
            image, remarks = image_to_predict(path, net)
        except XpconvError as error:
            _show_error(error)
            failed = True
            continue
        probs = probabilities(net, image[None], tta)[0]
        best = int(np.argmax(probs))
        name = net.class_names[best] if net.class_names else str(best)
        for remark in remarks:
            echo(f"xpconv: {remark}", error=True)
        typer.echo("\t".join([printable(path, max_length=10_000), printable(name), f"{probs[best]:.4f}"]))
    if failed:
        raise typer.Exit(1)


@app.command(epilog="Example: xpconv export runs/first/model.safetensors digits.onnx")
def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", callback=file_suffix(".onnx"), help="The file to write.")],
) -> None:
    """Write a model as an ONNX file, which other programs can run.

    The ONNX model takes images as training did, float32 (N, C, H, W) for any N, and returns scores, float32
    (N, classes). It includes the preprocessing, and its metadata names the classes.
    """
    from xpconv.io.onnx import require_onnx, to_onnx

    require_onnx()
    to_onnx(read_model(model, "numpy"), out)
    echo(f"wrote {out}")


@app.command(epilog="Example: xpconv compare runs/sgd runs/adam --out comparison.png")
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that train wrote.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="OUT.png", callback=file_suffix(".png"), help="The picture to write; an existing one is replaced."
        ),
    ] = Path("comparison.png"),
) -> None:
    """Draw the learning curves of several runs in one picture.

    The legend names the settings that differ. Prints one line per run: its iterations, the mean loss over the last
    tenth of them, and the best validation accuracy with its epoch.
    """
    require_matplotlib()
    runs = [read_run(folder) for folder in folders]
    save_comparison(dict(zip(differences(runs), (run.history for run in runs), strict=True)), out)
    header, *rows = summary(runs)
    print_table(rows, header)
    echo(f"wrote {out}")


@app.command(epilog="Example: xpconv watch runs/first")
def watch(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Folder that train writes, by default the newest one in runs.", show_default=False
        ),
    ] = None,
) -> None:
    """Draw the learning curves of a run in the terminal while it trains.

    Start it in a second terminal. It ends when the training ends, or with Ctrl-C, which leaves the training alone. In
    a pipe, prints a line for each epoch.
    """
    from xpconv.cli._watch import newest_run, watch_run

    watch_run(newest_run() if folder is None else folder)


@app.command(epilog="Example: xpconv check my_layer.py --input x=4,6 --input w=6,3 --input b=3")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE.py", help="Python file with the layers; the command runs it.")],
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="The only layer to check.", show_default="all")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=SHAPE",
            help="Shape of an argument of forward, such as x=4,3,8,8; its values are random. Repeat for each argument.",
        ),
    ] = None,
) -> None:
    """Check your own layer: a forward and a backward function.

    The file defines NAME_forward(x, ...), which returns (out, cache), and NAME_backward(dout, cache), which returns a
    gradient for each array. Arguments that are not arrays, such as a stride, come from a function NAME_inputs() in
    the file, which returns a dict of arguments. The command checks gradients, shapes and dtypes, that the layer
    changes neither inputs nor caches, and that it runs on other array libraries. Exits with 1 if a check fails.
    """
    from xpconv.cli._check import check_file, parse_shapes

    reports = check_file(file, layer, parse_shapes(shapes or []))
    echo("\n\n".join(map(str, reports)))
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command(epilog="Example: xpconv bench runs/first/model.safetensors --backend cupy --batch-size 512")
def bench(
    net: Annotated[
        Path, typer.Argument(metavar="MODEL|CONFIG", help="A model.safetensors or a config.json that train wrote.")
    ],
    batch_size: Annotated[int, number_option("Images per minibatch.", 1)] = 100,
    backend: BackendOption = "cupy",
    workers: Annotated[
        bool,
        typer.Option("--workers", help="Compare all workers that mpiexec started with one worker, on --backend only."),
    ] = False,
) -> None:
    """Compare a training step of your net on NumPy and on another backend.

    Prints the time and memory of a step on both, with the same random images, and whether it pays to move. With
    --workers, prints the time of a step on all workers and on one, and the estimated efficiency of more workers.
    """
    from xpconv.cli._bench import load_net, measure_step, table, verdict

    if workers:
        _bench_workers(net, batch_size, backend)
        return
    if backend == "numpy":
        raise typer.BadParameter("the other backend is compared with numpy: name another one, such as cupy.")
    steps = measure_step([load_net(net, name) for name in ("numpy", backend)], batch_size)
    header, *rows = table(steps)
    print_table(rows, header)
    typer.echo(verdict(*steps))


def _bench_workers(net: Path, batch_size: int, backend: str) -> None:
    from xpconv.cli._bench import load_net
    from xpconv.cli._bench_workers import cost_table, measure_workers

    with join_workers() as communicator:
        spec, communicator = backend_of_worker(backend, communicator)
        lines, model = measure_workers(load_net(net, spec), batch_size, communicator)
        echo("\n".join(lines))
        echo(f"efficiency of more workers, each with {batch_size // communicator.size} images of the minibatch:")
        header, *rows = cost_table(model)
        print_table(rows, header)


@app.command(epilog="Example: xpconv info | grep cupy")
def info() -> None:
    """Show versions, backends and settings.

    For a backend that cannot run here, says what is missing.
    """
    print_table(environment())

"""Show the progress of training: a live bar on a terminal or in Jupyter, plain lines in a pipe or without `rich`."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from xpconv.training._lines import Clock, LastingStream, Progress, is_terminal
from xpconv.training._notebook import NotebookProgress

__all__ = ["Progress", "in_notebook", "outlive_output", "rich_can_draw", "show_progress", "writable"]


class _Log(Progress):
    """Plain lines; those of losses end with the speed and the remaining time, once they are known."""

    def __init__(self, total: int, batch_size: int, done: int) -> None:
        super().__init__()
        self._clock = Clock(total, batch_size, done)

    def loss(self, text: str, value: float) -> None:
        speed = self._clock.text()
        self.line(f"{text}, {speed}" if speed else text)

    def advance(self) -> None:
        self._clock.advance()


class _Silent(Progress):
    def line(self, text: str) -> None:
        pass


class _Bar(Progress):
    """A progress bar of `rich` with iteration, loss, images per second and remaining time."""

    def __init__(self, bar: Any, total: int, batch_size: int, done: int) -> None:
        self._bar, self._batch_size = bar, batch_size
        self._task = bar.add_task("training", total=total, completed=done, loss="-", speed="-")
        self._start, self._done = time.perf_counter(), 0

    def line(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)

    def loss(self, text: str, value: float) -> None:
        self._bar.update(self._task, loss=f"{value:.4f}")

    def advance(self) -> None:
        self._done += 1
        rate = self._done * self._batch_size / (time.perf_counter() - self._start)
        self._bar.update(self._task, advance=1, speed=f"{rate:,.0f}")


@contextmanager
def show_progress(total: int, batch_size: int, *, verbose: bool, done: int = 0, workers: int = 1) -> Iterator[Progress]:
    """Show the progress of a run of `total` iterations, of which `done` are complete, until the block ends.

    Several workers have lines instead of a bar: some launchers give them a terminal although the output goes to a file.

    Examples
    --------
    >>> with show_progress(3, 100, verbose=True) as progress:
    ...     progress.line("hello")
    hello
    """
    if not verbose:
        yield _Silent()
    elif in_notebook():
        notebook = NotebookProgress(total, batch_size, done)
        try:
            yield notebook
        finally:
            notebook.close()
    elif workers > 1 or not rich_can_draw():
        yield _Log(total, batch_size, done)
    else:
        from rich import progress as rich
        from rich.console import Console

        columns = (
            rich.TextColumn("iteration"),
            rich.MofNCompleteColumn(),
            rich.BarColumn(),
            rich.TextColumn("loss {task.fields[loss]}"),
            rich.TextColumn("{task.fields[speed]} images/s"),
            rich.TimeRemainingColumn(),
            rich.TextColumn("left"),
        )
        with rich.Progress(*columns, console=Console(file=LastingStream(sys.stdout))) as bar:  # type: ignore[arg-type]
            yield _Bar(bar, total, batch_size, done)


def in_notebook() -> bool:
    """Return whether standard output is that of a cell of Jupyter, and not redirected to elsewhere.

    Examples
    --------
    >>> in_notebook()
    False
    """
    return type(sys.stdout).__module__ == "ipykernel.iostream"


def rich_can_draw() -> bool:
    """Return whether standard output is a terminal and `rich` can be imported.

    Examples
    --------
    >>> from io import StringIO
    >>> with redirect_stdout(StringIO()):
    ...     drawn = rich_can_draw()
    >>> drawn
    False
    """
    if not is_terminal(sys.stdout):
        return False
    try:
        import rich.progress  # noqa: F401
    except Exception:  # an incompatible library may raise anything
        return False
    return True


@contextmanager
def outlive_output() -> Iterator[None]:
    """Discard output that cannot be written inside the block; at its end, say so on the stream that still works.

    Writing fails if the reader has closed the pipe, as ``| head`` does, the terminal is gone, or the disk is full.

    Examples
    --------
    >>> with outlive_output():
    ...     print("hello")
    hello
    """
    out, err = map(LastingStream, (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            if error := out.error or err.error:
                left = out if err.error else err
                print(f"xpconv: some output was lost ({error}); the training itself went on", file=left, flush=True)
            for stream in (out, err):
                stream.discard()


def writable(stream: Any) -> Any:
    """Return a stream that print and typer can write to: None for a closed file, which discards the output.

    A stream without `flush`, such as a logger in the place of standard output, gets one.

    Examples
    --------
    >>> from io import StringIO
    >>> stream = StringIO()
    >>> stream.close()
    >>> writable(stream)
    """
    if getattr(stream, "closed", False):
        return None
    return stream if stream is None or hasattr(stream, "flush") else LastingStream(stream)

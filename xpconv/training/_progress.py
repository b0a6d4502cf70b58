"""Progress of a training run: a live bar on a terminal, plain lines in a pipe or without `rich`."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any

__all__ = ["Progress", "ignore_broken_pipe", "show_progress"]


class Progress:
    """Plain lines on standard output, for logs, notebooks and pipes."""

    def line(self, text: str) -> None:
        """Show a permanent line."""
        print(text, flush=True)

    def loss(self, text: str, value: float) -> None:
        """Show the loss of an iteration."""
        self.line(text)

    def advance(self) -> None:
        """Count one more iteration."""


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
def show_progress(total: int, batch_size: int, *, verbose: bool, done: int = 0) -> Iterator[Progress]:
    """Show the progress of a run of `total` iterations, `done` of them before; the bar, if any, ends with the block.

    Examples
    --------
    >>> with show_progress(3, 100, verbose=True) as progress:
    ...     progress.line("hello")
    hello
    """
    if not verbose:
        yield _Silent()
    elif not sys.stdout.isatty() or find_spec("rich") is None:
        yield Progress()
    else:
        from rich import progress as rich

        columns = (
            rich.TextColumn("iteration"),
            rich.MofNCompleteColumn(),
            rich.BarColumn(),
            rich.TextColumn("loss {task.fields[loss]}"),
            rich.TextColumn("{task.fields[speed]} images/s"),
            rich.TimeRemainingColumn(),
            rich.TextColumn("left"),
        )
        with rich.Progress(*columns) as bar:
            yield _Bar(bar, total, batch_size, done)


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Discard the block's output once its reader has closed the pipe, as ``| head`` does, instead of raising an error.

    Examples
    --------
    >>> with ignore_broken_pipe():
    ...     print("hello")
    hello
    """
    with redirect_stdout(_UnbreakableStream(sys.stdout)):
        yield


class _UnbreakableStream:
    """A text stream that discards what is written once its reader has closed the pipe."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return int(self._try(lambda: self._stream.write(text)))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, write: Callable[[], Any]) -> Any:
        try:
            return write()
        except BrokenPipeError:
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, self._stream.fileno())
            os.close(devnull)
            print(
                "xpconv: the reader of this output has closed it; training continues (Ctrl-C stops it)", file=sys.stderr
            )
            return write()

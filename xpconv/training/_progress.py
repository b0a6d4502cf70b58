"""Show the progress of training: a live bar on a terminal, plain lines in a pipe or without `rich`."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from io import StringIO
from typing import Any

__all__ = ["Progress", "outlive_output", "rich_can_draw", "show_progress", "writable"]


class Progress:
    """Plain lines on standard output, for logs, notebooks and pipes; a training outlives an output that fails."""

    def __init__(self) -> None:
        self._stream = _LastingStream(sys.stdout)

    def line(self, text: str) -> None:
        """Show a permanent line."""
        print(text, file=self._stream, flush=True)

    def loss(self, text: str, value: float) -> None:
        """Show the loss of an iteration."""
        self.line(text)

    def advance(self) -> None:
        """Count one more iteration."""


class _Log(Progress):
    """Plain lines; those of losses end with the speed and the remaining time, once they are known."""

    def __init__(self, total: int, batch_size: int, done: int) -> None:
        super().__init__()
        self._clock = _Clock(total, batch_size, done)

    def loss(self, text: str, value: float) -> None:
        speed = self._clock.text()
        self.line(f"{text}, {speed}" if speed else text)

    def advance(self) -> None:
        self._clock.advance()


class _Clock:
    """The speed of the iterations and the remaining time, without the first one, which may compile kernels."""

    def __init__(self, total: int, batch_size: int, done: int) -> None:
        self.done, self._total, self._batch_size = done, total, batch_size
        self._start, self._timed = 0.0, -1

    def advance(self) -> None:
        self.done += 1
        self._timed += 1
        if self._timed == 0:
            self._start = time.perf_counter()

    def text(self) -> str:
        """Return the speed and the remaining time, or nothing after the first iteration."""
        if self._timed < 1:
            return ""
        seconds = (time.perf_counter() - self._start) / self._timed or 1e-9
        left = timedelta(seconds=round((self._total - self.done) * seconds))
        return f"{self._batch_size / seconds:,.0f} images/s, {left} left"


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
    """Show the progress of a run of `total` iterations, of which `done` are complete, until the block ends.

    Examples
    --------
    >>> with show_progress(3, 100, verbose=True) as progress:
    ...     progress.line("hello")
    hello
    """
    if not verbose:
        yield _Silent()
    elif not rich_can_draw():
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
        with rich.Progress(*columns, console=Console(file=_LastingStream(sys.stdout))) as bar:  # type: ignore[arg-type]
            yield _Bar(bar, total, batch_size, done)


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
    if not _is_terminal(sys.stdout):
        return False
    try:
        import rich.progress  # noqa: F401
    except Exception:  # an incompatible library may raise anything
        return False
    return True


def _is_terminal(stream: Any) -> bool:
    with suppress(AttributeError, TypeError, ValueError, OSError):  # a logger in its place, or a closed file
        return bool(stream.isatty())
    return False


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
    out, err = map(_LastingStream, (sys.stdout, sys.stderr))
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
    >>> stream = StringIO()
    >>> stream.close()
    >>> writable(stream)
    """
    if getattr(stream, "closed", False):
        return None
    return stream if stream is None or hasattr(stream, "flush") else _LastingStream(stream)


class _LastingStream:
    """Wraps a text stream; after the stream's first error, discards everything that is written."""

    def __init__(self, stream: Any) -> None:
        self._stream = StringIO() if stream is None else stream  # None if it is closed, or under pythonw
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return self.error is None and _is_terminal(self._stream)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(getattr(self._stream, "flush", bool))

    def _try(self, write: Callable[[], Any]) -> None:
        if self.error is not None:
            return
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            self.error = error

    def discard(self) -> None:
        """Redirect a failed stream to nowhere, so that Python's flush at exit succeeds and keeps the exit code."""
        if self.error is not None:
            with suppress(OSError, ValueError, AttributeError):
                devnull = os.open(os.devnull, os.O_WRONLY)
                os.dup2(devnull, self._stream.fileno())
                os.close(devnull)

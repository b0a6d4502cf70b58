"""Progress as plain lines, and an output that may fail."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from io import StringIO
from typing import Any

__all__ = ["Clock", "LastingStream", "Progress", "is_terminal"]


class Progress:
    """Plain lines on standard output, for logs, notebooks and pipes; a training outlives an output that fails."""

    def __init__(self) -> None:
        self._stream = LastingStream(sys.stdout)

    def line(self, text: str) -> None:
        """Show a permanent line."""
        print(text, file=self._stream, flush=True)

    def loss(self, text: str, value: float) -> None:
        """Show the loss of an iteration."""
        self.line(text)

    def check(self, text: str, train_acc: float, val_acc: float, val_loss: float) -> None:
        """Show the results of a check."""
        self.line(text)

    def advance(self) -> None:
        """Count one more iteration."""


class Clock:
    """Measure the speed of the iterations and the remaining time, without the first one, which may compile kernels.

    Parameters
    ----------
    total, batch_size, done : int
        As for `show_progress`.

    Examples
    --------
    >>> clock = Clock(10, 100, 2)
    >>> clock.advance()
    >>> clock.done, clock.text()
    (3, '')
    """

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


class LastingStream:
    """Wraps a text stream; after the stream's first error, discards everything that is written."""

    def __init__(self, stream: Any) -> None:
        self._stream = StringIO() if stream is None else stream  # None if it is closed, or under pythonw
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return self.error is None and is_terminal(self._stream)

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


def is_terminal(stream: Any) -> bool:
    with suppress(AttributeError, TypeError, ValueError, OSError):  # a logger in its place, or a closed file
        return bool(stream.isatty())
    return False

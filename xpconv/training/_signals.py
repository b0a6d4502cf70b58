"""Ctrl-C and SIGTERM, handled between two iterations."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["PostponedSignal", "postpone_signals", "terminate_as_interrupt"]

SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)


class PostponedSignal:
    """The signal that was received and not yet delivered, if any, and the handlers that were replaced."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.frame: FrameType | None = None
        self.handlers: dict[int, object] = {}

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Keep the first signal; deliver a second one at once."""
        if self.number is not None:
            self.deliver(number, frame)
        self.number, self.frame = number, frame

    def deliver(self, number: int | None = None, frame: FrameType | None = None) -> None:
        """Call the original handler for the postponed signal, if there is one, with the frame that it interrupted."""
        if number is None:
            number, frame = self.number, self.frame
        if number is not None:
            self.number = self.frame = None
            self.handlers[number](number, frame)  # type: ignore[operator]


@contextmanager
def postpone_signals() -> Iterator[PostponedSignal]:
    """Postpone Ctrl-C and SIGTERM until the block calls `PostponedSignal.deliver`, or ends.

    A second signal is delivered at once, in case the block hangs. Only signals with a handler in Python are postponed,
    and only in the main thread, which receives all signals.

    Examples
    --------
    >>> try:
    ...     with postpone_signals():
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("still here")
    ... except KeyboardInterrupt:
    ...     print("ended")
    still here
    ended
    """
    postponed = PostponedSignal()
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if callable(signal.getsignal(number)):
                postponed.handlers[number] = signal.signal(number, postponed.receive)
    try:
        yield postponed
    finally:
        for number, handler in postponed.handlers.items():
            if signal.getsignal(number) == postponed.receive:  # else keep the one that the block installed
                signal.signal(number, handler)  # type: ignore[arg-type]
    postponed.deliver()


@contextmanager
def terminate_as_interrupt() -> Iterator[list[int]]:
    """Make SIGTERM raise KeyboardInterrupt, as Ctrl-C does, and append its number to the yielded list.

    Examples
    --------
    >>> with terminate_as_interrupt() as received:
    ...     try:
    ...         signal.raise_signal(signal.SIGTERM)
    ...     except KeyboardInterrupt:
    ...         print("ended by", signal.Signals(received[0]).name)
    ended by SIGTERM
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)

"""Show the progress of training in Jupyter: a live bar and live curves."""

import time
from contextlib import suppress
from typing import Any

from xpconv._html import html_text
from xpconv.training._lines import Clock, Progress
from xpconv.viz._svg import svg_lines

__all__ = ["NotebookProgress"]

SECONDS = 0.25  # between two updates


class NotebookProgress(Progress):
    """A bar with loss, speed and remaining time above the curves of loss and accuracy, in one output of a cell.

    Where HTML is not shown, the output is the lines of the log.

    Parameters
    ----------
    total, batch_size, done : int
        As for `show_progress`.
    """

    def __init__(self, total: int, batch_size: int, done: int) -> None:
        super().__init__()
        self._total, self._clock = total, Clock(total, batch_size, done)
        self._lines, self._notes = list[str](), list[str]()
        self._losses: tuple[list[float], list[float]] = [], []
        self._checks: tuple[list[float], list[float], list[float], list[float]] = [], [], [], []
        self._handle: Any = None
        self._next = 0.0

    def line(self, text: str) -> None:
        self._lines.append(text)
        self._notes.append(text)
        self._update()

    def loss(self, text: str, value: float) -> None:
        self._lines.append(text)
        for values, new in zip(self._losses, (self._clock.done, value), strict=True):
            values.append(new)
        self._update()

    def check(self, text: str, train_acc: float, val_acc: float, val_loss: float) -> None:
        self._lines.append(text)
        for values, new in zip(self._checks, (self._clock.done, train_acc, val_acc, val_loss), strict=True):
            values.append(new)
        self._update()

    def advance(self) -> None:
        self._clock.advance()
        self._update()

    def close(self) -> None:
        """Show the last state."""
        self._next = 0.0
        self._update()

    def _update(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + SECONDS
        with suppress(Exception):  # An output that fails must not end the training.
            from IPython.display import display

            data = {"text/html": self._html(), "text/plain": "\n".join(self._lines)}
            if self._handle is None:
                self._handle = display(data, raw=True, display_id=True)
            else:
                self._handle.update(data, raw=True)

    def _html(self) -> str:
        done, losses, (at, train_acc, val_acc, val_loss) = self._clock.done, self._losses, self._checks
        facts = [
            f"iteration {done:,} of {self._total:,}",
            *([f"loss {losses[1][-1]:.4f}"] if losses[1] else []),
            *([f"validation accuracy {val_acc[-1]:.4f} (best {max(val_acc):.4f})"] if val_acc else []),
            *([speed] if (speed := self._clock.text()) else []),
        ]
        most = 1.5 * max(
            [*losses[1][-(-len(losses[1]) // 10) :], *val_loss[1:], 0.0]
        )  # The first losses may be far larger.
        panels = [
            svg_lines(
                "loss by iteration",
                {"training": losses, "validation": (at, val_loss)},
                (0.0, most) if 0 < most < 1e30 else None,
            ),
            svg_lines("accuracy by iteration", {"training": (at, train_acc), "validation": (at, val_acc)}, (0.0, 1.0)),
        ]
        return "\n".join(
            [
                f'<div>{html_text(", ".join(facts))}<br><progress style="width:min(100%,52rem)" max="{self._total}" '
                f'value="{done}"></progress></div>',
                f'<div style="display:flex;flex-wrap:wrap;gap:1rem">{"".join(panels)}</div>',
                *(f"<div>{html_text(note)}</div>" for note in self._notes),
            ]
        )

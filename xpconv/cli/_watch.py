"""``xpconv watch``: the curves of a run in the terminal while it trains."""

import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xpconv.cli._compare import Run, read_run
from xpconv.cli._run_folder import CONFIG, METRICS, read_config, reason_of, run_of
from xpconv.cli._tables import echo
from xpconv.errors import ArgumentError, printable
from xpconv.io._lock import LOCK_NAME, is_locked
from xpconv.training._progress import rich_can_draw
from xpconv.viz._curves import check_epochs, moving_average
from xpconv.viz._terminal import line_plot

__all__ = ["newest_run", "watch_run"]

POLL_SECONDS = 0.5
QUIET_SECONDS = 5.0  # without new metrics, after which the lock of the training is tested
COLORS = "bright_blue", "dark_orange"
WIDE = 100  # characters: from here on the panels are side by side


def newest_run() -> Path:
    """Return the folder in ``runs`` whose run was begun or changed last.

    Raises
    ------
    ArgumentError
        If there is none.
    """
    configs = sorted(Path("runs").glob(f"*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ArgumentError("there is no run in the folder runs: name the folder of a run, as in xpconv watch first")
    return configs[-1].parent


def watch_run(folder: Path) -> None:
    """Show the curves of a run until it ends; without a terminal, print a line for each epoch.

    Raises
    ------
    ArgumentError
        If the folder is not that of a run.
    """
    folder = run_of(folder)
    if not rich_can_draw():
        _print_epochs(folder)
    else:
        from rich.console import Console
        from rich.live import Live

        console = Console()
        with Live(console=console, auto_refresh=False) as live:
            for run in _versions(folder):
                live.update(_panels(run, console), refresh=True)
    echo(_ending(folder))


def _versions(folder: Path) -> Iterator[Run]:
    """Yield the run at once, and again after each change of its metrics until it ends."""
    _check_config(folder)
    seen = -1
    changed = time.monotonic()
    while True:
        over = _is_over(folder, time.monotonic() - changed)  # before reading: no last metrics are missed
        current = _changed_at(folder / METRICS)
        if current != seen:
            seen, changed = current, time.monotonic()
            try:
                yield read_run(folder)
            except ArgumentError:
                if (folder / CONFIG).exists():
                    raise
                return  # the training has failed and removed its folder
        if over:
            return
        time.sleep(POLL_SECONDS)


def _check_config(folder: Path) -> dict[str, Any]:
    try:
        return read_config(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{folder} is not the folder of a run ({reason_of(error)}): expected one that "
            f"xpconv train writes, with {CONFIG}"
        ) from error


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # before the first check
        return -1


def _is_over(folder: Path, quiet_seconds: float) -> bool:
    """Return whether the training has ended: it is finished, or was interrupted or killed."""
    lock_is_gone = not os.path.lexists(folder / LOCK_NAME)
    return lock_is_gone or (quiet_seconds > QUIET_SECONDS and not is_locked(folder))


def _ending(folder: Path) -> str:
    if not (folder / CONFIG).exists():
        return f"{folder} has failed, and its folder is gone"
    if _check_config(folder).get("finished"):
        return f"{folder} is finished: see {folder / 'report.html'}"
    return f"{folder} has ended before it was finished: xpconv train --resume {shlex.quote(str(folder))} continues it"


def _print_epochs(folder: Path) -> None:
    shown = 0
    for run in _versions(folder):
        checks = len(run.history["val_acc_history"])
        for check in range(shown, checks):
            echo(_status(run, check))
        shown = max(shown, checks)


def _status(run: Run, check: int | None = None) -> str:
    """Return the state of a run at a check, by default the newest one, in one line."""
    accuracies, losses = run.history["val_acc_history"], run.history["loss_history"]
    epochs = [f"{epoch:.4g}" for epoch in check_epochs(run.history)]
    if check is None:
        done = f"iteration {len(losses)}, epoch {(epochs or ['0'])[-1]} of {run.settings.get('epochs')} complete"
        best = f"; best validation accuracy {np.nanmax(accuracies):.4f}" if np.isfinite(accuracies).any() else ""
        return f"{done}; loss {losses[-1]:.4f}{best}" if len(losses) else "waiting for the first check"
    train, val_loss = run.history["train_acc_history"][check], run.history["val_loss_history"]
    loss = f"validation loss {val_loss[check]:.4f}, " if check < len(val_loss) else ""
    done = f"epoch {epochs[check]} of {run.settings.get('epochs')}"
    return f"{done}: {loss}accuracy {train:.4f}, validation {accuracies[check]:.4f}"


def _panels(run: Run, console: Any) -> Any:
    """Return the state and the curves of a run for `rich`."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    count = 2 if console.width >= WIDE else 1
    size = console.width // count - 2, max(min((console.height - 4) // (3 - count) - 3, 16), 4)
    plain = not _can_encode(console.encoding)
    panels = [
        _plot(title, lines, size, limits, ascii_only=plain) for title, lines, limits in (_losses(run), _accuracies(run))
    ]
    table = Table.grid(padding=(0, 1))
    for start in range(0, len(panels), count):
        table.add_row(*panels[start : start + count])
    return Group(Text(f"{printable(run.folder.name)}: {_status(run)}"), table)


def _can_encode(encoding: str | None) -> bool:
    try:
        "⣿".encode(encoding or sys.getdefaultencoding())
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _losses(run: Run) -> tuple[str, dict[str, Any], tuple[float, float] | None]:
    losses, val_losses = run.history["loss_history"], run.history["val_loss_history"]
    averages, first = moving_average(losses)
    checked = np.maximum(run.iterations_per_epoch * check_epochs(run.history)[: len(val_losses)], 1)
    shown = np.concatenate([averages, val_losses[1:]])
    shown = shown[np.isfinite(shown)]
    limits = (min(float(shown.min()), 0.0), float(shown.max())) if shown.size else None
    lines = {"minibatches": (first + 1 + np.arange(len(averages)), averages), "validation": (checked, val_losses)}
    return "loss by iteration", lines, limits


def _accuracies(run: Run) -> tuple[str, dict[str, Any], tuple[float, float] | None]:
    histories = {"training": run.history["train_acc_history"], "validation": run.history["val_acc_history"]}
    epochs = check_epochs(run.history)
    return "accuracy by epoch", {name: (epochs[: len(ys)], ys) for name, ys in histories.items()}, (0.0, 1.0)


def _plot(
    title: str,
    lines: dict[str, Any],
    size: tuple[int, int],
    limits: tuple[float, float] | None,
    *,
    ascii_only: bool,
) -> Any:
    from rich.text import Text

    text = Text(f"{title}: ", no_wrap=True)
    for number, name in enumerate(lines):
        text.append(f"{'--' if ascii_only else '──' if number == 0 else '╌╌'} {name}  ", COLORS[number])
    for row in line_plot(lines, *size, limits=limits, ascii_only=ascii_only):
        text.append("\n")
        for piece, line in row:
            text.append(piece, "" if line is None else COLORS[line])
    return text

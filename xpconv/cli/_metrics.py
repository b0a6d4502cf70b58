"""The metrics of a run: as histories by epoch, and as the CSV file that grows during training."""

import csv
import io
import time
from contextlib import suppress
from math import nan
from pathlib import Path
from typing import Any

from xpconv.io._atomic import write_bytes
from xpconv.training.solver import Solver

__all__ = ["LiveMetrics", "histories_by_epoch", "metrics_table"]

SECONDS = 1.0  # between two writes
MAX_LOAD = 0.02  # fraction of the time that may go into writing


class LiveMetrics:
    """Write the metrics to a file now and then during training, for ``xpconv watch``.

    Parameters
    ----------
    path : path
        The file to replace.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written, self._next = -1, 0.0

    def update(self, solver: Solver) -> None:
        """Write new metrics if the last write was long enough ago; losses on the device are not read for this.

        A file that cannot be written does not end the training: the metrics are written again at its end.
        """
        now = time.monotonic()
        if now < self._next or len(solver.loss_history) == self._written:
            return
        with suppress(OSError):
            write_bytes(self._path, metrics_table(solver).encode())
        self._written = len(solver.loss_history)
        end = time.monotonic()
        self._next = end + max(SECONDS, (end - now) / MAX_LOAD)


def _iterations_per_epoch(solver: Solver) -> int:
    return max(solver.y_train.shape[0] // solver.batch_size, 1)


def histories_by_epoch(solver: Solver) -> dict[str, Any]:
    """Return the histories, those of checks from epoch 0 on.

    If each iteration is checked, the first check comes after epoch 1, so that epoch 0 is NaN.
    """
    first = [nan] if solver.check_every * _iterations_per_epoch(solver) == 1 else []
    return {
        **vars(solver),
        "train_acc_history": first + solver.train_acc_history,
        "val_acc_history": first + solver.val_acc_history,
        "val_loss_history": first + solver.val_loss_history,
        "iterations_per_epoch": _iterations_per_epoch(solver),
        "health_history": {name: first + values for name, values in solver.health_history.items()},
    }


def metrics_table(solver: Solver) -> str:
    """Return CSV with a row for each iteration, and accuracies, validation loss and health where they were checked."""
    per_epoch = _iterations_per_epoch(solver)
    between = per_epoch * solver.check_every
    checked = sorted({1, *range(between, solver.iteration + 1, between)})
    if len(solver.val_acc_history) > len(checked):
        checked.append(solver.iteration)  # the end of the training
    checks = {
        "train_accuracy": solver.train_acc_history,
        "val_accuracy": solver.val_acc_history,
        "val_loss": solver.val_loss_history,
        **solver.health_history,
    }
    measured = dict(zip(checked, zip(*checks.values(), strict=False), strict=False))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["iteration", "epoch", "loss", "learning_rate", *checks])
    steps = zip(solver.loss_history, solver.learning_rate_history, strict=False)
    for iteration, (loss, learning_rate) in enumerate(steps, start=1):
        epoch = (iteration - 1) // per_epoch + 1
        table.writerow([iteration, epoch, loss, learning_rate, *measured.get(iteration, [""] * len(checks))])
    return text.getvalue()

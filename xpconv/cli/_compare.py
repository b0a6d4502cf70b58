"""Comparison of training runs: their differing settings, and their results."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xpconv.cli._run_folder import CONFIG, METRICS, read_config, reason_of, run_of
from xpconv.errors import ArgumentError, printable
from xpconv.viz._curves import check_epochs

__all__ = ["Run", "differences", "read_run", "summary"]

HISTORIES = {"loss_history": "loss", "train_acc_history": "train_accuracy", "val_acc_history": "val_accuracy"}
OPTIONAL_HISTORIES = {"val_loss_history": "val_loss"}


@dataclass(frozen=True, eq=False)
class Run:
    """The settings and histories in a run's folder.

    Parameters
    ----------
    folder : path
    settings : dict
        The settings in ``config.json``.
    history : dict of str to array
        ``loss_history``, ``train_acc_history``, ``val_acc_history`` and ``val_loss_history``, as those of a Solver.
    iterations_per_epoch : int
        Less in a run that has not ended its first epoch.

    Examples
    --------
    >>> Run(Path("runs/a"), {"seed": 0}, {"loss_history": np.array([2.3])}).settings
    {'seed': 0}
    """

    folder: Path
    settings: dict[str, Any]
    history: dict[str, np.ndarray]
    iterations_per_epoch: int = 0


def read_run(folder: Path) -> Run:
    """Read the settings and the metrics of a run, given by its folder or a file in it.

    Raises
    ------
    ArgumentError
        If the folder lacks them, or they are damaged.

    Examples
    --------
    >>> read_run(Path("no/such/run"))
    Traceback (most recent call last):
    xpconv.errors.ArgumentError: no/such/run is not the folder of a run (...): expected one that xpconv train wrote...
    """
    folder = run_of(folder)
    try:
        config = read_config(folder / CONFIG)
        settings = dict(config["settings"])
        with (folder / METRICS).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = set(HISTORIES.values()) - set(reader.fieldnames or ())
            rows = list(reader)
        if missing:
            raise ValueError(f"{METRICS} has no column {', '.join(sorted(missing))}")
        history = {name: _numbers(row[column] for row in rows) for name, column in HISTORIES.items()}
        history |= {name: _numbers(row.get(column) for row in rows) for name, column in OPTIONAL_HISTORIES.items()}
        per_epoch = sum(row["epoch"] == "1" for row in rows)
        checked = _numbers(row["iteration"] for row in rows if row["val_accuracy"])
        history["check_epochs"] = np.where(checked > 1, checked / max(per_epoch, 1), 0)
        epoch_complete = len(rows) > 1 or (len(rows) == 1 and config.get("finished"))
        if epoch_complete and rows[-1]["epoch"] == rows[-1]["iteration"]:  # then the first check is after epoch 1
            for name in ("train_acc_history", "val_acc_history", "val_loss_history"):
                history[name] = np.insert(history[name], 0, np.nan)
            history["check_epochs"] = np.concatenate([[0], checked])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ArgumentError(
            f"{folder} is not the folder of a run ({reason_of(error)}): expected one that "
            "xpconv train wrote, with config.json and metrics.csv"
        ) from error
    return Run(folder, settings, history, per_epoch)


def _numbers(texts: Iterable[str | None]) -> np.ndarray:
    """Return the numbers in a column, which is empty where nothing was checked."""
    return np.array([float(text) for text in texts if text])


def differences(runs: Sequence[Run]) -> list[str]:
    """Name each run by the settings that differ, and also by its folder if these do not tell runs apart.

    The interval of checkpoints is ignored.

    Examples
    --------
    >>> runs = [
    ...     Run(Path(name), {"optimizer": name, "seed": 0}, {})
    ...     for name in ("sgd", "adam")
    ... ]
    >>> differences(runs)
    ['optimizer=sgd', 'optimizer=adam']
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "checkpoint_every")
    differing = [key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1]
    names = [", ".join(f"{printable(key)}={printable(run.settings.get(key))}" for key in differing) for run in runs]
    if len(set(names)) == len(names) and all(names):
        return names
    return [
        f"{run.folder.name}: {name}" if name else run.folder.name or str(run.folder)
        for run, name in zip(runs, names, strict=True)
    ]


def summary(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Return a table with a header and one row per run.

    ``final loss`` is the mean over the last tenth of the iterations.

    Examples
    --------
    >>> history = {
    ...     "loss_history": np.array([2.0, 1.0]),
    ...     "val_acc_history": np.array([0.1, 0.5, 0.4]),
    ... }
    >>> summary([Run(Path("a"), {}, history)])[1]
    ('a', '2', '1.0000', '0.5000', '1')
    """
    rows: list[tuple[str, ...]] = [("run", "iterations", "final loss", "best validation accuracy", "at epoch")]
    for run, name in zip(runs, differences(runs), strict=True):
        losses, accuracies = run.history["loss_history"], run.history["val_acc_history"]
        final = f"{losses[-max(len(losses) // 10, 1) :].mean():.4f}" if len(losses) else "-"
        best = (
            (f"{np.nanmax(accuracies):.4f}", f"{check_epochs(run.history)[np.nanargmax(accuracies)]:.4g}")
            if np.isfinite(accuracies).any()
            else ("-", "-")
        )
        rows.append((name, f"{len(losses)}", final, *best))
    return rows

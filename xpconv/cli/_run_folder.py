"""The folder of a training run: its files, its lock, and whether its run is finished."""

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from xpconv.cli._settings import Settings
from xpconv.errors import ArgumentError, printable
from xpconv.io._atomic import remove_temporary_files
from xpconv.io._lock import lock_folder

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "FILES",
    "METRICS",
    "MODEL",
    "is_finished",
    "read_config",
    "read_settings",
    "reason_of",
    "remove_leftovers",
    "run_folder",
    "run_of",
]

MODEL = "model.safetensors"
CONFIG = "config.json"
METRICS = "metrics.csv"
FILES = (MODEL, METRICS, "curves.png", "filters.png", "confusion.png", "mistakes.png", "report.html", CONFIG)
CHECKPOINTS = "checkpoints"


@contextmanager
def run_folder(out: Path | None, *, resume: bool = False) -> Iterator[Path]:
    """Make and lock the folder of a run, which must hold no other run's files unless that run is resumed.

    Parameters
    ----------
    out : path, optional
        By default a new folder ``runs/<date>_<time>``.
    resume : bool
        Whether the folder holds the run to resume.

    Yields
    ------
    pathlib.Path
        The folder, which is writable. If the block fails, a new folder with only settings and metrics is removed.

    Raises
    ------
    ArgumentError
        If the folder holds a run's files, and that run is not to be resumed.
    FolderInUseError
        If another process has locked the folder.
    OSError
        If the folder cannot be made or written to.

    Examples
    --------
    >>> import tempfile
    >>> with (
    ...     tempfile.TemporaryDirectory() as parent,
    ...     run_folder(Path(parent, "first")) as folder,
    ... ):
    ...     folder.name
    'first'
    """
    folder = _unused_name() if out is None else out
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=out is not None)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot be the folder of a run ({error.strerror}): choose another one with --out",
            str(error.filename),
        ) from error
    try:
        with lock_folder(folder):
            if not resume:
                _check_holds_no_run(folder)
            for written in (folder, folder / CHECKPOINTS):
                remove_temporary_files(written)
            yield folder
    except BaseException:
        if is_new:
            _remove_if_unfinished(folder)
        raise


def _unused_name() -> Path:
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(folder for suffix in suffixes if not (folder := Path("runs", name + suffix)).exists())


def _check_holds_no_run(folder: Path) -> None:
    present = [name for name in (*FILES, CHECKPOINTS) if os.path.lexists(folder / name)]
    if present:
        hint = "" if is_finished(folder) or CONFIG not in present else "; --resume continues it"
        raise ArgumentError(
            f"out is {folder}, which already holds {', '.join(present)}: choose another folder or "
            f"move that run away{hint}"
        )


def _remove_if_unfinished(folder: Path) -> None:
    """Remove a folder that holds nothing but settings and metrics."""
    with suppress(OSError):  # rmdir fails if the folder holds anything else
        if set(os.listdir(folder)) <= {CONFIG, METRICS}:
            for name in (CONFIG, METRICS):
                (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def run_of(path: Path) -> Path:
    """Return the folder of a run that is given by its folder or by one of the files that `train` wrote in it.

    Examples
    --------
    >>> run_of(Path("runs/first"))
    PosixPath('runs/first')
    """
    return path.parent if path.name in FILES and path.is_file() else path


def reason_of(error: Exception) -> str:
    """Return why a file of a run cannot be used, without the name of the exception.

    Examples
    --------
    >>> reason_of(FileNotFoundError(2, "No such file or directory", "first/config.json"))
    'first/config.json: No such file or directory'
    >>> reason_of(KeyError("settings"))
    "'settings' is missing"
    """
    if isinstance(error, OSError) and error.filename:
        return printable(f"{error.filename}: {error.strerror}")
    return printable(f"{error} is missing" if isinstance(error, KeyError) else error)


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration in a ``config.json``.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds no dict in JSON, or one that is nested too deeply.
    """
    try:
        config = json.loads(path.read_text("utf-8"))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path.name} holds no dict")
    return config


def read_settings(folder: Path, checkpoint_every: int | None = None) -> Settings:
    """Return the settings of the run in a folder, with another interval of checkpoints if one is given.

    Raises
    ------
    ArgumentError
        If the folder holds no settings, or unusable ones.
    """
    try:
        values = read_config(folder / CONFIG)["settings"]
        if unknown := values.keys() - {option.name for option in fields(Settings)}:
            raise ValueError(f"this version of xpconv does not know {', '.join(sorted(unknown))}")
        settings = Settings(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(
            f"resume is {folder}, which holds no settings of a run in {CONFIG} ({reason_of(error)}): start a new run "
            "with --out"
        ) from error
    return settings if checkpoint_every is None else replace(settings, checkpoint_every=checkpoint_every)


def is_finished(folder: Path) -> bool:
    """Return whether the run in a folder was trained to its end, so that nothing is left to resume."""
    try:
        config = read_config(folder / CONFIG)
    except (OSError, ValueError):
        return False
    return bool(config.get("finished")) and (folder / MODEL).exists()


def remove_leftovers(folder: Path) -> None:
    """Remove the lock and temporary files that a run leaves if it is killed after its last result was written."""
    with suppress(OSError), run_folder(folder, resume=True):  # entering removes the files, leaving the lock
        pass

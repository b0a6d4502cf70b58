"""The folder of a run: one process holds it, checkpoints are kept in it, and a run that was stopped goes on in it."""

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from xpconv.cli._run import FILES, Settings, save_config
from xpconv.data import Dataset
from xpconv.errors import ArgumentError
from xpconv.io._atomic import remove_temporary_files
from xpconv.io._lock import lock_folder
from xpconv.training.checkpoint import CheckpointFolder
from xpconv.training.solver import Solver

__all__ = ["is_finished", "run_folder", "settings_of", "settle", "train_in"]

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


@contextmanager
def run_folder(out: Path | None, *, resume: bool = False) -> Iterator[Path]:
    """Make and hold the folder for a run's files, which may be there but hold no run yet, or the one to resume.

    Parameters
    ----------
    out : path, optional
        By default a new folder ``runs/<date>_<time>``.
    resume : bool
        Whether it is that of a run that shall go on.

    Yields
    ------
    pathlib.Path
        The folder; it can be written to. If the block fails and left nothing in it but the settings, it is removed.

    Raises
    ------
    ArgumentError
        If it holds a run's files already, and the run is not to be resumed.
    FolderInUseError
        If another process holds it.
    OSError
        If it cannot be made or written to.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as parent, run_folder(Path(parent, "first")) as folder:
    ...     folder.name
    'first'
    """
    folder = _unused_name() if out is None else out
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=out is not None)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot be the folder of a run ({error.strerror}): name another one by --out",
            str(error.filename),
        ) from error
    try:
        with lock_folder(folder):
            held = [name for name in (*FILES, CHECKPOINTS) if os.path.lexists(folder / name)]
            if held and not resume:
                hint = "" if is_finished(folder) or CONFIG not in held else "; --resume goes on with it"
                raise ArgumentError(
                    f"out is {folder}, which already holds {', '.join(held)}: choose another folder or "
                    f"move that run away{hint}"
                )
            for part in (folder, folder / CHECKPOINTS):
                remove_temporary_files(part)
            yield folder
    except BaseException:
        if new:
            with suppress(OSError):  # it holds something
                if os.listdir(folder) == [CONFIG]:
                    (folder / CONFIG).unlink()
                folder.rmdir()
        raise


def _unused_name() -> Path:
    name = time.strftime("%Y-%m-%d_%H-%M-%S")
    suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    return next(folder for suffix in suffixes if not (folder := Path("runs", name + suffix)).exists())


def settings_of(folder: Path, checkpoint_every: int | None = None) -> Settings:
    """Return the settings of the run in a folder, with another interval of checkpoints if one is given.

    Raises
    ------
    ArgumentError
        If no run was begun in it.
    """
    try:
        settings = Settings(**json.loads((folder / CONFIG).read_text("utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"resume is {folder}, which holds no settings of a run in {CONFIG} ({error}): begin one with --out"
        ) from error
    return settings if checkpoint_every is None else replace(settings, checkpoint_every=checkpoint_every)


def is_finished(folder: Path) -> bool:
    """Return whether the run in a folder was trained to its end, so that nothing is left to resume."""
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("finished")) and (folder / FILES[0]).exists()


def settle(folder: Path) -> bool:
    """Return whether the run in a folder is finished; what it left if it was killed at its very end is removed."""
    finished = is_finished(folder)
    if finished:
        with suppress(OSError), run_folder(folder, resume=True):  # nothing is lost where it cannot be written to
            pass
    return finished


def train_in(folder: Path, settings: Settings, solver: Solver, dataset: Dataset, *, resume: bool = False) -> None:
    """Train, from the newest whole checkpoint on if there is one to `resume`, and write checkpoints.

    They are written every `settings.checkpoint_every` iterations, and when training is interrupted.

    Raises
    ------
    ArgumentError
        If there is a model, but no checkpoint: to start over would replace it.
    CheckpointError
        If the checkpoint is of a run with other settings.
    NonFiniteLossError
        As `Solver.train`; the checkpoints from before stay.
    OSError
        If a file cannot be written.
    """
    checkpoints, every = CheckpointFolder(folder / CHECKPOINTS), settings.checkpoint_every
    if resume:
        newest = checkpoints.newest(lambda text: print(f"xpconv: {text}", file=sys.stderr))
        if newest is None and (folder / FILES[0]).exists():
            raise ArgumentError(
                f"resume is {folder}, which holds a model but no whole checkpoint to go on from: to "
                "start over, which would replace that model, train into another folder"
            )
        if newest is None:
            print(f"no checkpoint in {checkpoints.path}: starting over", flush=True)
        else:
            solver.resume(newest)
            checkpoints.prune(newest)  # in case the run was killed between writing it and that
            print(f"resumed at iteration {solver.iteration}", flush=True)
    save_config(folder, settings, solver, dataset)
    solver.train(lambda solver: every and solver.iteration % every == 0 and checkpoints.save(solver))
    if solver.interrupted and solver.resumable:
        checkpoints.save(solver)

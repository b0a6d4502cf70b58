"""Checkpoint files, which hold the state of a training, and folders that keep the newest checkpoints."""

import itertools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from xpconv._validation import check_count
from xpconv.errors import CheckpointError
from xpconv.io._safetensors import ArrayFile, write_arrays

__all__ = ["CheckpointFolder", "read_checkpoint", "write_checkpoint"]

FILE_FORMAT = "xpconv-checkpoint"
FILE_NAME = re.compile(r"iteration-[0-9]{9,}\.safetensors")


def write_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state to a safetensors file, completely or not at all.

    Parameters
    ----------
    path : str or path
    state : mapping
        ``arrays``, NumPy arrays by name, and ``description``, plain data for JSON, as `Solver.state_dict` returns them.

    Raises
    ------
    CheckpointError
        If the description cannot be written as JSON.
    OSError
        If the file cannot be written; an existing file stays.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_checkpoint(
    ...         f"{folder}/a", {"arrays": {"x": np.ones(2)}, "description": {"epoch": 3}}
    ...     )
    ...     read_checkpoint(f"{folder}/a")
    {'arrays': {'x': array([1., 1.])}, 'description': {'epoch': 3}}
    """
    write_arrays(path, FILE_FORMAT, state["description"], state["arrays"])


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state that `write_checkpoint` wrote, for `Solver.load_state_dict`.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    CheckpointError
        If the file is missing, damaged or not a checkpoint.

    Examples
    --------
    >>> read_checkpoint("nothing.safetensors")
    Traceback (most recent call last):
    xpconv.errors.CheckpointError: there is no file nothing.safetensors...
    """
    file = ArrayFile(path, FILE_FORMAT)
    return {"arrays": file.read(file.specs, allow_nonfinite=file.specs), "description": file.description}


class Saveable(Protocol):
    """An object that can write its own checkpoint, such as a `Solver`."""

    iteration: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint."""


class CheckpointFolder:
    """A folder that keeps the newest checkpoints of one training.

    Parameters
    ----------
    path : str or path
        The folder is created when the first checkpoint is saved.
    keep : int
        Number of checkpoints to keep, 1 or more.

    Examples
    --------
    >>> CheckpointFolder("nowhere").newest() is None
    True
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 2) -> None:
        self.path, self.keep = Path(path), check_count("keep", keep)

    def files(self) -> list[Path]:
        """Return the paths of the checkpoints, oldest first; files with other names are not touched."""
        named = [path for path in self.path.glob("iteration-*.safetensors") if FILE_NAME.fullmatch(path.name)]
        return sorted((path for path in named if path.is_file()), key=lambda path: int(path.stem.split("-")[1]))

    def save(self, training: Saveable) -> Path:
        """Write a checkpoint, read it back, and only then remove older ones.

        Raises
        ------
        CheckpointError, NonFiniteLossError, OSError
            As for `Solver.save`, or if the new file proves damaged when it is read back. No checkpoint is removed then.
        """
        self.path.mkdir(exist_ok=True)
        path = self.path / f"iteration-{training.iteration:09d}.safetensors"
        training.save(path)
        ArrayFile(path, FILE_FORMAT)
        self.prune(path)
        return path

    def prune(self, newest: Path) -> None:
        """Remove all checkpoints except `newest`, which must be intact, and its ``keep - 1`` predecessors."""
        files = self.files()
        older = list(itertools.takewhile(lambda path: path != newest, files))
        kept = {newest, *older[max(len(older) - self.keep + 1, 0) :]}
        for path in files:
            if path not in kept:
                path.unlink()

    def newest(self, report: Callable[[str], object] = print) -> Path | None:
        """Return the newest intact checkpoint, or None; `report` is called with a line about each damaged one."""
        for path in reversed(self.files()):
            try:
                ArrayFile(path, FILE_FORMAT)
            except CheckpointError as error:
                report(f"skipping a checkpoint: {error}")
            else:
                return path
        return None

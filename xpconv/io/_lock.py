"""Folder locks, which the system releases when their process ends, even if it is killed."""

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from xpconv.errors import FolderInUseError

__all__ = ["LOCK_NAME", "is_locked", "lock_folder"]

LOCK_NAME = ".lock"


@contextmanager
def lock_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a folder until the block or the process ends.

    Parameters
    ----------
    folder : str or path
        The locked file is ``.lock`` in this folder; it is removed at the end of the block. A killed process leaves it
        behind, unlocked.

    Raises
    ------
    FolderInUseError
        If the folder is locked already, by this process or another.
    OSError
        If the folder is missing or read-only.

    Examples
    --------
    >>> import tempfile
    >>> with (
    ...     tempfile.TemporaryDirectory() as folder,
    ...     lock_folder(folder),
    ...     lock_folder(folder),
    ... ):
    ...     pass
    Traceback (most recent call last):
    xpconv.errors.FolderInUseError: ... is in use by another run: wait for that run to end, or choose another folder
    """
    path = Path(folder, LOCK_NAME)
    file = _open_locked(path)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not remove open files
            path.unlink()
        file.close()


def is_locked(folder: str | os.PathLike[str]) -> bool:
    """Return whether a process has locked a folder; True if that cannot be known.

    For an instant this locks a file that a killed process left.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     before = is_locked(folder)
    ...     with lock_folder(folder):
    ...         before, is_locked(folder)
    (False, True)
    """
    try:
        file = open(Path(folder, LOCK_NAME), "r+b")  # noqa: SIM115 - closed below, which unlocks it
    except FileNotFoundError:
        return False
    except OSError:
        return True
    with file:
        try:
            _lock(file)
        except OSError:
            return True
    return False


def _open_locked(path: Path) -> IO[bytes]:
    """Open and lock the file at `path`; repeat if its last owner removed the file in between."""
    while True:
        file = _open_regular(path)
        try:
            _lock(file)
        except OSError as error:
            file.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise OSError(
                    error.errno,
                    f"cannot be locked ({error.strerror}): choose a folder on another file system",
                    str(path),
                ) from error
            raise FolderInUseError(
                f"{path.parent} is in use by another run: wait for that run to end, or choose another folder"
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _open_regular(path: Path) -> IO[bytes]:
    """Open or create the file at `path`; opening a pipe must not wait for its other end."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a lock file of xpconv: remove it, or choose another folder", str(path))
    return os.fdopen(descriptor, "r+b")


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

"""Locks on folders, which end with the process that holds them."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from xpconv.errors import FolderInUseError

__all__ = ["lock_folder"]

LOCK_NAME = ".lock"


@contextmanager
def lock_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder until the block ends, or the process does, however it dies.

    Parameters
    ----------
    folder : str or path
        The lock is on a file ``.lock`` in it, which is there for as long as the block, or until the next holder.

    Raises
    ------
    FolderInUseError
        If another process holds it, or this one does already.
    OSError
        If the folder is missing or cannot be written to.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, lock_folder(folder), lock_folder(folder):
    ...     pass
    Traceback (most recent call last):
    xpconv.errors.FolderInUseError: ... is in use by another run: wait until it has ended, or take another folder
    """
    path = Path(folder, LOCK_NAME)
    while True:
        file = path.open("ab")
        try:
            _lock(file)
        except OSError as error:
            file.close()
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise
            raise FolderInUseError(
                f"{os.fspath(folder)} is in use by another run: wait until it has ended, or take another folder"
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # its last holder removed it after we had opened it
    try:
        yield
    finally:
        with suppress(OSError):  # while it is open, Windows keeps it
            path.unlink()
        file.close()


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

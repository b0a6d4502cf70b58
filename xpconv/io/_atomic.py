"""Atomic writes: after a crash or an error, a path holds the complete old file or the complete new one."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["atomic_path", "remove_temporary_files", "write_bytes"]

TEMPORARY_NAMES = f".{'[0-9a-f]' * 16}.tmp"
ABANDONED_SECONDS = 3600


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file, which replaces `path` when the block ends without an error.

    The temporary file is in the folder of `path` and is flushed to disk before it is renamed. After any failure the
    old file is unchanged and the temporary file is removed.

    Parameters
    ----------
    path : str or path
        The file to create or replace; a symbolic link is followed.

    Yields
    ------
    pathlib.Path
        The temporary file, which exists and is empty. Its name ends in ``.tmp``, so functions that infer the format
        from the suffix must be told the format.

    Raises
    ------
    OSError
        If the folder is missing or read-only, or the disk is full; the message contains `path`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder, "notes.txt")) as temporary:
    ...         num_characters = temporary.write_text("complete or not at all")
    ...     os.listdir(folder)
    ['notes.txt']
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.open("xb").close()
        _remove_abandoned_files(temporary)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise  # the error names another file
        raise OSError(error.errno, f"cannot write ({error.strerror})", str(path)) from error
    finally:
        with suppress(OSError):  # the temporary file was renamed, or never created
            temporary.unlink()


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Create or replace a file, as `atomic_path` does.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bytes(Path(folder, "notes.txt"), b"complete")
    ...     Path(folder, "notes.txt").read_text()
    'complete'
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def remove_temporary_files(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files that killed processes left; call it only while no other process writes to the folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, ".0123456789abcdef.tmp").touch()
    ...     remove_temporary_files(folder)
    ...     os.listdir(folder)
    []
    """
    for path in Path(folder).glob(TEMPORARY_NAMES):
        if path.is_file():
            path.unlink(missing_ok=True)


def _remove_abandoned_files(temporary: Path) -> None:
    """Remove temporary files so much older than `temporary` that the processes that wrote them must have been killed.

    Both times are the file system's, so that clocks need not agree.
    """
    now = temporary.stat().st_mtime
    for path in temporary.parent.glob(TEMPORARY_NAMES):
        with suppress(OSError):  # another process removed it, or this one must not
            if path.is_file() and now - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Flush the renaming to disk if the system can; the new file is in place in any case."""
    if os.name != "posix":  # only POSIX systems can open a folder
        return
    with suppress(OSError):  # some network and FUSE file systems cannot flush a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

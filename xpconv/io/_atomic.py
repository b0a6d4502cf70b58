"""Files that are either the old one or the new one, whole, whatever happens; folders that one process holds."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["atomic_path", "remove_temporary_files", "write_bytes"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file to write to, which becomes `path` when the block ends without an error.

    The temporary file lies in the folder of `path` and is flushed to the disk before it takes the name.
    After any failure the file that was there before is untouched and the temporary one is gone.

    Parameters
    ----------
    path : str or path
        The file to make or to replace; a symbolic link is followed.

    Yields
    ------
    pathlib.Path
        The temporary file: it exists, is empty, and ends in ``.tmp``, so tell the writer the format.

    Raises
    ------
    OSError
        The subclass that fits, with `path` in its text: the folder is missing or read-only, the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder, "notes.txt")) as temporary:
    ...         characters = temporary.write_text("whole or not at all")
    ...     os.listdir(folder)
    ['notes.txt']
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.open("xb").close()
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise  # it is about another file, which it names
        raise OSError(error.errno, f"cannot write ({error.strerror})", str(path)) from error
    finally:
        with suppress(OSError):  # it has been moved, or was never made
            temporary.unlink()


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Make or replace a file, as `atomic_path` does.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bytes(Path(folder, "notes.txt"), b"whole")
    ...     Path(folder, "notes.txt").read_text()
    'whole'
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def remove_temporary_files(folder: str | os.PathLike[str]) -> None:
    """Remove what writers left that were killed; call it where no other process writes, as in a held folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, ".0123456789abcdef.tmp").touch()
    ...     remove_temporary_files(folder)
    ...     os.listdir(folder)
    []
    """
    for path in Path(folder).glob(f".{'[0-9a-f]' * 16}.tmp"):
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

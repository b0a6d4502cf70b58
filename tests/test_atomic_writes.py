"""Atomic writes, and that every file of the package is written by them."""

import ast
import errno
import os
import re
import stat
import tempfile
import time
from pathlib import Path

import pytest

import xpconv
from xpconv.errors import FolderInUseError
from xpconv.io import _lock
from xpconv.io._atomic import atomic_path, remove_temporary_files, write_bytes
from xpconv.io._lock import lock_folder
from xpconv.training.checkpoint import CheckpointFolder, write_checkpoint

PACKAGE = Path(xpconv.__file__).parent


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("old")
    return path


def assert_only_old_file(target):
    assert target.read_text() == "old"
    assert os.listdir(target.parent) == [target.name]


def test_the_new_file_replaces_the_old_one_and_no_other_is_left(target):
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".tmp"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == [target.name]


def test_the_new_file_has_default_permissions(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
    (tmp_path / "b").write_text("new")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_symbolic_link_stays_and_points_to_the_new_file(target, tmp_path):
    link = tmp_path / "latest"
    link.symlink_to(target)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("bad weights"), KeyboardInterrupt()])
def test_an_error_or_interrupt_while_writing_keeps_the_old_file(target, error):
    def write():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert_only_old_file(target)


def test_a_full_disk_keeps_the_old_file_and_is_reported_with_its_name(target):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with atomic_path(target) as temporary:
                temporary.write_bytes(bytes(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(OSError, match=r"cannot write \(File too large\): .*model\.safetensors"):
        write()
    assert_only_old_file(target)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_after_writing_keeps_the_old_file_and_is_reported_with_its_name(target, monkeypatch, step):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with (
        pytest.raises(OSError, match=r"cannot write \(No space left on device\): .*model\.safetensors"),
        atomic_path(target) as temporary,
    ):
        temporary.write_text("new")
    assert_only_old_file(target)


def test_the_folder_is_flushed_and_one_that_cannot_be_is_no_error(target, monkeypatch):
    if os.name != "posix":
        pytest.skip("folders cannot be flushed here")
    plain, flushed = os.fsync, []

    def refuse_folders(descriptor):
        flushed.append(stat.S_IFMT(os.fstat(descriptor).st_mode))
        if flushed[-1] == stat.S_IFDIR:
            raise OSError(22, "Invalid argument")
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_bytes(target, b"new")
    assert target.read_text() == "new"
    assert flushed == [stat.S_IFREG, stat.S_IFDIR]


def test_a_missing_folder_is_reported_before_anything_is_written(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"cannot write \(No such file.*\): .*missing/model"),
        atomic_path(tmp_path / "missing" / "model"),
    ):
        pytest.fail("the block must not run")


def test_a_file_in_place_of_the_folder_is_refused(target):
    with pytest.raises(NotADirectoryError, match=r"cannot write .*model\.safetensors/a"), atomic_path(target / "a"):
        pytest.fail("the block must not run")
    assert_only_old_file(target)


def test_a_read_only_folder_is_refused_by_name(target, monkeypatch):
    plain = Path.open

    def refuse(self, mode="r", *args, **kwargs):  # as a read-only folder does for all users but root
        if "x" in mode:
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"cannot write .*model\.safetensors"), atomic_path(target):
        pytest.fail("the block must not run")
    monkeypatch.undo()
    assert_only_old_file(target)


def test_an_error_about_another_file_keeps_its_message(target, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights\.txt"), atomic_path(target) as temporary:
        temporary.write_text((tmp_path / "weights.txt").read_text())
    assert_only_old_file(target)


def test_write_bytes_is_atomic(target, monkeypatch):
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"cannot write \(No space left on device\): .*model\.safetensors"):
        write_bytes(target, b"new")
    assert_only_old_file(target)


def test_a_folder_without_write_permission_keeps_the_old_file():
    if os.name != "posix":
        pytest.skip("folders have no permissions here")
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "model.safetensors")
        target.write_text("old")
        os.chmod(folder, 0o555)
        try:
            if root:
                os.seteuid(65534)  # an ordinary user, since root may write to any folder
            with pytest.raises(PermissionError, match=r"cannot write .*model\.safetensors"):
                write_bytes(target, b"new")
        finally:
            if root:
                os.seteuid(0)
            os.chmod(folder, 0o700)
        assert_only_old_file(target)


def test_only_temporary_files_are_removed(target):
    (target.parent / ".0123456789abcdef.tmp").touch()
    kept = [".notes.tmp", "0123456789abcdef.tmp", ".0123456789abcdeg.tmp"]
    for name in kept:
        (target.parent / name).touch()
    (target.parent / ".fedcba9876543210.tmp").mkdir()
    kept.append(".fedcba9876543210.tmp")
    remove_temporary_files(target.parent)
    assert sorted(os.listdir(target.parent)) == sorted([target.name, *kept])
    remove_temporary_files(target.parent / "missing")


# ---- locks


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_place_of_the_lock_is_refused_and_stays(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OSError, match=r"is not a lock file of xpconv: remove it.*\.lock"), lock_folder(tmp_path):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == [".lock"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_reported_with_the_lock(tmp_path, monkeypatch, number):
    def fail(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_lock, "_lock", fail)
    with (
        pytest.raises(OSError, match=r"cannot be locked \(.*\): choose a folder .*\.lock") as caught,
        lock_folder(tmp_path),
    ):
        pytest.fail("the block must not run")
    assert caught.value.errno == number


def test_a_lock_that_was_replaced_before_it_was_locked_is_not_shared(tmp_path, monkeypatch):
    plain, calls = _lock._lock, []

    def replace_first(file):
        if not calls:
            (tmp_path / ".lock").unlink()  # as its last owner does
            (tmp_path / ".lock").touch()
        calls.append(file)
        plain(file)

    monkeypatch.setattr(_lock, "_lock", replace_first)
    with lock_folder(tmp_path):
        assert len(calls) == 2
        with pytest.raises(FolderInUseError), lock_folder(tmp_path):
            pytest.fail("the block must not run")


# ---- checkpoints


class Training:
    def __init__(self, iteration):
        self.iteration = iteration

    def save(self, path):
        write_checkpoint(path, {"arrays": {}, "description": {}})


def test_only_files_with_the_names_of_checkpoints_are_read_and_removed(tmp_path):
    folder = CheckpointFolder(tmp_path)
    others = ["iteration-000000001-good.safetensors", "iteration-best.safetensors", "iteration-1.safetensors"]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / "iteration-999999999.safetensors").mkdir()
    paths = [folder.save(Training(iteration)) for iteration in (2, 3, 999_999_998, 1_000_000_000)]
    expected = {*others, "iteration-999999999.safetensors", *(path.name for path in paths[-2:])}
    assert set(os.listdir(tmp_path)) == expected
    assert folder.newest() == paths[-1]
    folder.prune(paths[-2])
    assert set(os.listdir(tmp_path)) == expected - {paths[-1].name}


# ---- every file


def test_a_write_removes_the_temporary_files_that_killed_processes_left_long_ago(target):
    for name, age in ((".0123456789abcdef.tmp", 4000), (".fedcba9876543210.tmp", 3000), (".notes.tmp", 4000)):
        (target.parent / name).touch()
        os.utime(target.parent / name, times=(time.time() - age,) * 2)
    write_bytes(target, b"new")
    assert sorted(os.listdir(target.parent)) == [".fedcba9876543210.tmp", ".notes.tmp", target.name]


WRITERS = {"write_text", "write_bytes", "tofile", "savefig", "savetxt", "save_file", "copyfile", "move", "touch"}


def writes_directly(call):
    """Return whether a call writes to a file whose variable is not called `temporary`."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    values = [ast.unparse(value) for value in (call.func, *call.args, *(k.value for k in call.keywords))]
    if name == "open" and "temporary.open" not in values:
        return any(re.fullmatch("'[wax][bt+]*'", value) for value in values)
    return name in WRITERS and isinstance(call.func, ast.Attribute) and not any("temporary" in v for v in values)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_is_written_atomically(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert path.name in ("_atomic.py", "_lock.py") or not [ast.unparse(call) for call in calls if writes_directly(call)]

"""Write a file or a whole folder so that a reader sees the old one or the new one, never a half.

    with atomic_folder(Path("bundle"), is_ours=...) as tmp:   # .bundle.tmp-XXXX beside it
        (tmp / "manifest.json").write_text(...)
    # here: tmp was fsynced and renamed to bundle; on any exception it is gone and the old folder stands

A temporary sibling is used, not the system's temporary folder: a rename is atomic only within a filesystem.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from nsn_edge.errors import NsnEdgeError, UsageError


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to disk; filesystems that cannot do it for folders are let off."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step.

    Raises:
        NsnEdgeError: the disk is full or the folder cannot be written.
    """
    with named_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", dir=path.parent)
        tmp = Path(name)
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            tmp.chmod(0o666 & ~_umask())
            tmp.replace(path)
        except BaseException:
            tmp.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(target: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `target` when the block ends well.

    Args:
        target: where the folder shall stand.
        is_ours: says whether an existing folder may be replaced. One that holds something else is refused,
            so that a mistyped `-o` never deletes a home folder.

    Raises:
        UsageError: `target` is a file, or a folder that is not ours and not empty.
        NsnEdgeError: the disk is full or the folder cannot be written.
    """
    check_replaceable(target, is_ours)
    with named_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        try:
            tmp.chmod(0o777 & ~_umask())
            yield tmp
            for file in tmp.rglob("*"):
                fsync_path(file)
            fsync_path(tmp)
            _swap_in(tmp, target)
        finally:
            shutil.rmtree(tmp, ignore_errors=True)


def check_replaceable(target: Path, is_ours: Callable[[Path], bool]) -> None:
    """Refuse early, before long work, a folder that `atomic_folder` would refuse in the end.

    Raises:
        UsageError: `target` is a file, or a folder that is not ours and not empty.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target} exists and is not a folder", "name another output folder")
    if target.is_dir() and any(target.iterdir()) and not is_ours(target):
        raise UsageError(f"{target} holds files that nsn-edge did not write", "name an empty or a new folder instead")


@contextlib.contextmanager
def named_disk_errors(path: Path) -> Iterator[None]:
    """Turn the disk's own errors into ours: one line, with the path and the way out.

    Raises:
        NsnEdgeError: for a full disk, a quota, a read-only filesystem or missing permission.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_existing_parent(path)).free / 1e6
            raise NsnEdgeError(
                f"no space left on the disk while writing {path}; nothing was kept",
                f"{free:.0f} MB are free there: make room or write elsewhere",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise NsnEdgeError(f"cannot write {path}: {error.strerror}", "write to a folder you own") from error
        raise


def _swap_in(tmp: Path, target: Path) -> None:
    """Put `tmp` where `target` stands. POSIX cannot replace a full folder in one call, hence two renames;
    if the second fails the first is undone."""
    if not target.exists():
        tmp.rename(target)
    else:
        aside = tmp.with_name(tmp.name.replace(".tmp-", ".old-"))
        target.rename(aside)
        try:
            tmp.rename(target)
        except BaseException:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    fsync_path(target.parent)


def _existing_parent(path: Path) -> Path:
    for parent in (path, *path.absolute().parents):
        if parent.exists():
            return parent
    return Path("/")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current

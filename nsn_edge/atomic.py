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

_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_ELSEWHERE = "write to a folder you own"


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


def atomic_write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` by `data` in one step.

    A link goes on pointing where it points: the file behind it is replaced. A device or a pipe (`/dev/stdout`) is
    written into: renaming a file over it would destroy it.

    Raises:
        UsageError: `path` is a folder.
        NsnEdgeError: the disk is full or the file cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", "name a file")
    with named_disk_errors(path, every=True):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        path = Path(os.path.realpath(path))
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
    with named_disk_errors(target, every=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    with named_disk_errors(target):
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
        UsageError: `target` is a file or inside one, or a folder that is not ours and not empty.
        NsnEdgeError: the folder around it cannot be written.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UsageError(f"{target} exists and is not a folder", "name another output folder")
    if target.is_dir() and any(target.iterdir()) and not is_ours(target):
        raise UsageError(f"{target} holds files that this command did not write", "name an empty or a new folder")
    parent = _existing_parent(target.absolute().parent)
    if not parent.is_dir():
        raise UsageError(f"{target} cannot be a folder: {parent} is a file", "name another output folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise NsnEdgeError(f"cannot write {target}: no permission in {parent}", _ELSEWHERE)


@contextlib.contextmanager
def named_disk_errors(path: Path, *, every: bool = False) -> Iterator[None]:
    """Turn the disk's own errors into ours: one line, with the path and the way out.

    Args:
        path: what is being written.
        every: name every `OSError`; for a block that does nothing but write `path`, so that no other file is meant.

    Raises:
        NsnEdgeError: for a full disk, a quota, a file too large for the filesystem, a read-only filesystem, missing
            permission or a failing disk.
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
        if error.errno == errno.EFBIG:
            raise NsnEdgeError(
                f"{path} is larger than a file may be there; nothing was kept",
                "FAT32 stops at 4 GB, and `ulimit -f` shows your own limit: raise it or write elsewhere",
            ) from error
        if every or error.errno in _REFUSALS:
            raise NsnEdgeError(f"cannot write {path}: {error.strerror or error}", _ELSEWHERE) from error
        raise


def _swap_in(tmp: Path, target: Path) -> None:
    """Put `tmp` where `target` stands. POSIX cannot replace a full folder in one call, hence two renames;
    if the second fails the first is undone."""
    if not target.exists():
        tmp.rename(target)
    else:
        aside = tmp.with_name(tmp.name.replace(".tmp-", ".old-"))
        try:
            target.rename(aside)
            tmp.rename(target)
        except BaseException:  # an interrupt may come between the two
            if aside.exists() and not target.exists():
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

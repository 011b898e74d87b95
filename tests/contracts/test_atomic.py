"""Atomic writes: a reader sees the old content or the new, whatever goes wrong in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nsn_edge import atomic
from nsn_edge.atomic import atomic_folder, atomic_write_bytes
from nsn_edge.errors import NsnEdgeError, UsageError


def is_ours(path: Path) -> bool:
    return (path / "mark").is_file()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder of ours that stands already."""
    path = tmp_path / "out"
    path.mkdir()
    (path / "mark").write_text("old")
    return path


def write_half_and_fail(target: Path, error: BaseException) -> None:
    with atomic_folder(target, is_ours) as folder:
        (folder / "mark").write_text("half")
        raise error


def assert_untouched(old: Path) -> None:
    assert (old / "mark").read_text() == "old"
    assert list(old.parent.iterdir()) == [old], "something was left behind"


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    with atomic_folder(target, is_ours) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "mark").write_text("new")
        assert not target.exists()
    assert (target / "deep" / "mark").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o777 & ~atomic._umask()


def test_a_folder_of_ours_is_replaced(old: Path) -> None:
    (old / "leftover").write_text("of the old one")
    with atomic_folder(old, is_ours) as folder:
        (folder / "mark").write_text("new")
        assert (old / "mark").read_text() == "old"
    assert {file.name: file.read_text() for file in old.iterdir()} == {"mark": "new"}
    assert list(old.parent.iterdir()) == [old]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt(), SystemExit(3)])
def test_whatever_ends_the_block_leaves_the_old_folder(old: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_half_and_fail(old, error)
    assert_untouched(old)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "no space left"),
        (errno.EFBIG, "larger than a file may be"),
        (errno.EROFS, "cannot write"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_old_folder(old: Path, number: int, message: str) -> None:
    with pytest.raises(NsnEdgeError, match=message) as caught:
        write_half_and_fail(old, OSError(number, os.strerror(number)))
    assert str(old) in caught.value.message
    assert "\n" not in str(caught.value)
    assert_untouched(old)


def test_a_disk_that_fills_up_at_the_last_moment(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "fsync_path", full)
    with pytest.raises(NsnEdgeError, match="no space left"), atomic_folder(old, is_ours) as folder:
        (folder / "mark").write_text("new")
    assert_untouched(old)


def test_a_failing_rename_brings_the_old_folder_back(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".tmp-" in self.name:
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(NsnEdgeError, match="input/output"), atomic_folder(old, is_ours) as folder:
        (folder / "mark").write_text("new")
    assert_untouched(old)


def test_an_interrupt_between_the_two_renames_brings_the_old_folder_back(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if self == old:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(old, is_ours) as folder:
        (folder / "mark").write_text("new")
    assert_untouched(old)


def test_foreign_folders_files_and_links_are_refused(old: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").write_text("dear")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(old)
    for name, message in (("home", "did not write"), ("file", "not a folder"), ("link", "not a folder")):
        with pytest.raises(UsageError, match=message), atomic_folder(tmp_path / name, is_ours):
            pytest.fail("the block must not run")
    assert (tmp_path / "home" / "letters").read_text() == "dear"
    assert (tmp_path / "file").read_text() == "text"
    assert (old / "mark").read_text() == "old"


def test_a_folder_inside_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match="file is a file"), atomic_folder(tmp_path / "file" / "out", is_ours):
        pytest.fail("the block must not run")
    with pytest.raises(NsnEdgeError, match=r"cannot write .*file/out: "):
        atomic_write_bytes(tmp_path / "file" / "out", b"new")
    assert (tmp_path / "file").read_text() == "text"


def test_a_folder_without_permission_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the real one lets root do anything
    with pytest.raises(NsnEdgeError, match=f"no permission in {tmp_path}"):
        atomic.check_replaceable(tmp_path / "deep" / "out", is_ours)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out", is_ours) as folder:
        (folder / "mark").write_text("new")
    assert (tmp_path / "out" / "mark").read_text() == "new"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file"
    atomic_write_bytes(file, b"one")
    atomic_write_bytes(file, b"two")
    assert file.read_bytes() == b"two"
    assert list(file.parent.iterdir()) == [file]
    assert file.stat().st_mode & 0o777 == 0o666 & ~atomic._umask()


def test_a_folder_is_not_replaced_by_a_file(old: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        atomic_write_bytes(old, b"new")
    assert_untouched(old)


def test_a_link_goes_on_pointing_where_it_points(tmp_path: Path) -> None:
    file, link = tmp_path / "deep" / "file", tmp_path / "link"
    link.symlink_to(file)
    atomic_write_bytes(link, b"one")
    atomic_write_bytes(link, b"two")
    assert link.readlink() == file
    assert file.read_bytes() == b"two"


def test_a_pipe_is_written_into_and_stays_one(tmp_path: Path) -> None:
    """As a device does, /dev/stdout for one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic_write_bytes(pipe, b"new")
        assert os.read(reader, 10) == b"new"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")

    def failing(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(NsnEdgeError, match=str(file)):
        atomic_write_bytes(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_that_is_not_the_disks_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "out", is_ours):
        (tmp_path / "absent").read_bytes()
    assert list(tmp_path.iterdir()) == []

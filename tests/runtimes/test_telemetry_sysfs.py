"""Every way in which a sensor file is known to fail is "unknown", without an exception and without a retry storm."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sensor_tree import HandClock

from nsn_edge.runtimes.telemetry.sysfs import LARGEST_FILE_BYTES, SensorFiles, parse_number


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def files(clock: HandClock) -> SensorFiles:
    return SensorFiles(clock, retry_after_s=5.0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every path that is opened with `os.open`."""
    paths: list[Path] = []
    real = os.open

    def spy(path: Any, *arguments: Any, **keywords: Any) -> int:
        paths.append(Path(path))
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", spy)
    return paths


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A pipe with a writer and no data: reading it answers EAGAIN, as a power-gated zone does."""
    path = tmp_path / "temp"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    yield path, writer
    os.close(writer)
    os.close(reader)


def test_reads_what_is_there(files: SensorFiles, tmp_path: Path) -> None:
    (tmp_path / "temp").write_text("45500\n")
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson AGX Thor Developer Kit\0")
    assert files.number(tmp_path / "temp") == 45500.0
    assert files.text(tmp_path / "model") == "NVIDIA Jetson AGX Thor Developer Kit"


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"0\n", 0.0),
        (b"-392", -392.0),
        (b"+1.5e3", 1500.0),
        (b"", None),
        (b"\n", None),
        (b"NaN", None),
        (b"inf", None),
        (b"1e999", None),
        (b"-256", None),
        (b"-256000\n", None),
        (b"-256.0", None),
        (b"1_000", None),
        (b"0x10", None),
        (b"12 34", None),
        (b"N/A", None),
        ("٤٥".encode(), None),
        (b"\xff\xfe\x00", None),
        (b"\x00\x00", None),
    ],
)
def test_what_counts_as_a_number(files: SensorFiles, tmp_path: Path, content: bytes, number: float | None) -> None:
    (tmp_path / "temp").write_bytes(content)
    assert files.number(tmp_path / "temp") == number


@given(content=st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_a_finite_number_or_unknown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "temp").write_bytes(content)
    value = SensorFiles().number(tmp_path / "temp")
    assert value is None or abs(value) < float("inf")


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_that_is_no_placeholder_is_read_back(value: float) -> None:
    assert parse_number(repr(value)) == (None if value in (-256.0, -256000.0) else value)


def test_a_gated_zone_is_unknown_and_left_alone_for_a_while(
    files: SensorFiles, clock: HandClock, gated: tuple[Path, int], opened: list[Path]
) -> None:
    path, writer = gated
    assert files.number(path) is None
    for _ in range(20):
        clock.now_s += 0.2
        assert files.number(path) is None
    assert len(opened) == 1, "a refusal must not be answered with a storm of retries"
    os.write(writer, b"45500")
    clock.now_s += 5.0
    assert files.number(path) == 45500.0


def test_a_pipe_without_a_writer_does_not_block(files: SensorFiles, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "temp")
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(files.number(tmp_path / "temp")), daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert answers == [None]


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINVAL, errno.EIO, errno.ENODATA, errno.ENODEV, errno.EACCES])
def test_a_refusing_driver_is_unknown(
    files: SensorFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    (tmp_path / "temp").write_text("45500")

    def refuse(*_: object) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "read", refuse)
    assert files.text(tmp_path / "temp") is None


def test_a_vanished_file_is_unknown_and_found_again_at_once(files: SensorFiles, tmp_path: Path) -> None:
    path = tmp_path / "temp"
    path.write_text("1")
    assert files.number(path) == 1.0
    path.unlink()
    assert files.number(path) is None
    path.write_text("2")
    assert files.number(path) == 2.0


def test_a_folder_in_place_of_a_file_is_unknown(files: SensorFiles, tmp_path: Path) -> None:
    assert files.text(tmp_path) is None


def test_a_file_below_a_file_is_unknown(files: SensorFiles, tmp_path: Path) -> None:
    (tmp_path / "zone").write_text("x")
    assert files.text(tmp_path / "zone/temp") is None


def test_a_huge_file_is_unknown_and_not_read_whole(
    files: SensorFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "temp").open("wb") as stream:
        stream.truncate(1 << 40)
    asked: list[int] = []
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: asked.append(size) or real(fd, size))
    assert files.text(tmp_path / "temp") is None
    assert asked == [LARGEST_FILE_BYTES + 1]


def test_no_descriptor_is_left_open(files: SensorFiles, clock: HandClock, gated: tuple[Path, int]) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(10):
        clock.now_s += 10.0
        files.text(gated[0])
        files.text(gated[0].parent)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_folders_are_listed_by_name_or_not_at_all(files: SensorFiles, tmp_path: Path) -> None:
    for name in ("zone1", "zone0", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in files.folders(tmp_path, "zone")] == ["zone0", "zone1"]
    assert files.folders(tmp_path / "absent") == []

"""Reading one sensor file, whatever it does.

A power-gated zone answers EAGAIN, and Python's buffered files turn that into a TypeError, an empty string or None
depending on how they were opened; so this reads with `os.open` and `os.read`. Zones also answer EINVAL, EIO or ENODATA,
vanish, or hold nothing, `NaN` or a placeholder. All of that is "unknown".

Asking a gated zone again costs about 30 ms a time on some boards, hence the pause after a refusal.
"""

from __future__ import annotations

import errno
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from nsn_edge.runtimes.telemetry.base import Clock

LARGEST_FILE_BYTES = 4096
"""A sysfs attribute is at most one page."""

PLACEHOLDERS = frozenset({-256.0, -256000.0})
"""What drivers and loggers write for a zone that is off."""

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)


FORBIDDEN_RETRY_S = 300.0
"""How long a file that one may not read is left alone: rights change by hand, once."""


class SensorFiles:
    """Reads small files; None for each that has no answer. Never raises for what a file does."""

    def __init__(self, clock: Clock = time.monotonic, retry_after_s: float = 5.0) -> None:
        """
        Args:
            clock: monotonic seconds.
            retry_after_s: how long a file that refused (EAGAIN, EIO, ...) is left alone. A file that is not there is
                looked for each time: that costs nothing; one that is forbidden after `FORBIDDEN_RETRY_S`.
        """
        self._clock = clock
        self._retry_after_s = retry_after_s
        self._refused: dict[Path, tuple[float, int]] = {}

    @property
    def refusals(self) -> Mapping[Path, int]:
        """Files that refused lately, with the error's number (`errno`); a file that is not there does not refuse."""
        return {path: code for path, (_, code) in self._refused.items()}

    def text(self, path: Path) -> str | None:
        """The file's text without surrounding blanks, None when there is none."""
        refused = self._refused.get(path)
        if refused is not None:
            refused_s, code = refused
            pause_s = FORBIDDEN_RETRY_S if code in (errno.EACCES, errno.EPERM) else self._retry_after_s
            if self._clock() - refused_s < pause_s:
                return None
            del self._refused[path]
        try:
            data = _read_small(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                self._refused[path] = (self._clock(), error.errno or errno.EIO)
            return None
        try:
            # The device tree's strings end with a NUL.
            return data.decode("ascii").strip(" \t\r\n\0") or None
        except UnicodeDecodeError:
            return None

    def number(self, path: Path) -> float | None:
        """The file's number, None when it is missing, not a number, not finite, or a placeholder."""
        return parse_number(self.text(path))

    def folders(self, parent: Path, prefix: str = "") -> list[Path]:
        """The entries of a folder whose names begin with `prefix`, by name; none when it cannot be listed."""
        try:
            return sorted(parent / name for name in os.listdir(parent) if name.startswith(prefix))  # noqa: PTH208
        except OSError:
            return []


def parse_number(text: str | None) -> float | None:
    """A sensor's number in decimal notation, None for anything else and for placeholders."""
    if text is None or not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) and value not in PLACEHOLDERS else None


def _read_small(path: Path) -> bytes:
    """At most a page in one read.

    O_NONBLOCK keeps a pipe in the file's place from blocking the caller; regular files do not mind it.

    Raises:
        OSError: whatever the file answers; EFBIG when it is larger than any sensor's.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        data = os.read(descriptor, LARGEST_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > LARGEST_FILE_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return data

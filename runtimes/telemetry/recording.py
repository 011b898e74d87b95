"""Write a trace while it happens: a line a reading, each in one write, so that a kill loses at most the last one.

with TraceWriter(Path("shift.csv")) as writer:
    writer.write(source.read())
load_trace("shift.csv")
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from nsn_edge._version import __version__
from nsn_edge.errors import NsnEdgeError, UsageError
from nsn_edge.runtimes.telemetry.base import Reading
from nsn_edge.runtimes.telemetry.trace_columns import COLUMNS, cells_of, format_row


class TraceWriter:
    """A trace that grows. A context manager: it holds a file."""

    def __init__(self, path: Path | str) -> None:
        """
        Args:
            path: where the trace shall stand; nothing may stand there yet.

        Raises:
            UsageError: something stands there, or it cannot be written there.
        """
        self.path = Path(path)
        try:
            self._file: int | None = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError as error:
            raise UsageError(f"{self.path} is there already", "name a new file: a recording replaces none") from error
        except OSError as error:
            raise UsageError(
                f"cannot write {self.path}: {error.strerror}", "name a file in a folder you own"
            ) from error
        self._first_s: float | None = None
        self._write(f"# recorded by nsn-edge {__version__}\n{format_row(COLUMNS)}")

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice is no error."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def write(self, reading: Reading) -> None:
        """Append a reading; times count from the first one.

        Raises:
            NsnEdgeError: it cannot be written, or the disk is full.
            ValueError: the file is closed.
        """
        if self._first_s is None:
            self._first_s = reading.time_s
        self._write(format_row(cells_of(replace(reading, time_s=reading.time_s - self._first_s))))

    def _write(self, text: str) -> None:
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        data = text.encode()
        try:
            while data:  # one write but on a full disk, whose error comes with the second
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise NsnEdgeError(
                f"cannot write {self.path}: {error.strerror}", "the readings before this one are kept"
            ) from error

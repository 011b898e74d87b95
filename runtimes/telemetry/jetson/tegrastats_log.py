"""A log of tegrastats (`tegrastats --logfile FILE`, or its output in a file), read as telemetry.

Lines with a date (JetPack 5 and later) tell their time; those without are taken to be `interval_s` apart, by default a
second like tegrastats' own. The clock of a device may be set while it logs: where it runs backwards, time goes on by
one interval. A gap stays a gap. Comments (`#`) and blank lines are skipped, and so is a last line that was cut before
it said anything.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

from nsn_edge.errors import TraceError
from nsn_edge.runtimes.telemetry.base import Reading
from nsn_edge.runtimes.telemetry.jetson.tegrastats_line import LONGEST_LINE, TegrastatsLine, parse_line

_HINT = "a log holds the lines that tegrastats prints, one each"


def is_tegrastats_log(path: Path) -> bool:
    """Whether the first line that is neither blank nor a comment is one of tegrastats. False where it cannot be
    read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4 * LONGEST_LINE).decode(errors="replace").removeprefix("\ufeff")
    except OSError:
        return False
    first = next((line for line in io.StringIO(head) if not _is_skipped(line)), "")
    return parse_line(first) is not None


def parse(path: Path, interval_s: float = 1.0) -> tuple[tuple[int, Reading], ...]:
    """The lines as readings, with times from 0, each with the number of its line.

    Args:
        path: the log.
        interval_s: between lines that do not tell their time.

    Raises:
        TraceError: the file cannot be read, holds no line of tegrastats, or another line among them.
    """
    try:
        text = path.read_bytes().decode(errors="replace").removeprefix("\ufeff")
    except OSError as error:
        raise TraceError(f"cannot read the log {path}: {error.strerror}", _HINT) from error
    lines = list(io.StringIO(text))  # at line feeds alone, as people count lines
    parsed: list[tuple[int, TegrastatsLine]] = []
    for number, line in enumerate(lines, start=1):
        if _is_skipped(line):
            continue
        found = parse_line(line)
        if found is not None:
            parsed.append((number, found))
        elif number < len(lines):
            raise TraceError(f"{path}, line {number} is none of tegrastats: {line.strip()[:40]!r}", _HINT)
    if not parsed:
        raise TraceError(f"{path} holds no line of tegrastats", _HINT)
    times_s = _times_s([line for _, line in parsed], interval_s)
    return tuple((number, line.reading(time_s)) for (number, line), time_s in zip(parsed, times_s, strict=True))


def _is_skipped(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _times_s(lines: Sequence[TegrastatsLine], interval_s: float) -> list[float]:
    times_s = [0.0]
    for before, line in itertools.pairwise(lines):
        step_s = interval_s
        if before.local_time is not None and line.local_time is not None:
            passed_s = (line.local_time - before.local_time).total_seconds()
            # The stamps are whole seconds: faster logs repeat one.
            step_s = passed_s if passed_s >= 0.0 else interval_s
        times_s.append(times_s[-1] + step_s)
    return times_s

"""A Jetson as one source: its files first, and tegrastats or jtop for what the files do not give."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from nsn_edge.runtimes.telemetry.base import FIELDS, Clock, Reading
from nsn_edge.runtimes.telemetry.jetson.board import JetsonBoard, identify
from nsn_edge.runtimes.telemetry.jetson.jtop import JtopSource, has_jtop
from nsn_edge.runtimes.telemetry.jetson.power_mode import Run, run_program
from nsn_edge.runtimes.telemetry.jetson.sensors import JetsonSensors
from nsn_edge.runtimes.telemetry.jetson.tegrastats import COMMAND, TegrastatsSource, find_tegrastats

PATIENCE_S = 5.0
"""How long something must have been lacking before another source is asked for it."""


class FallbackSource(Protocol):
    """A source that holds something."""

    def read(self) -> Reading: ...

    def close(self) -> None: ...


class JetsonTelemetry:
    """What a Jetson says of itself. A context manager: it may hold a child process or a socket, from the moment that
    the files turn out not to tell enough."""

    def __init__(
        self,
        board: JetsonBoard,
        sensors: JetsonSensors,
        fallbacks: Sequence[Callable[[], FallbackSource | None]] = (),
        clock: Clock = time.monotonic,
    ) -> None:
        """
        Args:
            board: which Jetson.
            sensors: its files.
            fallbacks: open a further source each, or say that there is none; asked in this order, each when something
                has been lacking for `PATIENCE_S`.
            clock: monotonic seconds.
        """
        self.board = board
        self.sensors = sensors
        self._waiting = list(fallbacks)
        self._opened: list[FallbackSource] = []
        self._clock = clock
        self._lacking_since_s: float | None = None

    def __enter__(self) -> JetsonTelemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what was opened. Reading goes on with the files alone. Closing twice is no error."""
        self._waiting.clear()
        while self._opened:
            self._opened.pop().close()

    @property
    def fallbacks(self) -> tuple[FallbackSource, ...]:
        """The further sources that are open."""
        return tuple(self._opened)

    def read(self) -> Reading:
        """The first known value of each field. Never waits for a program."""
        readings = [self.sensors.read(), *(source.read() for source in self._opened)]
        merged = first_known(readings, self._clock())
        self._look_further(merged)
        return merged

    def _look_further(self, merged: Reading) -> None:
        """Open the next source when the ones so far leave out what files should tell."""
        lacking = {name for name in self._lacks() if getattr(merged, name) in (None, {})}
        now = self._clock()
        if not lacking or not self._waiting:
            self._lacking_since_s = None
        elif self._lacking_since_s is None:
            self._lacking_since_s = now
        elif now - self._lacking_since_s >= PATIENCE_S:
            source = self._waiting.pop(0)()
            if source is not None:
                self._opened.append(source)
                self._lacking_since_s = now

    def _lacks(self) -> frozenset[str]:
        lacks = self.sensors.lacks()
        # Thor's load is NVML's to tell; its tegrastats does not.
        return lacks - {"gpu_load_pct"} if self.board.family == "Thor" else lacks


def first_known(readings: Sequence[Reading], time_s: float) -> Reading:
    """One reading of several: of each field the first known value.

    A limit stays with its temperature, and the board's power with its rails. The age is that of the oldest reading of
    which something was taken.
    """
    known: dict[str, Any] = {}
    age_s = 0.0
    for reading in readings:
        left_out = {"temperature_limit_c"} if "temperature_c" in known else set()
        if "rails_mw" in known:
            left_out.add("power_mw")
        taken = {
            name: value
            for name in FIELDS
            if name not in known and name not in left_out and (value := getattr(reading, name)) is not None
        }
        if reading.rails_mw and "rails_mw" not in known:
            taken["rails_mw"] = reading.rails_mw
        if taken:
            age_s = max(age_s, reading.age_s)
            known |= taken
    return Reading(time_s, age_s=age_s, **known)


def jetson_telemetry(
    root: Path = Path("/"), clock: Clock = time.monotonic, run: Run = run_program, jtop: Any = None
) -> JetsonTelemetry | None:
    """The Jetson under `root`; None where there is none.

    Args:
        root: where `sys/`, `etc/`, `var/`, `usr/` and `run/` are. Programs are looked for in it, too.
        clock: monotonic seconds.
        run: runs `nvpmodel -q`.
        jtop: the module; looked for by default, and only where its service runs.
    """
    board = identify(root)
    if board is None:
        return None

    def open_tegrastats() -> FallbackSource | None:
        program = find_tegrastats(root)
        return None if program is None else TegrastatsSource((str(program), *COMMAND[1:]), clock)

    def open_jtop() -> FallbackSource | None:
        return JtopSource(jtop, clock) if jtop is not None or has_jtop(root) else None

    return JetsonTelemetry(board, JetsonSensors(root, clock, run), (open_tegrastats, open_jtop), clock)

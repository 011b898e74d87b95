"""tegrastats as a source: runs the program as a child and listens to its lines.

    with TegrastatsSource() as source:
        source.read()

The fallback for what the board's files do not give. The child is started again, after a pause that grows, when it dies,
falls silent or is not there; lines that are cut or none of its own are left out. A program of our own session is ended
by its process group, as wrappers have children.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from nsn_edge.runtimes.telemetry.base import Clock
from nsn_edge.runtimes.telemetry.jetson.listener import PAUSES_S, Listener
from nsn_edge.runtimes.telemetry.jetson.tegrastats_line import LONGEST_LINE, parse_line

COMMAND = ("tegrastats", "--interval", "1000")
"""A line a second."""

_GRACE_S = 1.0
"""For the child to end by itself."""


def find_tegrastats(root: Path = Path("/")) -> Path | None:
    """The program where Jetson Linux installs it, None where it is not there or not ours to run."""
    path = root / "usr/bin/tegrastats"
    return path if os.access(path, os.X_OK) else None


class TegrastatsSource(Listener):
    """Temperature, rails, GPU load and clock, CPU clock, from the lines of a running tegrastats."""

    def __init__(
        self,
        command: Sequence[str] = COMMAND,
        clock: Clock = time.monotonic,
        max_age_s: float = 5.0,
        pauses_s: Sequence[float] = PAUSES_S,
        silence_s: float = 10.0,
    ) -> None:
        """
        Args:
            command: the program and its arguments.
            clock: monotonic seconds.
            max_age_s: how long a line is given as known.
            pauses_s: before the program is started again.
            silence_s: a child that says nothing for so long (by the wall, not by `clock`) is ended and started again.
        """
        super().__init__(clock, max_age_s, pauses_s)
        self._command = tuple(command)
        self._silence_s = silence_s
        self._wake_read, self._wake_write = os.pipe()
        self._let_go = threading.Lock()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the child, then as `Listener.close`."""
        super().close(timeout_s)
        if self._thread is None or not self._thread.is_alive():
            with self._let_go:
                for descriptor in (self._wake_read, self._wake_write):
                    if descriptor >= 0:
                        os.close(descriptor)
                self._wake_read = self._wake_write = -1

    def _interrupt(self) -> None:
        with self._let_go:
            if self._wake_write >= 0:
                os.write(self._wake_write, b"x")

    def _listen(self) -> None:
        child = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            # Control-C in a terminal is for us, and its children go with it when it is ended.
            start_new_session=True,
        )
        try:
            self._follow(child)
        finally:
            _end(child)

    def _follow(self, child: subprocess.Popen[bytes]) -> None:
        """Its lines until it ends, falls silent, or we close."""
        assert child.stdout is not None
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while not self._closing.is_set():
                ready = selector.select(self._silence_s)
                if not ready:
                    raise TimeoutError(f"{self._command[0]} said nothing for {self._silence_s:g} s")
                if self._closing.is_set():
                    return
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data:
                    return  # what is left is a line that was cut
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._take(line)
                if len(rest) > LONGEST_LINE:
                    rest = b""  # no line of tegrastats; what follows begins somewhere within it and is none either

    def _take(self, line: bytes) -> None:
        parsed = parse_line(line.decode(errors="replace") + "\n")
        if parsed is not None:
            self._hear(parsed.reading(self._clock()))


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and its children, and take its exit status, so that no zombie stays."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        # It may be gone by itself, or run with another user's rights.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, kind)
        try:
            child.wait(_GRACE_S)
            break
        except subprocess.TimeoutExpired:
            continue
    if child.stdout is not None:
        child.stdout.close()

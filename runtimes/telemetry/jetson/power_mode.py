"""The power mode by its name: read, never set. Some changes of it reboot the board.

    /var/lib/nvpmodel/status     pmode:0002 fmode:quiet                          what was set last
    /etc/nvpmodel.conf           < POWER_MODEL ID=2 NAME=MODE_15W_6CORE >        the board's table
    nvpmodel -q                  NV Fan Mode:quiet / NV Power Mode: MODE_15W_6CORE / 2

The number means another mode on every board, so only the name is given. The files cost nothing and are looked at each
time. Where they do not tell, the program is asked, in a thread of its own and rarely: it takes its time, may hang, and
without privileges can print `NVPM ERROR` and still exit with 0.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nsn_edge.runtimes.telemetry.base import Clock
from nsn_edge.runtimes.telemetry.sysfs import SensorFiles

_log = logging.getLogger(__name__)

Run = Callable[[Sequence[str], float], "str | None"]
"""Run a program to its end: its arguments and the longest time in seconds; its output, None when it failed."""

_LARGEST_TABLE_BYTES = 1 << 20
_STATUS = re.compile(r"pmode:(\d{1,4})\b", re.ASCII)
_NAME = r"([A-Za-z0-9][\w.+-]{0,63})"
_SAYS_MODE = re.compile(rf"^NV Power Mode[ \t]*:[ \t]*{_NAME}[ \t]*\r?$", re.MULTILINE | re.ASCII)
_MODE_OF_TABLE = re.compile(rf"^[ \t]*<\s*POWER_MODEL\s+ID=(\d{{1,4}})\s+NAME={_NAME}\s*>", re.MULTILINE | re.ASCII)


def run_program(arguments: Sequence[str], timeout_s: float) -> str | None:
    """Run a program without input; its output, None when it is absent, fails or takes too long (it is killed then)."""
    try:
        done = subprocess.run(
            list(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def parse_nvpmodel(output: str) -> str | None:
    """The mode's name in what `nvpmodel -q` printed; None when it holds none, as after `NVPM ERROR`."""
    found = _SAYS_MODE.search(output)
    return found[1] if found else None


class PowerMode:
    """The name of the power mode, without ever waiting for it."""

    def __init__(
        self,
        root: Path,
        files: SensorFiles,
        clock: Clock = time.monotonic,
        run: Run = run_program,
        refresh_s: float = 600.0,
        timeout_s: float = 5.0,
    ) -> None:
        """
        Args:
            root: where `etc/`, `var/` and `usr/sbin/nvpmodel` are.
            files: reads the small ones.
            clock: monotonic seconds.
            run: runs the program.
            refresh_s: how long an answer of the program, or its failure, stands before it is asked again.
            timeout_s: how long the program may take.
        """
        self._root, self._files, self._clock = root, files, clock
        self._run, self._refresh_s, self._timeout_s = run, refresh_s, timeout_s
        self._program = root / "usr/sbin/nvpmodel"
        self._table: dict[int, str] | None = None
        self._asked_s: float | None = None
        self._answer: str | None = None
        self._thread: threading.Thread | None = None

    def name(self) -> str | None:
        """The name as far as it is known now. Returns at once; the program's answer is there for a later call."""
        return self._by_files() or self._by_program()

    def settle(self, timeout_s: float) -> None:
        """Wait until a question that is under way is answered, at most so long."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _by_files(self) -> str | None:
        status = _STATUS.search(self._files.text(self._root / "var/lib/nvpmodel/status") or "")
        if status is None:
            return None
        if not self._table:
            self._table = _read_table(self._root / "etc/nvpmodel.conf")
        return self._table.get(int(status[1]))

    def _by_program(self) -> str | None:
        now = self._clock()
        age_s = None if self._asked_s is None else now - self._asked_s
        is_due = age_s is None or age_s >= self._refresh_s
        if is_due and (self._thread is None or not self._thread.is_alive()):
            if os.access(self._program, os.X_OK):
                self._thread = threading.Thread(target=self._ask, name="nsn-edge-nvpmodel", daemon=True)
                self._thread.start()
            self._asked_s = now
        elif age_s is not None and age_s >= 2 * self._refresh_s:
            self._answer = None  # the program hangs, and what it once said may be long over
        return self._answer

    def _ask(self) -> None:
        try:
            output = self._run([str(self._program), "-q"], self._timeout_s)
            self._answer = parse_nvpmodel(output) if output is not None else None
        except Exception as error:  # whatever a runner raises: the mode is unknown
            self._answer = None
            _log.warning("asking nvpmodel for the power mode failed: %r", error)


def _read_table(path: Path) -> dict[int, str]:
    """Names by number; empty where the table cannot be read. Larger than a sensor's file, hence read apart."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data = os.read(descriptor, _LARGEST_TABLE_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return {}
    return {int(number): name for number, name in _MODE_OF_TABLE.findall(data.decode(errors="replace"))}

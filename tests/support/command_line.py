"""`nsn-edge` as a user meets it: an exit code and two streams, in this process or in one of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PROGRESS = re.compile(r"[a-z][A-Za-z, -]*: \d+(/\d+)?")
PREFIX = "nsn-edge: "


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout; anything else there fails."""
        assert self.out.count("\n") == 1, self.out[:2000]
        return json.loads(self.out)

    @property
    def complaints(self) -> list[str]:
        """Lines of stderr that are not progress."""
        return [line for line in self.err.splitlines() if line.strip() and not _PROGRESS.fullmatch(line)]

    @property
    def message(self) -> str:
        """The one line that says what is wrong."""
        (line,) = self.complaints
        assert line.startswith(PREFIX), line
        return line.removeprefix(PREFIX)


Run = Callable[..., Outcome]
"""Takes a verb and its arguments."""


def run_process(*arguments: object, timeout: float = 120, **options: Any) -> Outcome:
    """In a process of its own; `timeout` in seconds and the other options are `subprocess.run`'s."""
    line = [sys.executable, "-m", "nsn_edge", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=timeout, **options)
    return Outcome(done.returncode, done.stdout, done.stderr)

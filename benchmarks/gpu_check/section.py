"""What a section of the check is given, and what it hands back."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nsn_edge.errors import MissingDependencyError, ProviderError

OK, NOT_RUN, FAILED = "ok", "not run", "failed"


class NotHereError(Exception):
    """This machine lacks what a section, or a part of one, needs. The message says what, and how to get it."""


@dataclass(frozen=True)
class Plan:
    """What the user asked for."""

    output: Path
    """Where results go."""
    bundles: Path
    """Where bundles are, or are written to."""
    device: str = "cuda"
    """`cuda`, or `cpu` to try the code."""
    quick: bool = False
    """Tiny models and few calls."""
    export: bool = True
    """Whether bundles that are missing are exported."""
    prepare: bool = False
    """Only export, also where there is no GPU to measure them on."""


@dataclass
class Results:
    """What a section found. Written to its file after each part, so that a crash keeps what came before."""

    status: str = OK
    """`ok`, `not run` or `failed`."""
    why: str = ""
    """Why it did not run, or failed."""
    seconds: float = 0.0
    """How long it took."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Latencies."""
    parity: list[dict[str, Any]] = field(default_factory=list)
    """Differences to a reference."""
    switches: list[dict[str, Any]] = field(default_factory=list)
    """What a switch of rank adds to the next inference."""
    memory: list[dict[str, Any]] = field(default_factory=list)
    """What one more rung takes."""
    notes: list[str] = field(default_factory=list)
    """Parts that could not run, and why; anything else worth reading."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Versions and settings."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


class Section:
    """A running section: its results, its time, and where they are saved."""

    def __init__(self, plan: Plan, results: Results, save: Callable[[], None], limit_s: float) -> None:
        self.plan, self.results = plan, results
        self._save = save
        self._began = time.monotonic()
        self._limit_s = limit_s

    @property
    def left_s(self) -> float:
        """Seconds until the section is stopped, less what ending takes."""
        return self._limit_s - (time.monotonic() - self._began) - 2.0

    def part(self, name: str, work: Callable[[], None], least_s: float = 1.0) -> None:
        """Do a part that may fail alone. What it misses becomes a note; what it breaks on makes the section `failed`;
        the next part is done all the same.

        Args:
            name: for notes.
            work: the part.
            least_s: seconds without which it is not begun.
        """
        began = time.monotonic()
        try:
            if self.left_s < least_s:
                raise NotHereError("no time was left for it")
            work()
        except (NotHereError, ProviderError, MissingDependencyError) as reason:
            self.results.notes.append(f"{name}: not run: {reason}")
        except Exception as error:
            self._note_failure(name, error)
        self.results.facts.setdefault("part_seconds", {})[name] = round(time.monotonic() - began, 2)
        self._save()

    def _note_failure(self, name: str, error: Exception) -> None:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be installed here
            self.results.notes.append(f"{name}: not run: the device's memory is too small for it")
            return
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        text = f"{name}: {type(error).__name__} at {place}: {' '.join(str(error).split())[:300]}"
        self.results.status = FAILED
        self.results.why = self.results.why or text
        self.results.notes.append(text)

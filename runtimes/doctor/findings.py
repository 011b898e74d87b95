"""What the doctor says: findings, and the diagnosis they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

SCHEMA_VERSION = 1


class Status(str, Enum):
    """How it stands with one thing."""

    PRESENT = "present"
    """It is there and answers."""
    ABSENT = "absent"
    """It is not there."""
    FAULTY = "faulty"
    """It is there and does not work."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    area: str
    """`engines`, `gpus`, `sensors`, `tools` or `machine`."""
    name: str
    """What was looked for."""
    status: Status
    """What came of it."""
    detail: str
    """What it says: a version, a reading, an error."""
    gives: str = ""
    """What one can do with it."""
    install: str | None = None
    """The line that installs or allows it; None where there is nothing to do."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**asdict(self), "status": self.status.value}


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found."""

    findings: tuple[Finding, ...]
    """By area, in the order of the areas."""
    can_run: bool
    """Whether an engine that is here can run a bundle."""
    host: Mapping[str, Any] = field(default_factory=dict)
    """`Host.to_json()`."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types (`kind` is `doctor`)."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "doctor",
            "can_run": self.can_run,
            "findings": [finding.to_json() for finding in self.findings],
            "host": dict(self.host),
        }

"""What a session, its server and its governor report while they work: to a log, a file, a dashboard, a test.

session = EdgeSession.open("bundle", listener=listeners(log_event, JsonlEvents("events.jsonl"), metrics))
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from nsn_edge.errors import NsnEdgeError
from nsn_edge.runtimes.telemetry.base import Reading

_log = logging.getLogger("nsn_edge.runtimes")

LOADED = "loaded"
SWITCHED = "switched"
EVICTED = "evicted"
LOAD_FAILED = "load_failed"
RUN_FAILED = "run_failed"
DEGRADED = "degraded"
REJECTED = "rejected"
EXPIRED = "expired"
TELEMETRY_LOST = "telemetry_lost"
TELEMETRY_BACK = "telemetry_back"
GOVERNOR_FAILED = "governor_failed"
GOVERNOR_BACK = "governor_back"

KINDS = (
    LOADED,
    SWITCHED,
    EVICTED,
    LOAD_FAILED,
    RUN_FAILED,
    DEGRADED,
    REJECTED,
    EXPIRED,
    TELEMETRY_LOST,
    TELEMETRY_BACK,
    GOVERNOR_FAILED,
    GOVERNOR_BACK,
)
"""Every kind of event."""

_FAULTS = frozenset({LOAD_FAILED, RUN_FAILED, TELEMETRY_LOST, GOVERNOR_FAILED})


@dataclass(frozen=True)
class Cause:
    """Why the rank was to change."""

    reason: str
    """One sentence for people."""
    reading: Reading | None = None
    """What was known of the device at that moment."""


@dataclass(frozen=True)
class SessionEvent:
    """Something that happened."""

    kind: str
    """One of `KINDS`."""
    rank: int | None
    """The rung that it happened to; for `switched` the new one, for `degraded` the one asked for. None where the event
    is about no rung."""
    message: str = ""
    """The error's one line, or what was lost."""
    other_rank: int | None = None
    """For `switched` the rung before, for `degraded` the one that answered instead."""
    duration_ms: float | None = None
    """Of a load, or of a switch from the asking until the rung was current."""
    cause: Cause | None = None
    """For `switched`, where somebody said why."""


Listener = Callable[[SessionEvent], None]
"""Called from whichever thread did the work, never while a lock is held. Be quick: a request may wait."""


def log_event(event: SessionEvent) -> None:
    """The default listener: faults as warnings, the rest for those who debug."""
    level = logging.WARNING if event.kind in _FAULTS else logging.DEBUG
    if _log.isEnabledFor(level):
        about = "" if event.rank is None else f"rank {event.rank} "
        _log.log(level, "%s%s %s", about, event.kind, event.message)


def listeners(*several: Listener) -> Listener:
    """One listener out of several; one that raises does not keep the others from hearing."""

    def hear(event: SessionEvent) -> None:
        for listener in several:
            tell(listener, event)

    return hear


def tell(listener: Listener, event: SessionEvent) -> None:
    """Call a listener; one that raises is logged, as requests must go on."""
    try:
        listener(event)
    except Exception:
        _log.exception("an event listener failed on %s", event)


def one_line(error: BaseException) -> str:
    """An error in words for an event."""
    return error.message if isinstance(error, NsnEdgeError) else f"{type(error).__name__}: {error}"

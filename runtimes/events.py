"""What a session reports while it works: to a log, a dashboard, a test."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from nsn_edge.errors import NsnEdgeError

_log = logging.getLogger("nsn_edge.runtimes")

LOADED = "loaded"
SWITCHED = "switched"
EVICTED = "evicted"
LOAD_FAILED = "load_failed"


@dataclass(frozen=True)
class SessionEvent:
    """Something that happened to a rung."""

    kind: str
    """`loaded`, `switched`, `evicted` or `load_failed`."""
    rank: int
    """Of the rung."""
    message: str = ""
    """The error's one line, for `load_failed`."""


Listener = Callable[[SessionEvent], None]
"""Called from whichever thread did the work, never while a lock is held."""


def log_event(event: SessionEvent) -> None:
    """The default listener: failures as warnings, the rest for those who debug."""
    level = logging.WARNING if event.kind == LOAD_FAILED else logging.DEBUG
    _log.log(level, "rank %d %s %s", event.rank, event.kind, event.message)


def tell(listener: Listener, event: SessionEvent) -> None:
    """Call a listener; one that raises is logged, as requests must go on."""
    try:
        listener(event)
    except Exception:
        _log.exception("an event listener failed on %s", event)


def one_line(error: BaseException) -> str:
    """An error in words for an event."""
    return error.message if isinstance(error, NsnEdgeError) else f"{type(error).__name__}: {error}"

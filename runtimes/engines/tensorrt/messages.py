"""What TensorRT says: it returns None or False, and tells the reason to a logger. Here the reason becomes one line."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any

_log = logging.getLogger("nsn_edge.tensorrt")

_LONGEST = 300
_PLACE_BEFORE = re.compile(r"^\[\S+::\S+\]\s*")
_PLACE_WITHIN = re.compile(r"\s*\bIn \S+ at \S+:\d+\s*")


class Messages:
    """A logger of TensorRT. Errors of a thread go to the block that waits for them, everything else to `logging`."""

    def __init__(self, module: Any) -> None:
        """
        Args:
            module: `tensorrt` or `tensorrt_rtx`.
        """
        self._waiting = threading.local()
        self.logger = _logger(module, self._hear)
        """For `module.Runtime`."""

    @contextlib.contextmanager
    def collected(self) -> Iterator[list[str]]:
        """Yield a list that fills with the errors that this thread causes inside the block."""
        outer, found = getattr(self._waiting, "errors", None), list[str]()
        self._waiting.errors = found
        try:
            yield found
        finally:
            self._waiting.errors = outer

    def _hear(self, is_error: bool, text: str) -> None:
        waiting = getattr(self._waiting, "errors", None)
        if is_error and waiting is not None:
            waiting.append(text)
        else:
            _log.log(logging.WARNING if is_error else logging.DEBUG, "%s", text)


@functools.cache
def messages_of(module: Any) -> Messages:
    """The one logger of a process: TensorRT keeps to the first it was given, whatever comes later."""
    return Messages(module)


def reason(errors: list[str]) -> str:
    """The first error, which is the cause of the others, without the places in TensorRT's sources."""
    if not errors:
        return "no reason was given"
    text = _PLACE_WITHIN.sub(" ", _PLACE_BEFORE.sub("", " ".join(errors[0].split())))
    text = text.replace("( (", "(").replace("))", ")").replace("( ", "(").replace(" )", ")")
    return text[:_LONGEST]


def _logger(module: Any, hear: Any) -> Any:
    base = module.ILogger  # known once the library is imported, hence a class made here

    class Logger(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            hear(severity in (module.ILogger.ERROR, module.ILogger.INTERNAL_ERROR), message)

    return Logger()

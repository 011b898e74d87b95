"""NVIDIA's libraries, imported and heard: what building engines and running them share.

They return None or False, and tell the reason to a logger: the first that a process hands them, whatever comes later.
So there is one for both. Here the reason becomes one line.

    an error    -> the block of its thread that waits for errors      `collected`, running
                -> kept, while an engine is built                     `kept`: a builder has threads of its own
                -> the log                                            nobody waits
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any

from nsn_edge.errors import EngineError, MissingDependencyError

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
"""By the name of the module."""

_JETPACK = (
    "JetPack brings it: sudo apt install python3-libnvinfer, and make the virtual environment with "
    "--system-site-packages; elsewhere: "
)
_log = logging.getLogger("nsn_edge.tensorrt")
_LONGEST = 300
_KEPT_MESSAGES = 50
_PLACE_BEFORE = re.compile(r"^\[\S+::\S+\]\s*")
_PLACE_WITHIN = re.compile(r"\s*\bIn \S+ at \S+:\d+\s*")


def import_library(name: str, purpose: str, *, elsewhere: str = "pip install tensorrt") -> Any:
    """Import `tensorrt` or `tensorrt_rtx`.

    Args:
        name: of `TITLES`.
        purpose: what it is needed for, as the message begins.
        elsewhere: what to do about a `tensorrt` that is not there on a machine without JetPack.

    Raises:
        MissingDependencyError: it is not installed.
        EngineError: it is installed and cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            hint = f"{_JETPACK}{elsewhere}" if name == "tensorrt" else None
            raise MissingDependencyError(name.replace("_", "-"), "rtx", purpose, hint) from error
        cause: Exception = error
    except (ImportError, OSError, RuntimeError) as error:  # its shared libraries are missing or too new
        cause = error
    raise EngineError(f"{TITLES[name]} is installed and cannot be imported: {cause}", "install it again") from cause


class Messages:
    """The logger of a library, and what it heard."""

    def __init__(self, module: Any) -> None:
        """
        Args:
            module: `tensorrt` or `tensorrt_rtx`.
        """
        self._waiting = threading.local()
        self._lock = threading.Lock()
        self._keeping = 0
        self.errors: list[str] = []
        """The last ones since `kept` began, of every thread."""
        self.warnings: list[str] = []
        """Likewise."""
        self.logger = _logger(module, self._hear)
        """For `module.Builder` and `module.Runtime`."""

    @contextlib.contextmanager
    def collected(self) -> Iterator[list[str]]:
        """Yield a list that fills with the errors that this thread causes inside the block."""
        outer, found = getattr(self._waiting, "errors", None), list[str]()
        self._waiting.errors = found
        try:
            yield found
        finally:
            self._waiting.errors = outer

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep errors and warnings of all threads inside the block, and print none; they can be read after it."""
        with self._lock:
            self._keeping += 1
        self.errors, self.warnings = [], []
        try:
            yield
        finally:
            with self._lock:
                self._keeping -= 1

    def _hear(self, is_error: bool, is_warning: bool, text: str) -> None:
        waiting = getattr(self._waiting, "errors", None)
        if is_error and waiting is not None:
            waiting.append(text)
        elif self._keeping and is_error:
            self.errors = [*self.errors[-_KEPT_MESSAGES:], text]
        elif self._keeping and is_warning:
            self.warnings = [*self.warnings[-_KEPT_MESSAGES:], text]
        else:
            _log.log(logging.WARNING if is_error else logging.DEBUG, "%s", text)


_messages: dict[Any, Messages] = {}


def messages_of(module: Any) -> Messages:
    """The one logger of a library in this process."""
    if module not in _messages:
        _messages[module] = Messages(module)
    return _messages[module]


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
            hear(severity in (base.ERROR, base.INTERNAL_ERROR), severity == base.WARNING, message)

    return Logger()

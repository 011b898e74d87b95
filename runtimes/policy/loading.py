"""A policy from a TOML file. Whatever does not make sense is one line that names the file, the line and the key.

schema_version = 1
unknown_max_flops = 0.25
min_dwell_s = 20

[[battery]]
enter_pct = 50
leave_pct = 55
max_flops = 0.75

[[temperature]]
enter_c = 75
leave_c = 70
max_flops = 0.5

[throttling]
max_flops = 0.35
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from nsn_edge.errors import PolicyError
from nsn_edge.runtimes.policy.limits import (
    SCHEMA_VERSION,
    BatteryStep,
    LimitError,
    RungLimits,
    TemperatureStep,
    ThrottlingLimit,
)

_Settings = TypeVar("_Settings", BatteryStep, TemperatureStep, ThrottlingLimit)

_LARGEST_FILE = 1 << 20  # a policy is a page; a megabyte is not one
_NUMBERS = ("unknown_max_flops", "min_dwell_s")
_KEYS = ("schema_version", "name", *_NUMBERS, "battery", "temperature", "throttling")


def load_policy(path: Path | str) -> RungLimits:
    """Read and check a policy file.

    Raises:
        PolicyError: the file is missing or not TOML, is of an unknown version, has an unknown key or a missing one, a
            wrong type, a value out of range, or thresholds that cross.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"cannot read the policy {path}: {error.strerror}", "name a TOML file") from error
    if len(data) > _LARGEST_FILE:
        raise PolicyError(f"{path} is far too large for a policy", "name a TOML file")
    try:
        text = data.decode("utf-8")
        document = _toml().loads(text)
    except (ValueError, RecursionError) as error:  # of UTF-8 and of TOML; the latter names the line
        raise PolicyError(f"{path} is not TOML: {error}", "mend the file") from error
    return _File(path, text).policy(document)


def _toml() -> Any:
    """tomllib came with Python 3.11; tomli, a dependency before that, is the same code."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


class _File:
    """A policy file's text, to find the line of a key, and its checks."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def policy(self, document: Mapping[str, Any]) -> RungLimits:
        version = document.get("schema_version")
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise self._error(
                "schema_version is missing" if version is None else f"unknown schema_version {version!r}",
                f"this nsn-edge reads schema_version = {SCHEMA_VERSION}",
                key="schema_version",
            )
        self._check_keys(document, _KEYS, _NUMBERS)
        name = document.get("name", self._path.stem)
        if not isinstance(name, str):
            raise self._error(f"name is {name!r}, not a string", key="name")
        throttling = document.get("throttling")
        try:
            return RungLimits(
                **{key: self._number(document, key) for key in _NUMBERS},
                battery=self._steps(BatteryStep, "battery", document),
                temperature=self._steps(TemperatureStep, "temperature", document),
                throttling=None if throttling is None else self._settings(ThrottlingLimit, throttling, "throttling"),
                name=name,
            )
        except LimitError as error:
            raise self._error(error.message, error.hint, error.key, error.table, error.index) from error

    def _steps(self, kind: type[_Settings], table: str, document: Mapping[str, Any]) -> tuple[_Settings, ...]:
        entries = document.get(table, [])
        if not isinstance(entries, list):
            raise self._error(f"{table} is not a list of steps", f"write each step under [[{table}]]", table=table)
        return tuple(self._settings(kind, entry, table, index) for index, entry in enumerate(entries))

    def _settings(self, kind: type[_Settings], data: Any, table: str, index: int = 0) -> _Settings:
        if not isinstance(data, Mapping):
            raise self._error(f"{table} is {data!r}, not a table", f"write it under [{table}]", table=table)
        required = [item.name for item in fields(kind) if item.default is MISSING]
        self._check_keys(data, [item.name for item in fields(kind)], required, table, index)
        numbers = {key: self._number(data, key, table, index) for key in data}
        try:
            return kind(**numbers)
        except LimitError as error:
            raise self._error(error.message, error.hint, error.key, table, index) from error

    def _check_keys(self, data: Mapping[str, Any], known: Any, required: Any, table: str = "", index: int = 0) -> None:
        for key in data:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"
                raise self._error(f"unknown key {key!r}", hint, key, table, index)
        for key in required:
            if key not in data:
                raise self._error(f"the key {key} is missing", f"add {key} = NUMBER", "", table, index)

    def _number(self, data: Mapping[str, Any], key: str, table: str = "", index: int = 0) -> float:
        value = data[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._error(f"{key} is {value!r}, not a number", "write it without quotes", key, table, index)
        try:
            return float(value)
        except OverflowError as error:
            raise self._error(f"{key} is far too large", "", key, table, index) from error

    def _error(self, message: str, hint: str = "", key: str = "", table: str = "", index: int = 0) -> PolicyError:
        line = _line_of(self._text, key, table, index)
        at = f"{self._path}" + (f", line {line}" if line else "")
        return PolicyError(f"{at}: {f'[{table}] ' if table else ''}{message}", hint)


def _line_of(text: str, key: str, table: str, index: int) -> int | None:
    """The line of a key, in the `index`-th table of a name or above all tables; else the line of the table itself."""
    current, seen, found = "", -1, None
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[\[?\s*([\w-]+)\s*\]", line):
            current = header[1]
            seen += current == table
            if (current == table and seen == index) or (not table and current == key):
                found = found or number
        elif current == table and (not table or seen == index) and _assigns(line, key):
            return number
        elif table and not current and _assigns(line, table):  # written inline: battery = [...]
            found = number
    return found


def _assigns(line: str, key: str) -> bool:
    return bool(key) and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line) is not None

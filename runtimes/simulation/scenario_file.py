"""A scenario from a TOML file. Whatever does not make sense is one line that names the file, the line and the key.

schema_version = 1
deadline_ms = 200
arrivals_per_s = 8
active_w = 25

[battery]
capacity_wh = 60

[[heat]]
from_s = 300
until_s = 700
rise_c = 8
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from nsn_edge.errors import UsageError
from nsn_edge.runtimes.simulation.scenario import (
    SCHEMA_VERSION,
    Battery,
    Heat,
    Load,
    Scenario,
    ScenarioError,
    Unplugged,
)
from nsn_edge.runtimes.simulation.thermal import ThermalModel

_LARGEST_FILE = 1 << 20  # a scenario is a page; a megabyte is not one
_TABLES: dict[str, Any] = {"thermal": ThermalModel, "battery": Battery}
_LISTS: dict[str, Any] = {"heat": Heat, "unplugged": Unplugged, "load": Load}


def load_scenario(path: Path | str) -> Scenario:
    """Read and check a scenario file.

    Raises:
        UsageError: the file is missing or not TOML, is of an unknown version, has an unknown key or a missing one, a
            wrong type, or a value that makes no sense.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the scenario {path}: {error.strerror}", "name a TOML file") from error
    if len(data) > _LARGEST_FILE:
        raise UsageError(f"{path} is far too large for a scenario", "name a TOML file")
    try:
        text = data.decode("utf-8")
        document = _toml().loads(text)
    except (ValueError, RecursionError) as error:  # of UTF-8 and of TOML; the latter names the line
        raise UsageError(f"{path} is not TOML: {error}", "mend the file") from error
    return _File(path, text).scenario(document)


def _toml() -> Any:
    """tomllib came with Python 3.11; tomli, a dependency before that, is the same code."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


class _File:
    """A scenario file's text, to find the line of a key, and its checks."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def scenario(self, document: Mapping[str, Any]) -> Scenario:
        document = dict(document)
        version = document.pop("schema_version", None)
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise self._error(
                "schema_version is missing" if version is None else f"unknown schema_version {version!r}",
                f"this nsn-edge reads schema_version = {SCHEMA_VERSION}",
                key="schema_version",
            )
        name = document.pop("name", self._path.stem)
        if not isinstance(name, str):
            raise self._error(f"name is {name!r}, not a string", key="name")
        tables: dict[str, Any] = {"name": name}
        for table, kind in _TABLES.items():
            if table in document:
                tables[table] = self._settings(kind, document.pop(table), table)
        for table, kind in _LISTS.items():
            if table in document:
                entries = document.pop(table)
                if not isinstance(entries, list):
                    raise self._error(f"{table} is not a list of events", f"write each under [[{table}]]", table=table)
                tables[table] = tuple(self._settings(kind, entry, table, index) for index, entry in enumerate(entries))
        scenario: Scenario = self._settings(Scenario, document, given=tables)
        return scenario

    def _settings(
        self,
        kind: Any,
        data: Any,
        table: str = "",
        index: int = 0,
        given: Mapping[str, Any] | None = None,
    ) -> Any:
        if not isinstance(data, Mapping):
            raise self._error(f"{table} is {data!r}, not a table", f"write it under [{table}]", table=table)
        given = given or {}
        known: dict[str, Field[Any]] = {
            item.name: item for item in fields(kind) if item.name not in (*_TABLES, *_LISTS, "name")
        }
        for key in data:
            if key not in known:
                names = (*known, *(() if table else ("name", *_TABLES, *_LISTS)))
                close = difflib.get_close_matches(key, names, n=1)
                hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(names)}"
                raise self._error(f"unknown key {key!r}", hint, key, table, index)
        for key, item in known.items():
            if item.default is MISSING and key not in data:
                raise self._error(f"the key {key} is missing", f"add {key} = NUMBER", "", table, index)
        try:
            return kind(**{key: self._number(known[key], data[key], table, index) for key in data}, **given)
        except ScenarioError as error:
            raise self._error(
                error.message, error.hint, error.key, error.table or table, error.index or index
            ) from error
        except UsageError as error:  # of the thermal model, which names its key
            raise self._error(error.message, error.hint, error.message.split()[0], table, index) from error

    def _number(self, item: Field[Any], value: Any, table: str, index: int) -> float | int:
        key = item.name
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._error(f"{key} is {value!r}, not a number", "write it without quotes", key, table, index)
        if str(item.type) == "int":
            if not isinstance(value, int):
                raise self._error(f"{key} is {value!r}, not a whole number", "", key, table, index)
            return value
        try:
            return float(value)
        except OverflowError as error:
            raise self._error(f"{key} is far too large", "", key, table, index) from error

    def _error(self, message: str, hint: str = "", key: str = "", table: str = "", index: int = 0) -> UsageError:
        line = _line_of(self._text, key, table, index)
        at = f"{self._path}" + (f", line {line}" if line else "")
        return UsageError(f"{at}: {f'[{table}] ' if table else ''}{message}", hint)


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
        elif table and not current and _assigns(line, table):  # written inline: heat = [...]
            found = number
    return found


def _assigns(line: str, key: str) -> bool:
    return bool(key) and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line) is not None

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
from nsn_edge.runtimes.toml_files import line_of, read_toml

_TABLES: dict[str, Any] = {"thermal": ThermalModel, "battery": Battery}
_LISTS: dict[str, Any] = {"heat": Heat, "unplugged": Unplugged, "load": Load}


def load_scenario(path: Path | str) -> Scenario:
    """Read and check a scenario file.

    Raises:
        UsageError: the file is missing or not TOML, is of an unknown version, has an unknown key or a missing one, a
            wrong type, or a value that makes no sense.
    """
    path = Path(path)
    text, document = read_toml(path, "scenario")
    return _File(path, text).scenario(document)


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
        line = line_of(self._text, key, table, index)
        at = f"{self._path}" + (f", line {line}" if line else "")
        return UsageError(f"{at}: {f'[{table}] ' if table else ''}{message}", hint)

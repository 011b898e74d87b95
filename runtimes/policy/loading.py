"""A policy from a TOML file. Whatever does not make sense is one line that names the file, the line and the key.

schema_version = 2
unknown_max_flops = 0.25
min_dwell_s = 20

[[battery]]
enter_pct = 50
leave_pct = 55
max_flops = 0.75

[step_wise]
enter_margin_c = 5
leave_margin_c = 10

[deadline]
deadline_ms = 50

`docs/policies.md` lists every table and key. A file of version 1 has the thresholds alone and reads as it ever did.
"""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from nsn_edge.errors import PolicyError
from nsn_edge.ladder import RankLadder
from nsn_edge.runtimes.difficulty.rule import DifficultyRule, RuleError
from nsn_edge.runtimes.policy.checks import LimitError
from nsn_edge.runtimes.policy.costs import RungCosts
from nsn_edge.runtimes.policy.deadline import Deadline
from nsn_edge.runtimes.policy.energy import EnergyBudget
from nsn_edge.runtimes.policy.limits import SCHEMA_VERSION, BatteryStep, RungLimits, TemperatureStep, ThrottlingLimit
from nsn_edge.runtimes.policy.pi import Pi
from nsn_edge.runtimes.policy.rung_limits import RungPolicy
from nsn_edge.runtimes.policy.step_wise import StepWise
from nsn_edge.runtimes.toml_files import line_of, read_toml

_Settings = TypeVar("_Settings")

_NUMBERS = ("unknown_max_flops", "min_dwell_s")
_TABLES: Mapping[str, type[Any]] = {
    "throttling": ThrottlingLimit,
    "step_wise": StepWise,
    "pi": Pi,
    "energy": EnergyBudget,
    "deadline": Deadline,
}
_KEYS_OF_1 = ("schema_version", "name", *_NUMBERS, "battery", "temperature", "throttling")
_KEYS = (*_KEYS_OF_1[:4], "max_age_s", "battery", "temperature", *_TABLES, "difficulty")


def load_policy(path: Path | str) -> RungLimits:
    """Read and check a policy file.

    Raises:
        PolicyError: the file is missing or not TOML, is of an unknown version, has an unknown key or a missing one, a
            wrong type, a value out of range, or thresholds that cross.
    """
    path = Path(path)
    text, document = read_toml(path, "policy", PolicyError)
    return _File(path, text).policy(document)


def build_policy(path: Path | str, ladder: RankLadder, costs: RungCosts | None = None) -> RungPolicy:
    """The whole policy of a file, for the rungs of one ladder.

    Args:
        path: a TOML file.
        ladder: of the bundle that is to run.
        costs: of its rungs on this device: `rung_costs(Profile.load(...), ladder)`.

    Raises:
        PolicyError: the file makes no sense, or has a table that needs costs that were not given.
        RankError: the ladder has no rungs, or the costs are of others.
    """
    path = Path(path)
    limits = load_policy(path)
    try:
        return RungPolicy(limits, ladder, costs)
    except LimitError as error:
        raise _File(path, path.read_text(encoding="utf-8")).refusal(error) from error


class _File:
    """A policy file's text, to find the line of a key, and its checks."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def policy(self, document: Mapping[str, Any]) -> RungLimits:
        version = document.get("schema_version")
        if version not in (1, SCHEMA_VERSION) or isinstance(version, bool):
            raise self._error(
                "schema_version is missing" if version is None else f"unknown schema_version {version!r}",
                f"this nsn-edge reads schema_version = {SCHEMA_VERSION}, and 1",
                key="schema_version",
            )
        self._check_keys(document, _KEYS_OF_1 if version == 1 else _KEYS, _NUMBERS)
        name = document.get("name", self._path.stem)
        if not isinstance(name, str):
            raise self._error(f"name is {name!r}, not a string", key="name")
        settings: dict[str, Any] = {
            key: self._number(document, key) for key in (*_NUMBERS, "max_age_s") if key in document
        }
        for table, kind in _TABLES.items():
            if table in document:
                settings[table] = self._settings(kind, document[table], table)
        try:
            policy = RungLimits(
                **settings,
                battery=self._steps(BatteryStep, "battery", document),
                temperature=self._steps(TemperatureStep, "temperature", document),
                difficulty=self._difficulty(document.get("difficulty")),
                name=name,
            )
        except LimitError as error:
            raise self.refusal(error) from error
        if version != 1:
            self._check_percentages(policy)
        return policy

    def refusal(self, error: LimitError) -> PolicyError:
        """An error of a setting, with the file and the line."""
        return self._error(error.message, error.hint, error.key, error.table, error.index)

    def _steps(self, kind: type[_Settings], table: str, document: Mapping[str, Any]) -> tuple[_Settings, ...]:
        entries = document.get(table, [])
        if not isinstance(entries, list):
            raise self._error(f"{table} is not a list of steps", f"write each step under [[{table}]]", table=table)
        return tuple(self._settings(kind, entry, table, index) for index, entry in enumerate(entries))

    def _settings(self, kind: type[_Settings], data: Any, table: str, index: int = 0) -> _Settings:
        if not isinstance(data, Mapping):
            raise self._error(f"{table} is {data!r}, not a table", f"write it under [{table}]", table=table)
        known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]  # a dataclass, every one
        required = [name for name, item in known.items() if item.default is MISSING]
        self._check_keys(data, list(known), required, table, index)
        values = {
            key: (self._time_of_day if "str" in str(known[key].type) else self._number)(data, key, table, index)
            for key in data
        }
        try:
            return kind(**values)
        except LimitError as error:
            raise self._error(error.message, error.hint, error.key, table, index) from error

    def _difficulty(self, data: Any) -> DifficultyRule | None:
        if data is None:
            return None
        if not isinstance(data, Mapping):
            raise self._error(f"difficulty is {data!r}, not a table", "write it under [difficulty]", table="difficulty")
        try:
            return DifficultyRule.from_table(data)
        except RuleError as error:
            hint = _did_you_mean(error.key, [item.name for item in fields(DifficultyRule)])
            unknown = error.message.startswith("unknown key")
            raise self._error(error.message, hint if unknown else error.hint, error.key, "difficulty") from error

    def _check_percentages(self, policy: RungLimits) -> None:
        """Thresholds that are all below one per cent are fractions of someone who thinks of `max_flops`."""
        for index, step in enumerate(policy.battery):
            if 0.0 < step.enter_pct < step.leave_pct <= 1.0:
                raise self._error(
                    f"enter_pct is {step.enter_pct:g}, less than one per cent",
                    f"a fraction? write {100 * step.enter_pct:g}",
                    "enter_pct",
                    "battery",
                    index,
                )

    def _check_keys(self, data: Mapping[str, Any], known: Any, required: Any, table: str = "", index: int = 0) -> None:
        for key in data:
            if key not in known:
                hint = _did_you_mean(key, known)
                if not table and key in _KEYS:
                    hint = f"[{key}] belongs to schema_version = {SCHEMA_VERSION}"
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

    def _time_of_day(self, data: Mapping[str, Any], key: str, table: str, index: int) -> str:
        """TOML has times of day of its own; both spellings are read."""
        value = data[key]
        if isinstance(value, datetime.time):
            return value.strftime("%H:%M")
        if not isinstance(value, str):
            raise self._error(f"{key} is {value}, no time of day", f'write {key} = "18:00"', key, table, index)
        return value

    def _error(self, message: str, hint: str = "", key: str = "", table: str = "", index: int = 0) -> PolicyError:
        line = line_of(self._text, key, table, index)
        at = f"{self._path}" + (f", line {line}" if line else "")
        return PolicyError(f"{at}: {f'[{table}] ' if table else ''}{message}", hint)


def _did_you_mean(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else f"the keys are {', '.join(known)}"

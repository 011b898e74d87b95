"""A rule as a TOML file: what `nsn-edge difficulty` writes and `nsn-edge run --difficulty` reads.

schema_version = 1

[difficulty]
measure = "margin"
ranks = [88, 384]
thresholds = [0.62]
bundle_sha256 = "..."

A policy file, which is of schema version 2, may hold the same `[difficulty]` table beside its limits.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.errors import PolicyError
from nsn_edge.runtimes.difficulty.rule import DifficultyRule, RuleError

SCHEMA_VERSION = 1
_SCHEMA_VERSIONS = (1, 2)  # 2: a policy's
TABLE = "difficulty"

_LARGEST_FILE = 1 << 20  # a rule is a few lines; a megabyte is none


def load_rule(path: Path | str) -> DifficultyRule:
    """Read the `[difficulty]` table of a TOML file. Other tables, those of a policy, are left to their own reader.

    Raises:
        PolicyError: the file is missing or not TOML, is of an unknown version, has no such table, or one that does not
            make sense; names the line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PolicyError(
            f"cannot read the difficulty rule {path}: {error.strerror}", "make one with: nsn-edge difficulty BUNDLE"
        ) from error
    if len(data) > _LARGEST_FILE:
        raise PolicyError(f"{path} is far too large for a difficulty rule", "name a TOML file")
    try:
        text = data.decode("utf-8")
        document = _toml().loads(text)
    except (ValueError, RecursionError) as error:  # of UTF-8 and of TOML; the latter names the line
        raise PolicyError(f"{path} is not TOML: {error}", "mend the file") from error
    version = document.get("schema_version")
    if type(version) is not int or version not in _SCHEMA_VERSIONS:
        raise PolicyError(
            f"{path}: " + ("schema_version is missing" if version is None else f"unknown schema_version {version!r}"),
            f"this nsn-edge reads schema_version = {SCHEMA_VERSION}",
        )
    table = document.get(TABLE)
    if not isinstance(table, Mapping):
        raise PolicyError(f"{path} has no table [{TABLE}]", "nsn-edge difficulty BUNDLE --data HELD_OUT -o FILE")
    try:
        return DifficultyRule.from_table(table)
    except RuleError as error:
        line = line_of(text, error.key)
        at = f"{path}" + (f", line {line}" if line else "")
        raise PolicyError(f"{at}: [{TABLE}] {error.message}", error.hint) from error


def save_rule(rule: DifficultyRule, path: Path, notes: Iterable[str] = ()) -> None:
    """Write a rule in one step, with notes on where it comes from as comments."""
    lines = [f"# {' '.join(note.split())}" for note in notes]
    lines += [f"schema_version = {SCHEMA_VERSION}", "", f"[{TABLE}]"]
    # JSON writes strings, numbers and lists of them as TOML does.
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in rule.to_json().items()]
    atomic_write_bytes(path, ("\n".join(lines) + "\n").encode())


def line_of(text: str, key: str) -> int | None:
    """The line of a key of the `[difficulty]` table, or that of the table where there is no such key."""
    inside, header = False, None
    for number, line in enumerate(text.splitlines(), start=1):
        if found := re.match(r"\s*\[\[?\s*([\w-]+)\s*\]", line):
            inside = found[1] == TABLE
            header = number if inside and header is None else header
        elif inside and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return header


def _toml() -> Any:
    """tomllib came with Python 3.11; tomli, a dependency before that, is the same code."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

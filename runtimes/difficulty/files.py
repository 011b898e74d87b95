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

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from nsn_edge.atomic import atomic_write_bytes
from nsn_edge.errors import PolicyError
from nsn_edge.runtimes.difficulty.rule import DifficultyRule, RuleError
from nsn_edge.runtimes.toml_files import line_of, read_toml

SCHEMA_VERSION = 1
_SCHEMA_VERSIONS = (1, 2)  # 2: a policy's
TABLE = "difficulty"


def load_rule(path: Path | str) -> DifficultyRule:
    """Read the `[difficulty]` table of a TOML file. Other tables, those of a policy, are left to their own reader.

    Raises:
        PolicyError: the file is missing or not TOML, is of an unknown version, has no such table, or one that does not
            make sense; names the line.
    """
    path = Path(path)
    hint = "make one with: nsn-edge difficulty BUNDLE"
    text, document = read_toml(path, "difficulty rule", PolicyError, hint)
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
        line = line_of(text, error.key, TABLE)
        at = f"{path}" + (f", line {line}" if line else "")
        raise PolicyError(f"{at}: [{TABLE}] {error.message}", error.hint) from error


def save_rule(rule: DifficultyRule, path: Path, notes: Iterable[str] = ()) -> None:
    """Write a rule in one step, with notes on where it comes from as comments."""
    lines = [f"# {' '.join(note.split())}" for note in notes]
    lines += [f"schema_version = {SCHEMA_VERSION}", "", f"[{TABLE}]"]
    # JSON writes strings, numbers and lists of them as TOML does.
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in rule.to_json().items()]
    atomic_write_bytes(path, ("\n".join(lines) + "\n").encode())

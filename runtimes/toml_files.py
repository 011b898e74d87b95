"""Settings in TOML files that people write: reading one, and where in it a key stands, which parsers do not tell."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from nsn_edge.errors import UsageError

LARGEST_BYTES = 1 << 20
"""A page of settings; a megabyte is none."""


def read_toml(
    path: Path, what: str, error: type[UsageError] = UsageError, hint: str = "name a TOML file"
) -> tuple[str, dict[str, Any]]:
    """The text of a file, and what it says.

    Args:
        path: to read.
        what: the file is, for messages: `policy`.
        error: to raise.
        hint: for a file that cannot be read.

    Raises:
        UsageError: as `error`: the file is missing, is far too large, or is not TOML.
    """
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"cannot read the {what} {path}: {problem.strerror}", hint) from problem
    if len(data) > LARGEST_BYTES:
        raise error(f"{path} is far too large for a {what}", "name a TOML file")
    try:
        text = data.decode("utf-8")
        return text, _toml().loads(text)
    except (ValueError, RecursionError) as problem:  # of UTF-8 and of TOML; the latter names the line
        raise error(f"{path} is not TOML: {problem}", "mend the file") from problem


def line_of(text: str, key: str, table: str = "", index: int = 0) -> int | None:
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


def _toml() -> Any:
    """tomllib came with Python 3.11; tomli, a dependency before that, is the same code."""
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

"""Where in a TOML file a key stands, for error messages: the parser keeps no lines."""

from __future__ import annotations

import re


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

"""Rows from a user's own file: `.csv`, `.tsv`, `.jsonl` and `.txt`, each row with the line it stands on.

    reviews.csv   --read_table-->   Table(columns=("text", "label"), rows=(Row(line=2, values={...}), ...))
                                    .texts("text")   .numbers("score")   .labels("label")

A file that does not make sense is refused by file and line: a training run or an evaluation that silently drops rows is
worse than none. `.csv` follows RFC 4180 (quotes may hold commas and line breaks). `.tsv` has no quoting at all, as IANA
registered it: a stray quotation mark in a sentence is a character there, and not the start of a field that swallows the
lines after it. A `.txt` file has one column, `text`, and a row per line that is not blank.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsn_edge.errors import UsageError

FORMATS = (".csv", ".tsv", ".jsonl", ".txt")
"""What can be read, by the file's ending."""

TEXT_COLUMN = "text"
"""The only column of a `.txt` file."""

_LONGEST_FIELD = 10_000_000  # characters; csv's own 131,072 is less than a book chapter
_SHOWN = 40


@dataclass(frozen=True)
class Row:
    """One example."""

    line: int
    """Where it begins in the file, counted from 1."""
    values: Mapping[str, Any]
    """By column: text, and in `.jsonl` files any JSON value."""


@dataclass(frozen=True)
class Table:
    """The rows of a file; at least one."""

    path: Path
    """Where they come from, for messages."""
    columns: tuple[str, ...]
    """In the order of the file. In `.jsonl` files every row may have others besides."""
    rows: tuple[Row, ...]
    """In the order of the file."""

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self, column: str) -> list[str]:
        """A column of text, without the spaces around it.

        Raises:
            UsageError: no such column, or a value that is blank or not text.
        """
        texts = []
        for row, value in self._values(column):
            if not isinstance(value, str):
                raise self._refusal(row, column, value, "is not text")
            if not value.strip():
                raise self._refusal(row, column, value, "is blank", "leave the row out, or give it a text")
            texts.append(value.strip())
        return texts

    def numbers(self, column: str) -> list[float]:
        """A column of finite numbers.

        Raises:
            UsageError: no such column, or a value that is not a finite number.
        """
        numbers = []
        for row, value in self._values(column):
            try:
                number = math.nan if isinstance(value, bool) or value is None else float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                raise self._refusal(row, column, value, "is not a finite number")
            numbers.append(number)
        return numbers

    def labels(self, column: str) -> list[str]:
        """A column of class labels, as text; `3` and `"3"` in a `.jsonl` file are the same label.

        Raises:
            UsageError: no such column, or a value that is blank or neither text nor a whole number.
        """
        labels = []
        for row, value in self._values(column):
            if isinstance(value, bool) or not isinstance(value, (str, int)):
                raise self._refusal(row, column, value, "is no label: labels are text or whole numbers")
            if not str(value).strip():
                raise self._refusal(row, column, value, "is blank", "give the row a label, or leave it out")
            labels.append(str(value).strip())
        return labels

    def _values(self, column: str) -> Iterator[tuple[Row, Any]]:
        if column not in self.columns:
            raise UsageError(
                f"{self.path} has no column {column!r}; it has {_listed(self.columns)}",
                "name the right column; if the file has no header line, name all its columns in order",
            )
        for row in self.rows:
            if column not in row.values:
                raise UsageError(f"{self.path}, line {row.line}: the row has no {column!r}", "give every row the same")
            yield row, row.values[column]

    def _refusal(self, row: Row, column: str, value: Any, problem: str, hint: str = "") -> UsageError:
        return UsageError(f"{self.path}, line {row.line}: {column} {_shown(value)} {problem}", hint)


def read_table(path: Path | str, columns: Sequence[str] | None = None) -> Table:
    """Read every row of a `.csv`, `.tsv`, `.jsonl` or `.txt` file.

    Args:
        path: the file; its ending says what it is.
        columns: names for the columns of a `.csv` or `.tsv` file without a header line; None where the first line
            names them.

    Raises:
        UsageError: the file is missing, of another kind, not UTF-8, empty, or has a row that does not fit; names the
            line.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise UsageError(f"{path} is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file", "rename or convert it")
    if columns is not None and kind not in (".csv", ".tsv"):
        raise UsageError(f"{path}: columns are named for .csv and .tsv files without a header line alone")
    text = read_text(path)
    if kind == ".jsonl":
        rows = list(_json_rows(path, text))
        names = tuple(rows[0].values) if rows else ()
    elif kind == ".txt":
        rows = [Row(at, {TEXT_COLUMN: line}) for at, line in enumerate(text.split("\n"), start=1) if line.strip()]
        names = (TEXT_COLUMN,)
    else:
        records = _records(path, text, quoted=kind == ".csv")
        header = next(records, (1, []))[1] if columns is None else list(columns)
        names = _checked_names(path, header)
        rows = [_fitted(path, line, names, fields) for line, fields in records]
    if not rows:
        raise UsageError(f"{path} holds no rows", "give it one example or more")
    return Table(path, names, tuple(rows))


def read_text(path: Path | str) -> str:
    """A whole UTF-8 text file, a byte order mark left out.

    Raises:
        UsageError: the file is missing, not UTF-8, or blank.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", "name a file with data") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})", "convert it to UTF-8") from error
    if not text.strip():
        raise UsageError(f"{path} is empty", "give it one example or more")
    return text


def _records(path: Path, text: str, *, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """`(first line, fields)` of every record that is not blank."""
    before = csv.field_size_limit(_LONGEST_FIELD)
    lines = io.StringIO(text, newline="")
    if quoted:
        reader = csv.reader(lines, strict=True)
    else:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    try:
        line = 1
        for fields in reader:
            if any(field.strip() for field in fields):
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        hint = "a field with a quotation mark is quoted, and the mark doubled" if quoted else ""
        raise UsageError(f"{path}, line {line}: {error}", hint) from error
    finally:
        csv.field_size_limit(before)


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines(): a JSON string may hold U+2028 as it is.
    for at, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}, line {at}: {error}", "one JSON object per line") from error
        if not isinstance(values, dict) or not values:
            raise UsageError(f"{path}, line {at}: {_shown(values)} is no JSON object with columns")
        yield Row(at, values)


def _checked_names(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    clean = tuple(name.strip() for name in names)
    if not clean or "" in clean:
        raise UsageError(f"{path} has a column without a name: {_listed(clean)}", "the first line names every column")
    if repeated := sorted({name for name in clean if clean.count(name) > 1}):
        raise UsageError(f"{path} has two columns named {repeated[0]!r}", "the first line names every column once")
    return clean


def _fitted(path: Path, line: int, names: Sequence[str], fields: Sequence[str]) -> Row:
    if len(fields) != len(names):
        raise UsageError(
            f"{path}, line {line}: {len(fields)} fields, and the columns are {len(names)}: {_listed(names)}"
        )
    return Row(line, dict(zip(names, fields, strict=True)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_shown(name) for name in names[:8]) + (", ..." if len(names) > 8 else "")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 4] + " ..."

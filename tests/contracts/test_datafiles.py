"""Rows of users' files, and the one line that each mistake in them gets."""

from __future__ import annotations

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsn_edge.datafiles import read_table, read_text
from nsn_edge.errors import UsageError

_FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1).filter(lambda t: t.strip())


def test_every_format_gives_the_same_rows(tmp_path):
    rows = [("A cat, asleep.", "calm"), ('He said "no".', "angry")]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in rows), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows))
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        table = read_table(tmp_path / name)
        assert table.columns == ("text", "label")
        assert table.texts("text") == [a for a, _ in rows]
        assert table.labels("label") == [b for _, b in rows]
    (tmp_path / "a.txt").write_text("".join(f"{a}\n\n" for a, _ in rows), encoding="utf-8")
    assert read_table(tmp_path / "a.txt").texts("text") == [a for a, _ in rows]


@given(st.lists(st.tuples(_FIELD, _FIELD), min_size=1, max_size=5))
def test_what_the_csv_library_writes_comes_back(tmp_path_factory, rows):
    file = tmp_path_factory.mktemp("csv") / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("a", "b"), *rows])
    table = read_table(file)
    assert [(row.values["a"], row.values["b"]) for row in table.rows] == rows


def test_a_file_without_a_header_takes_the_names_that_are_given(tmp_path):
    (tmp_path / "pairs.csv").write_text("A plane.,A jet.,4.5\nA dog.,A cat.,1\n")
    table = read_table(tmp_path / "pairs.csv", ["first", "second", "score"])
    assert table.texts("second") == ["A jet.", "A cat."]
    assert table.numbers("score") == [4.5, 1.0]
    with pytest.raises(UsageError, match=r"no column 'score'; it has 'A plane\.', 'A jet\.', '4\.5'"):
        read_table(tmp_path / "pairs.csv").numbers("score")


def test_lines_are_counted_through_quoted_line_breaks_and_blank_lines(tmp_path):
    (tmp_path / "a.csv").write_text('text,score\n"two\nlines",1\n\nlast,high\n')
    with pytest.raises(UsageError, match=r"a\.csv, line 5: score 'high' is not a finite number"):
        read_table(tmp_path / "a.csv").numbers("score")


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext\r\nhello\r\n")
    assert read_table(tmp_path / "a.csv").texts("text") == ["hello"]
    assert read_text(tmp_path / "a.csv").startswith("text")


def test_labels_of_json_are_numbers_or_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"label": 3}\n{"label": "3"}\n')
    assert read_table(tmp_path / "a.jsonl").labels("label") == ["3", "3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "text,label\nonly one\n", r"line 2: 1 fields, and the columns are 2"),
        ("a.csv", "text,text\na,b\n", "two columns named 'text'"),
        ("a.csv", "text,\na,b\n", "a column without a name"),
        ("a.csv", 'text\nfine\n"open\n', r"line 3: unexpected end of data"),
        ("a.jsonl", '{"text": "a"}\n{"text"\n', r"line 2: .*one JSON object per line"),
        ("a.jsonl", "[1]\n", r"line 1: \[1\] is no JSON object"),
        ("a.parquet", "x", r"is not a \.csv, \.tsv, \.jsonl or \.txt file"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "read", "message"),
    [
        ('{"x": "a"}\n{"x": 1}\n', "texts", "line 2: x 1 is not text"),
        ('{"x": "a"}\n{"x": " "}\n', "texts", "line 2: x ' ' is blank"),
        ('{"x": "a"}\n{"y": "a"}\n', "texts", "line 2: the row has no 'x'"),
        ('{"x": 1}\n{"x": NaN}\n', "numbers", "line 2: x nan is not a finite number"),
        ('{"x": 1}\n{"x": true}\n', "numbers", "line 2: x True is not a finite number"),
        ('{"x": 1}\n{"x": null}\n', "numbers", "line 2: x None is not a finite number"),
        ('{"x": 1}\n{"x": 1.5}\n', "labels", r"line 2: x 1\.5 is no label"),
        ('{"x": 1}\n{"x": ""}\n', "labels", "line 2: x '' is blank"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_line(tmp_path, content, read, message):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UsageError, match=message):
        getattr(read_table(tmp_path / "a.jsonl"), read)("x")


def test_what_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine \xff\n")
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 5\)"):
        read_table(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="cannot read"):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(UsageError, match="without a header line alone"):
        read_table(tmp_path / "a.jsonl", ["x"])

"""Files become checked rows; what is wrong is named by its line."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from gistmill.errors import InvalidDataset, InvalidSpec
from gistmill.ingest.mapping import Mapping, parse_mapping
from gistmill.ingest.reading import Format, detect_format, read_rows, scan
from gistmill.ingest.rows import Row

GOOD = {"dialogue": "A: hi\nB: hello"}


def write(path: Path, *rows: Any, name: str = "calls.jsonl") -> Path:
    file = path / name
    file.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return file


def rows_of(file: Path, **options: Any) -> list[Row]:
    return list(read_rows(file, format=detect_format(file), **options))


def test_ids_default_to_the_line_and_references_come_from_the_usual_columns(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD | {"summary": "s"}, b"", GOOD | {"summary1": "a", "summary2": "b", "topic": "t"})
    first, second = rows_of(file)
    assert (first.number, first.line, first.id, first.references) == (0, 1, "1", ("s",))
    assert (second.number, second.line, second.id) == (1, 3, "3")
    assert second.metadata == {"summary1": "a", "summary2": "b", "topic": "t"}
    numbered = write(tmp_path, GOOD | {"id": 7, "summary2": "b", "summary1": "a", "summary10": "c"}, name="n.jsonl")
    assert rows_of(numbered)[0].references == ("a", "b", "c")
    assert rows_of(numbered)[0].id == "7"


def test_fname_is_an_id_and_references_may_be_a_list(tmp_path: Path) -> None:
    row = rows_of(write(tmp_path, GOOD | {"fname": "dev_1", "references": ["a", "b"], "metadata": {"k": 1}}))[0]
    assert (row.id, row.references, row.metadata) == ("dev_1", ("a", "b"), {"k": 1})


def test_columns_can_be_mapped(tmp_path: Path) -> None:
    file = write(tmp_path, {"transcript": "x", "key": "k", "gold": "g", "more": "m"})
    mapping = parse_mapping(["dialogue=transcript", "id=key", "references=gold,more"])
    row = rows_of(file, mapping=mapping)[0]
    assert (row.dialogue, row.id, row.references) == ("x", "k", ("g", "m"))
    for bad in (["dialogue"], ["text=x"], ["dialogue="], ["id=a", "id=b"]):
        with pytest.raises(InvalidSpec):
            parse_mapping(bad)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"dialogue": ', "Line 2: not valid JSON at column"),
        (b"[1, 2]", "Line 2: not a JSON object"),
        (b'{"dialogue": "caf\xe9"}', "Line 2: not UTF-8 at byte 18"),
        (b'{"dialogue": ""}', "Line 2: 'dialogue' is empty"),
        (b'{"dialogue": " \\n "}', "Line 2: 'dialogue' is empty"),
        (b'{"dialogue": 5}', "Line 2: 'dialogue' must be text, not a number"),
        (b'{"text": "x"}', "Line 2: there is no 'dialogue'"),
        (b'{"dialogue": "x", "id": [1]}', "Line 2: 'id' must be text or a whole number, not a list"),
        (b'{"dialogue": "a\\u0000b"}', "Line 2: 'dialogue' holds a NUL"),
        (b'{"dialogue": "a\\ud800b"}', "Line 2: 'dialogue' holds half of a surrogate pair"),
        (b'{"dialogue": "x", "summary": 3}', "Line 2: 'summary' must be text or a list"),
        (b'{"dialogue": "x", "note": "a\\u0000"}', "Line 2: the other columns hold a NUL"),
        (b'{"dialogue": "x", "note": NaN}', "Line 2: the other columns cannot be kept"),
        (b'{"dialogue": "x", "id": "1"}', "Line 2: the id '1' was used before, in line 1"),
        (b'{"dialogue": "x", "note": "' + b"n" * 70_000 + b'"}', "Line 2: the other columns hold"),
        (b'{"dialogue": "' + b"x" * 10_000_000 + b'"}', "Line 2: longer than 8388608 bytes"),
    ],
)
def test_wrong_line_is_named_with_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    file = write(tmp_path, GOOD | {"summary": "s"}, line)
    with pytest.raises(InvalidDataset) as caught:
        scan(file)
    assert caught.value.message.startswith(message)
    assert caught.value.details[0].line == 2


def test_many_wrong_lines_are_counted_and_the_first_twenty_shown(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD, *[b"broken"] * 37)
    with pytest.raises(InvalidDataset, match="37 lines are wrong; the first 20") as caught:
        scan(file)
    assert [detail.line for detail in caught.value.details] == list(range(2, 22))


def test_missing_column_names_those_found_and_the_nearest(tmp_path: Path) -> None:
    file = write(tmp_path, {"dialog": "x", "topic": "t"})
    with pytest.raises(InvalidDataset) as caught:
        scan(file)
    assert "'dialog', 'topic'" in caught.value.message
    assert "Did you mean 'dialog'?" in caught.value.message
    assert "--column dialogue=NAME" in caught.value.message
    with pytest.raises(InvalidDataset, match="'transcript'"):
        scan(file, mapping=Mapping(dialogue="transcript"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"\x89PNG\r\n", "PNG"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"PK\x03\x04", "zip"),
        (b"\xff\xfeh\x00", "UTF-16"),
        (b"[{}]", "JSON array"),
    ],
)
def test_file_of_another_kind_is_refused_by_its_content(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "calls.jsonl"
    file.write_bytes(content)
    with pytest.raises(InvalidDataset, match=message):
        detect_format(file)


def test_wrongly_named_file_is_read_by_its_content(tmp_path: Path) -> None:
    assert scan(write(tmp_path, GOOD, name="calls.csv")).format == Format.JSONL
    text = tmp_path / "calls.txt"
    text.write_text("dialogue,id\nhello,1\n")
    assert scan(text).format == Format.CSV
    fake = tmp_path / "calls.parquet"
    fake.write_text("dialogue,id\nhello,1\n")
    with pytest.raises(InvalidDataset, match=r"named \.parquet"):
        scan(fake)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_with_quoted_line_breaks(tmp_path: Path, delimiter: str) -> None:
    file = tmp_path / "calls.csv"
    lines = [["id", "dialogue", "summary"], ["1", '"A: hi\nB: ""ho"""', "s"], ["", "plain", ""]]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(delimiter.join(line) for line in lines).encode())
    first, second = rows_of(file)
    assert (first.dialogue, first.references, first.line) == ('A: hi\nB: "ho"', ("s",), 2)
    assert (second.id, second.dialogue, second.references, second.line) == ("4", "plain", (), 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dialogue,id\nhello\n", "Line 2: 1 fields, but the header has 2"),
        ("dialogue,dialogue\nx,y\n", "twice"),
        ("text\nhello\n", "no column 'dialogue'"),
        ('dialogue\n"open\n', "Line 2: not valid CSV"),
        ("dialogue\n", "no rows"),
    ],
)
def test_wrong_csv_says_where(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "calls.csv"
    file.write_text(content)
    with pytest.raises(InvalidDataset, match=message):
        scan(file)


def test_csv_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "calls.csv"
    file.write_bytes(b"dialogue\nok\ncaf\xe9\n")
    with pytest.raises(InvalidDataset, match="Line 3: not UTF-8 at byte 4"):
        scan(file)


def test_parquet_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    file = tmp_path / "calls.parquet"
    parquet.write_table(pyarrow.table({"dialogue": ["a", "b"], "references": [["x"], None], "id": [10, 11]}), file)
    first, second = rows_of(file)
    assert (first.id, first.references, second.references) == ("10", ("x",), ())
    numbers = tmp_path / "numbers.parquet"
    parquet.write_table(pyarrow.table({"dialogue": [1, 2]}), numbers)
    with pytest.raises(InvalidDataset, match=r"2 lines are wrong\. Line 1: 'dialogue' must be text"):
        scan(numbers)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InvalidDataset, match="Parquet file cannot be read"):
        scan(file)


def test_equal_rows_have_equal_digests_whatever_their_format(tmp_path: Path) -> None:
    jsonl = write(tmp_path, {"id": "1", "dialogue": "a", "summary": "s"})
    csv = tmp_path / "other.csv"
    csv.write_text("summary,dialogue,id\ns,a,1\n")
    assert scan(jsonl).digest == scan(csv).digest
    assert scan(jsonl).digest != scan(write(tmp_path, {"id": "1", "dialogue": "b", "summary": "s"}, name="b.jsonl")).digest


def test_memory_of_a_scan_does_not_grow_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    with file.open("w") as out:
        for number in range(30_000):
            out.write(json.dumps({"dialogue": f"dialogue {number} " + "x" * 200}) + "\n")
    tracemalloc.start()
    found = scan(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.rows == 30_000
    assert peak < 6_000_000

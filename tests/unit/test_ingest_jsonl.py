"""JSON Lines: one object per line, and what is wrong with a line by its number."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from gistmill.errors import Detail
from gistmill.ingest.jsonl import read
from gistmill.ingest.rows import Record

LIMIT = 8 * 1024**2


def read_all(tmp_path: Path, data: bytes, *, limit: int = LIMIT) -> list[Record | Detail]:
    path = tmp_path / "calls.jsonl"
    path.write_bytes(data)
    return list(read(path, max_line_bytes=limit))


def test_each_line_becomes_a_record_with_its_number(tmp_path: Path) -> None:
    records = read_all(tmp_path, '{"dialogue": "Ann: hé"}\n{"dialogue": "Bob: no"}'.encode())

    assert records == [Record(1, {"dialogue": "Ann: hé"}), Record(2, {"dialogue": "Bob: no"})]


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_passed_over(tmp_path: Path) -> None:
    records = read_all(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n\r\n   \n{"a": 2}\r\n')

    assert records == [Record(1, {"a": 1}), Record(4, {"a": 2})]


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    assert read_all(tmp_path, '{"a": "x\u2028y\u0085z"}\n'.encode()) == [Record(1, {"a": "x\u2028y\u0085z"})]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (b'{"dialogue": "Ann', "not_json", "not valid JSON at column 14: Unterminated string"),
        (b'{"a": 1} {"a": 2}', "not_json", "not valid JSON at column 10: Extra data"),
        (b"{", "not_json", "write each object on one line"),
        (b'"Ann: hi"', "not_an_object", "not a JSON object"),
        (b"[1]", "not_an_object", "not a JSON object"),
        (b'{"a": "caf\xe9"}', "not_utf8", "not UTF-8 at byte 11 of the line"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not_json", "a number has thousands of digits"),
        (b"[" * 200_000, "not_json", "nested too deeply"),
    ],
)
def test_a_broken_line_is_named_and_the_next_is_read(tmp_path: Path, line: bytes, code: str, message: str) -> None:
    first, wrong, last = read_all(tmp_path, b'{"a": 1}\n' + line + b'\n{"a": 2}\n')

    assert (first, last) == (Record(1, {"a": 1}), Record(3, {"a": 2}))
    assert isinstance(wrong, Detail)
    assert (wrong.code, wrong.line) == (code, 2)
    assert message in wrong.message


def test_a_line_is_too_long_by_one_byte(tmp_path: Path) -> None:
    line = b'{"a": "' + b"x" * 91 + b'"}'
    assert len(line) == 100

    assert read_all(tmp_path, line + b"\n", limit=100) == [Record(1, {"a": "x" * 91})]
    assert read_all(tmp_path, line, limit=100) == [Record(1, {"a": "x" * 91})]
    assert read_all(tmp_path, line + b"\n", limit=99) == [Detail("line_too_long", "longer than 99 bytes", line=1)]


@pytest.mark.parametrize("end", [b"", b"\n", b'\n{"a": 1}\n'])
def test_a_line_of_ten_megabytes_is_refused_by_its_number_without_being_held(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "calls.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 0}\n{"a": "')
        for _ in range(100):
            file.write(b"x" * 1024 * 1024)
        file.write(b'"}' + end)
    tracemalloc.start()
    try:
        found = list(read(path, max_line_bytes=LIMIT))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert found[1] == Detail("line_too_long", f"longer than {LIMIT} bytes", line=2)
    assert found[2:] == ([Record(3, {"a": 1})] if len(end) > 1 else [])
    assert peak < 3 * LIMIT

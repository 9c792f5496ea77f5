"""CSV: a header, then rows that may span lines, and what is wrong by the line where the row begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from gistmill.errors import Detail, InvalidDataset
from gistmill.ingest.delimited import read
from gistmill.ingest.rows import Record


def read_all(tmp_path: Path, text: str | bytes, *, limit: int = 1_000_000) -> list[Record | Detail]:
    path = tmp_path / "calls.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(read(path, max_line_bytes=limit))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_tells_the_delimiter(tmp_path: Path, delimiter: str) -> None:
    text = delimiter.join(["id", '"dialogue, all; of\tit"']) + "\n" + delimiter.join(["7", '"Ann: a,b;c\td"']) + "\n"

    assert read_all(tmp_path, text) == [Record(2, {"id": "7", "dialogue, all; of\tit": "Ann: a,b;c\td"})]


def test_one_column_needs_no_delimiter(tmp_path: Path) -> None:
    assert read_all(tmp_path, "dialogue\nAnn: hi\n") == [Record(2, {"dialogue": "Ann: hi"})]


def test_quoted_line_breaks_belong_to_the_field_and_rows_are_named_by_their_first_line(tmp_path: Path) -> None:
    text = 'id,dialogue\n1,"Ann: hi\nBob: ""yes"""\n\n2,"Ann: bye\r\n"\n3\n'

    assert read_all(tmp_path, text) == [
        Record(2, {"id": "1", "dialogue": 'Ann: hi\nBob: "yes"'}),
        Record(5, {"id": "2", "dialogue": "Ann: bye\r\n"}),
        Detail("wrong_field_count", "1 fields, but the header has 2", line=7),
    ]


def test_a_byte_order_mark_and_blank_lines_before_the_header_are_passed_over(tmp_path: Path) -> None:
    assert read_all(tmp_path, "\ufeff\n\r\nid , dialogue\r\n1,x\r\n,\r\n") == [Record(4, {"id": "1", "dialogue": "x"})]


def test_a_header_alone_and_an_empty_file_hold_no_rows(tmp_path: Path) -> None:
    assert read_all(tmp_path, "id,dialogue\n") == []
    assert read_all(tmp_path, "") == []


@pytest.mark.parametrize(
    ("header", "message"), [("a,b,a", "names the column 'a' twice"), ("a,,", "leaves two columns without a name")]
)
def test_a_header_with_two_columns_alike_is_refused(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(InvalidDataset, match=f"Line 1: the header {message}"):
        read_all(tmp_path, f"{header}\n1,2,3\n")


@pytest.mark.parametrize(
    ("tail", "code", "line"),
    [
        (b'2,"Ann: never closed\n\nBob\n', "not_csv", 4),
        (b'2,"Ann" and more\n', "not_csv", 4),
        (b"2,Ann: ok\n3,caf\xe9\n", "not_utf8", 5),
        (b"2," + b"x" * 1000 + b"\n", "line_too_long", 4),
        (b'2,"' + b"x\n" * 500 + b'"\n', "line_too_long", 4),
    ],
)
def test_what_breaks_the_file_is_named_by_its_line_and_ends_the_reading(
    tmp_path: Path, tail: bytes, code: str, line: int
) -> None:
    found = read_all(tmp_path, b'id,dialogue\n1,"Ann:\nhi"\n' + tail, limit=900)

    assert found[0] == Record(2, {"id": "1", "dialogue": "Ann:\nhi"})
    assert isinstance(found[-1], Detail)
    assert (found[-1].code, found[-1].line) == (code, line)


def test_a_field_larger_than_the_csv_module_expects_is_read(tmp_path: Path) -> None:
    (record,) = read_all(tmp_path, f"dialogue\n{'x' * 500_000}\n")

    assert isinstance(record, Record)
    assert len(record.values["dialogue"]) == 500_000


def test_many_rows_may_together_be_longer_than_one_may(tmp_path: Path) -> None:
    assert len(read_all(tmp_path, "dialogue\n" + "Ann: hi\n" * 1000, limit=100)) == 1000

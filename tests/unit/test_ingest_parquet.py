"""Parquet: rows in batches, odd types as text, broken files with a plain message."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from gistmill.errors import InvalidDataset
from gistmill.ingest import parquet as reader
from gistmill.ingest.reading import Format, read_rows, scan


def write(tmp_path: Path, columns: dict[str, Any]) -> Path:
    path = tmp_path / "calls.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=400)
    return path


def test_rows_of_several_groups_come_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, {"dialogue": [f"Ann: {n}" for n in range(1000)], "references": [[f"r{n}"] for n in range(1000)]})

    found = scan(path)
    rows = list(read_rows(path, format=found.format))

    assert (found.rows, found.format) == (1000, Format.PARQUET)
    assert [(row.number, row.line, row.id) for row in rows] == [(n, n + 1, str(n + 1)) for n in range(1000)]
    assert rows[999].dialogue == "Ann: 999"
    assert rows[999].references == ("r999",)


def test_dates_and_decimals_become_text_in_the_metadata_and_nulls_are_left_out(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"dialogue": ["Ann: hi"], "day": [datetime.date(2026, 3, 1)], "price": [Decimal("1.50")], "n": [7], "none": [None]},
    )

    (row,) = read_rows(path, format=Format.PARQUET)

    assert row.metadata == {"day": "2026-03-01", "price": "1.50", "n": 7}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"dialogue": [1, 2]}, "2 lines are wrong. Line 1: 'dialogue' must be text, not a number."),
        ({"dialogue": ["a", None]}, "Line 2: 'dialogue' must be text, not nothing."),
        ({"dialogue": [b"a"]}, "Line 1: 'dialogue' must be text, not bytes."),
        ({"dialogue": ["a"], "id": [1.5]}, "Line 1: 'id' must be text or a whole number, not a number with a point."),
        ({"dialogue": ["a"], "score": [float("nan")]}, "hold NaN or an infinite number"),
        ({"dialogue": ["a", "b"], "id": ["x", "x"]}, "Line 2: the id 'x' was used before, in line 1."),
        ({"transcripts": ["a"]}, "There is no column 'dialogue'. Columns found: 'transcripts'."),
        ({"dialogue": pyarrow.array([], pyarrow.string())}, "The file holds no rows."),
    ],
)
def test_wrong_columns_are_named_by_row(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = write(tmp_path, columns)

    with pytest.raises(InvalidDataset) as raised:
        scan(path)

    assert message in raised.value.message


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["dialogue", "dialogue"])
    parquet.write_table(table, tmp_path / "calls.parquet")

    with pytest.raises(InvalidDataset, match="names the column 'dialogue' twice"):
        scan(tmp_path / "calls.parquet")


@pytest.mark.parametrize("kept", [6, 1000, -20])
def test_a_broken_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path, {"dialogue": [f"Ann: {n} {n * n}" for n in range(1000)]})
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(InvalidDataset, match="The Parquet file cannot be read behind row 0"):
        scan(path)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\4\0\0\0"), pyarrow.py_buffer(b"caf\xe9")]
    )
    path = write(tmp_path, {"dialogue": broken})

    with pytest.raises(InvalidDataset, match="cannot be read"):
        scan(path)


def test_large_batches_are_read_row_by_row_and_too_long_texts_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LARGE_BATCH_BYTES", 100)
    path = write(tmp_path, {"dialogue": ["Ann: hi", "x" * 2000, "Bob: bye"]})

    assert scan(path).rows == 3
    with pytest.raises(InvalidDataset, match="Line 2: 'dialogue' is longer than 1000 bytes"):
        scan(path, max_line_bytes=1000)

"""CSV and its kin: a header line, then rows; quoted fields may hold line breaks."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from gistmill.errors import Detail, InvalidDataset
from gistmill.ingest.jsonl import BYTE_ORDER_MARK, read_line
from gistmill.ingest.rows import Record

DELIMITERS = (",", ";", "\t")


class _Lines:
    """The decoded lines of a file for the csv module, with the number of the line read last."""

    def __init__(self, path: Path, max_line_bytes: int) -> None:
        self._file = path.open("rb")
        self._max_bytes = max_line_bytes
        self.line = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw, is_long = read_line(self._file, self._max_bytes)
        if is_long:
            raise _Broken(Detail("line_too_long", f"longer than {self._max_bytes} bytes", line=self.line + 1))
        if not raw:
            raise StopIteration
        self.line += 1
        if self.line == 1:
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"not UTF-8 at byte {error.start + 1}; save the file as UTF-8"
            raise _Broken(Detail("not_utf8", where, line=self.line)) from error

    def close(self) -> None:
        self._file.close()


class _Broken(Exception):
    """Nothing behind this place can be read: the boundaries of rows are not known any more."""

    def __init__(self, detail: Detail) -> None:
        super().__init__(detail.message)
        self.detail = detail


def read(path: Path, *, max_line_bytes: int) -> Iterator[Record | Detail]:
    """Yield a record for each row, or what is wrong with it."""
    csv.field_size_limit(max_line_bytes)
    lines = _Lines(path, max_line_bytes)
    try:
        yield from _read(lines)
    except _Broken as error:
        yield error.detail
    except csv.Error as error:
        yield Detail("not_csv", f"not valid CSV: {error}", line=max(1, lines.line))
    finally:
        lines.close()


def _read(lines: _Lines) -> Iterator[Record | Detail]:
    first = next(iter(lines), "")
    header = next(csv.reader([first], delimiter=_delimiter(first)), [])
    names = [name.strip() for name in header]
    if not any(names):
        return
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidDataset(f"The header names the column '{twice}' twice.")
    reader = csv.reader(lines, delimiter=_delimiter(first), strict=True)
    begins_at = lines.line + 1
    for values in reader:
        if any(value.strip() for value in values):
            if len(values) != len(names):
                wrong = f"{len(values)} fields, but the header has {len(names)}"
                yield Detail("wrong_field_count", wrong, line=begins_at)
            else:
                yield Record(begins_at, dict(zip(names, values, strict=True)))
        begins_at = lines.line + 1


def _delimiter(header: str) -> str:
    return max(DELIMITERS, key=header.count)

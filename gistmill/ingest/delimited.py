"""CSV and its kin: a header line, then rows; quoted fields may hold line breaks."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from gistmill.errors import Detail, InvalidDataset
from gistmill.ingest.jsonl import BYTE_ORDER_MARK, read_line
from gistmill.ingest.rows import Record

DELIMITERS = (",", ";", "\t")


class _Lines:
    """The decoded lines of a file for the csv module. `line` was read last; the row at hand begins at `begins_at`."""

    def __init__(self, path: Path, max_row_bytes: int) -> None:
        self._file = path.open("rb")
        self._max_bytes = max_row_bytes
        self._row_bytes = 0
        self.line = 0
        self.begins_at = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw, is_long = read_line(self._file, self._max_bytes)
        # A row may span lines, and a quote that is never closed spans all that follow: their sum is bounded too.
        self._row_bytes += len(raw)
        if is_long or self._row_bytes > self._max_bytes:
            raise _Broken(Detail("line_too_long", f"longer than {self._max_bytes} bytes", line=self.begins_at))
        if not raw:
            raise StopIteration
        self.line += 1
        if self.line == 1:
            raw = raw.removeprefix(BYTE_ORDER_MARK)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            where = f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8"
            raise _Broken(Detail("not_utf8", where, line=self.line)) from error

    def begin_row(self) -> None:
        """The next line begins a row."""
        self.begins_at, self._row_bytes = self.line + 1, 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Broken(Exception):
    """Nothing behind this place can be read: the boundaries of rows are not known any more."""

    def __init__(self, detail: Detail) -> None:
        super().__init__(detail.message)
        self.detail = detail


def read(path: Path, *, max_line_bytes: int) -> Iterator[Record | Detail]:
    """Yield a record for each row that is not blank, or what is wrong with it; a row may be as long as a line may.

    Memory is bounded.

    Raises:
        InvalidDataset: the header names two columns alike.
    """
    rows = read_all(path, max_line_bytes=max_line_bytes)
    return (row for row in rows if isinstance(row, Detail) or any(value.strip() for value in row.values.values()))


def read_all(path: Path, *, max_line_bytes: int) -> Iterator[Record | Detail]:
    """Yield what `read` does, and a record for each row whose fields are all blank; only an empty line is no row.

    Raises:
        InvalidDataset: the header names two columns alike.
    """
    csv.field_size_limit(max_line_bytes)
    lines = _Lines(path, max_line_bytes)
    try:
        yield from _read(lines)
    except _Broken as error:
        yield error.detail
    except csv.Error as error:
        yield Detail("not_csv", f"not valid CSV: {error}", line=lines.begins_at)
    finally:
        lines.close()


def _read(lines: _Lines) -> Iterator[Record | Detail]:
    first = next((line for line in lines if line.strip()), "")
    reader = csv.reader(chain([first], lines), delimiter=_delimiter(first), strict=True)
    names = [name.strip() for name in next(reader)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        what = f"names the column '{twice}' twice" if twice else "leaves two columns without a name"
        raise InvalidDataset(f"Line {lines.line}: the header {what}. Give each column its own name.")
    lines.begin_row()
    for values in reader:
        if len(values) == len(names):
            yield Record(lines.begins_at, dict(zip(names, values, strict=True)))
        elif any(value.strip() for value in values):
            wrong = f"{len(values)} fields, but the header has {len(names)}"
            yield Detail("wrong_field_count", wrong, line=lines.begins_at)
        lines.begin_row()


def _delimiter(header: str) -> str:
    unquoted = re.sub(r'"[^"]*"', "", header)
    return max(DELIMITERS, key=unquoted.count)

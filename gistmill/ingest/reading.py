"""A file becomes checked rows: its format is found, its columns are understood, and everything wrong is named by its line."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from gistmill.errors import Detail, InvalidDataset
from gistmill.ingest import delimited, jsonl, parquet
from gistmill.ingest.mapping import Columns, Mapping, resolve
from gistmill.ingest.rows import Record, Row

MAX_LINE_BYTES = 8 * 1024**2
LONGEST_ID = 500
LARGEST_METADATA_BYTES = 64 * 1024
SHOWN_ERRORS = 20
HEAD_BYTES = 4096


class Format(StrEnum):
    """The formats of dataset files."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


READERS: dict[Format, Callable[..., Iterator[Record | Detail]]] = {
    Format.JSONL: jsonl.read,
    Format.CSV: delimited.read,
    Format.PARQUET: parquet.read,
}
SUFFIXES = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".json": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".parquet": Format.PARQUET,
}
FOREIGN = {
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"PK\x03\x04": "a zip or Excel file; save the sheet as CSV, or unpack it first",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
    b"BZh": "a bzip2 file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a Zstandard file; unpack it first",
    b"SQLite format 3": "a SQLite database",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
}


@dataclass(frozen=True)
class Scan:
    """What a full pass over a file found. `digest` stands for the parsed rows: equal rows have equal digests."""

    rows: int
    digest: str
    format: Format
    warnings: tuple[str, ...] = ()


def detect_format(path: Path, filename: str = "") -> Format:
    """Return the format, by what the file holds first and its name second.

    Raises:
        InvalidDataset: the file is empty or of another kind; the message says which.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).removeprefix(jsonl.BYTE_ORDER_MARK)
    if not head.strip():
        raise InvalidDataset("The file is empty.")
    if head.startswith(b"PAR1"):
        return Format.PARQUET
    for magic, kind in FOREIGN.items():
        if head.startswith(magic):
            raise InvalidDataset(f"The file is {kind}. Gistmill reads JSON Lines, CSV and Parquet.")
    if head.lstrip().startswith(b"{"):
        return Format.JSONL
    if head.lstrip().startswith(b"["):
        raise InvalidDataset("The file is one JSON array. Write one JSON object per line instead (JSON Lines).")
    named = SUFFIXES.get(Path(filename or path.name).suffix.lower())
    if named == Format.PARQUET:
        raise InvalidDataset("The file is named .parquet but does not begin as Parquet files do.")
    return named or Format.CSV


def scan(
    path: Path,
    *,
    format: Format | None = None,
    filename: str = "",
    mapping: Mapping | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Scan:
    """Check every row of a file and return what it holds.

    Raises:
        InvalidDataset: something is wrong; `details` name the first lines and the message how many there are.
    """
    form = format or detect_format(path, filename)
    errors = _Errors()
    digest = hashlib.sha256()
    count = 0
    # A 64-bit hash of each id and the line of its first use: a set of a million texts would take three times the memory.
    lines_of_ids: dict[int, int] = {}
    for item in _rows(path, form, mapping or Mapping(), max_line_bytes):
        if isinstance(item, Detail):
            errors.add(item)
            continue
        first = lines_of_ids.setdefault(_short_hash(item.id), item.line)
        if first != item.line:
            shown = item.id if len(item.id) <= 80 else item.id[:80] + "…"
            errors.add(Detail("duplicate_id", f"the id '{shown}' was used before, in line {first}", line=item.line))
        count += 1
        digest.update(_canonical(item))
    errors.raise_if_any()
    if count == 0:
        raise InvalidDataset("The file holds no rows.")
    return Scan(count, digest.hexdigest(), form)


def read_rows(
    path: Path, *, format: Format, mapping: Mapping | None = None, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Row]:
    """Yield the rows of a file that `scan` has accepted.

    Raises:
        InvalidDataset: the file has changed since.
    """
    for item in _rows(path, format, mapping or Mapping(), max_line_bytes):
        if isinstance(item, Detail):
            raise InvalidDataset(f"Line {item.line}: {item.message}.", details=[item])
        yield item


def _rows(path: Path, form: Format, mapping: Mapping, max_line_bytes: int) -> Iterator[Row | Detail]:
    columns: Columns | None = None
    number = 0
    try:
        for record in READERS[form](path, max_line_bytes=max_line_bytes):
            if isinstance(record, Detail):
                yield record
                continue
            columns = columns or resolve(mapping, list(record.values))
            row = _row(record, columns, number)
            number += isinstance(row, Row)
            yield row
    except csv.Error as error:
        raise InvalidDataset(f"The file is not valid CSV: {error}") from error


def _row(record: Record, columns: Columns, number: int) -> Row | Detail:
    values = record.values
    try:
        return Row(
            number,
            record.line,
            _id(values, columns.id, record.line),
            _dialogue(values, columns.dialogue),
            _references(values, columns.references),
            _metadata(values, columns),
        )
    except _Wrong as error:
        return Detail(error.code, error.message, line=record.line)


class _Wrong(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def _dialogue(values: dict[str, Any], column: str) -> str:
    if column not in values:
        raise _Wrong("missing_column", f"there is no '{column}' in this row")
    text = values[column]
    if not isinstance(text, str):
        raise _Wrong("wrong_type", f"'{column}' must be text, not {_kind(text)}")
    if not text.strip():
        raise _Wrong("empty_dialogue", f"'{column}' is empty")
    return _text(text, column)


def _id(values: dict[str, Any], column: str | None, line: int) -> str:
    value = values.get(column) if column is not None else None
    if value is None:
        return str(line)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Wrong("wrong_type", f"'{column}' must be text or a whole number, not {_kind(value)}")
    text = str(value).strip()
    if not text:
        return str(line)
    if len(text) > LONGEST_ID:
        raise _Wrong("id_too_long", f"'{column}' has {len(text)} characters; an id may have {LONGEST_ID}")
    return _text(text, str(column))


def _references(values: dict[str, Any], columns: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for column in columns:
        value = values.get(column)
        for text in value if isinstance(value, list) else [value]:
            if text is None or text == "":
                continue
            if not isinstance(text, str):
                raise _Wrong("wrong_type", f"'{column}' must be text or a list of texts, not {_kind(text)}")
            found.append(_text(text, column))
    return tuple(found)


def _metadata(values: dict[str, Any], columns: Columns) -> dict[str, Any]:
    used = {columns.id, columns.dialogue, *columns.references}
    rest = {name: value for name, value in values.items() if name not in used and value is not None}
    nested = rest.pop("metadata", None)
    merged = rest | nested if isinstance(nested, dict) else rest | ({"metadata": nested} if nested is not None else {})
    try:
        encoded = json.dumps(merged, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError as error:
        raise _Wrong("wrong_metadata", f"the other columns cannot be kept as JSON: {error}") from error
    if len(encoded) > LARGEST_METADATA_BYTES:
        raise _Wrong("metadata_too_large", f"the other columns hold {len(encoded)} bytes; {LARGEST_METADATA_BYTES} are allowed")
    _text(encoded, "metadata")
    if "\\u0000" in encoded:
        raise _Wrong("nul_character", "the other columns hold a NUL character, which databases cannot store")
    return dict(json.loads(encoded))


def _text(text: str, column: str) -> str:
    if "\x00" in text:
        raise _Wrong("nul_character", f"'{column}' holds a NUL character, which databases cannot store")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Wrong("broken_unicode", f"'{column}' holds half of a surrogate pair at character {error.start + 1}") from error
    return text


def _kind(value: Any) -> str:
    names = {
        type(None): "nothing",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)


def _canonical(row: Row) -> bytes:
    fields = [row.id, row.dialogue, row.references, row.metadata]
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


class _Errors:
    """Keeps the first errors and counts the rest."""

    def __init__(self) -> None:
        self.first: list[Detail] = []
        self.count = 0

    def add(self, detail: Detail) -> None:
        self.count += 1
        if len(self.first) < SHOWN_ERRORS:
            self.first.append(detail)

    def raise_if_any(self) -> None:
        if not self.count:
            return
        first = self.first[0]
        if self.count == 1:
            raise InvalidDataset(f"Line {first.line}: {first.message}.", details=self.first)
        shown = f"; the first {SHOWN_ERRORS}" if self.count > SHOWN_ERRORS else ""
        raise InvalidDataset(f"{self.count} lines are wrong{shown}. Line {first.line}: {first.message}.", details=self.first)

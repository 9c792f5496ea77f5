"""A file becomes checked rows: its columns are understood, and everything wrong is named by its line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from json.encoder import encode_basestring
from pathlib import Path

from gistmill.errors import Detail, InvalidDataset
from gistmill.ingest import delimited, jsonl, parquet
from gistmill.ingest.checking import check
from gistmill.ingest.duplicates import SeenIds
from gistmill.ingest.formats import Format, detect_format, misnamed, refuse_foreign
from gistmill.ingest.mapping import Columns, Mapping, describe, find_convention, free_of, require_chosen, resolve
from gistmill.ingest.rows import Record, Row

__all__ = ["MAX_LINE_BYTES", "Format", "Scan", "detect_format", "read_rows", "scan"]

MAX_LINE_BYTES = 8 * 1024**2
SHOWN_ERRORS = 20
SHOWN_ID = 80
KEPT_LAYOUTS = 1000
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))

READERS: dict[Format, Callable[..., Iterator[Record | Detail]]] = {
    Format.JSONL: jsonl.read,
    Format.CSV: delimited.read,
    Format.PARQUET: parquet.read,
}
# Predictions may stand row by row beside other data, so that a row without any must not move the rest up.
PREDICTION_READERS = READERS | {Format.CSV: delimited.read_all}


@dataclass(frozen=True)
class Scan:
    """What a full pass over a file found. `digest` stands for the parsed rows and the mapping, not for the bytes."""

    rows: int
    digest: str
    format: Format
    warnings: tuple[str, ...] = ()


def scan(
    path: Path,
    *,
    format: Format | None = None,
    filename: str = "",
    mapping: Mapping | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Scan:
    """Check every row of a file and return what it holds. `filename` is what its owner calls it.

    Raises:
        InvalidDataset: something is wrong; `details` name the first lines and the message how many there are.
    """
    if format is not None:
        refuse_foreign(path)
    form = format or detect_format(path, filename)
    pass_over = _Pass(path, form, mapping or Mapping(), max_line_bytes)
    digest = hashlib.sha256(_canonical_mapping(pass_over.mapping))
    first_errors: list[Detail] = []
    wrong = count = 0
    ids = SeenIds()
    for item in pass_over:
        if isinstance(item, Detail):
            wrong += 1
            if len(first_errors) < SHOWN_ERRORS:
                first_errors.append(item)
            continue
        count += 1
        ids.add(item.id, item.line)
        digest.update(_canonical(item))
    repeats = ids.find_repeats()
    if wrong or repeats:
        raise _as_error([*first_errors, *_name_repeats(pass_over, repeats[:SHOWN_ERRORS])], wrong + len(repeats))
    if count == 0:
        raise InvalidDataset("The file holds no rows.")
    warning = None if format else misnamed(filename or path.name, form)
    return Scan(count, digest.hexdigest(), form, (warning,) if warning else ())


def read_rows(
    path: Path, *, format: Format, mapping: Mapping | None = None, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[Row]:
    """Yield the rows of a file that `scan` has accepted.

    Raises:
        InvalidDataset: the file has changed since.
    """
    for item in _Pass(path, format, mapping or Mapping(), max_line_bytes):
        if isinstance(item, Detail):
            raise _as_error([item], 1)
        yield item


@dataclass(frozen=True)
class _Pass:
    """Each iteration is a pass over the file that yields rows, and what is wrong with those that cannot be rows."""

    path: Path
    format: Format
    mapping: Mapping
    max_line_bytes: int

    def __iter__(self) -> Iterator[Row | Detail]:
        layouts = _Layouts(self.mapping)
        number = 0
        readers = PREDICTION_READERS if self.mapping.predictions else READERS
        for record in readers[self.format](self.path, max_line_bytes=self.max_line_bytes):
            if isinstance(record, Detail):
                yield record
                continue
            # Only the lines of JSON Lines differ in what they name; of the others one row tells all.
            if layouts.first is None and self.format != Format.JSONL:
                require_chosen(self.mapping, list(record.values))
            columns = layouts.find(record)
            if columns is None:
                wanted = self.mapping.dialogue or "dialogue"
                hint = describe(wanted, list(record.values)).rstrip(".")
                yield Detail("missing_column", f"there is no '{wanted}'. {hint}", line=record.line)
                continue
            row = check(record, columns, number=number, max_text_bytes=self.max_line_bytes)
            number += isinstance(row, Row)
            yield row
        if layouts.first is not None:
            require_chosen(self.mapping, [*layouts.first, *layouts.chosen])


class _Layouts:
    """Which columns mean what in rows that need not name the same ones: an item may leave out its references.

    A file has one convention for references, that of the first row with any; columns of another one are metadata.
    """

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._known: dict[tuple[str, ...], Columns] = {}
        self._convention: str | None = None
        self.first: tuple[str, ...] | None = None
        self.chosen: set[str] = set()

    def find(self, record: Record) -> Columns | None:
        """Return the columns of a record, or None when it has no dialogue; a first record without one is an error."""
        names = tuple(record.values)
        if known := self._known.get(names):
            return known
        try:
            self._convention = self._convention or find_convention(free_of(self._mapping, names))
            columns = resolve(self._mapping, names, convention=self._convention)
        except InvalidDataset as error:
            if self.first is not None:
                return None
            raise InvalidDataset(error.message, details=[Detail("missing_column", error.message, line=record.line)]) from error
        self.first = names if self.first is None else self.first
        self.chosen.update(set(names).intersection(self._mapping.chosen))
        if len(self._known) < KEPT_LAYOUTS:
            self._known[names] = columns
        return columns


def _name_repeats(pass_over: _Pass, repeats: list[tuple[int, int]]) -> Iterator[Detail]:
    """Yield what is wrong with these lines; their ids were not kept, so the file is read again up to the last of them."""
    firsts = dict(repeats)
    rows = (row for row in pass_over if isinstance(row, Row) and row.line in firsts)
    for row in islice(rows, len(firsts)):
        shown = row.id if len(row.id) <= SHOWN_ID else row.id[:SHOWN_ID] + "…"
        message = f"the id '{shown}' was used before, in line {firsts[row.line]}"
        yield Detail("duplicate_id", message, line=row.line)


def _as_error(details: list[Detail], count: int) -> InvalidDataset:
    shown = sorted(details, key=lambda detail: detail.line or 0)[:SHOWN_ERRORS]
    what = f"Line {shown[0].line}: {shown[0].message}."
    if count > 1:
        listed = f"; the first {len(shown)} are listed" if count > len(shown) else ""
        what = f"{count} lines are wrong{listed}. {what}"
    return InvalidDataset(what, details=shown)


def _canonical(row: Row) -> bytes:
    """Return the row as the digest of a dataset sees it; `json.dumps` would make its encoder anew for every row.

    What holds nothing but texts is written without one, in a quarter of the time.
    """
    if not row.metadata:
        references = ",".join(map(encode_basestring, row.references))
        return f"[{encode_basestring(row.id)},{encode_basestring(row.dialogue)},[{references}],{{}}]\n".encode()
    return _ENCODER.encode([row.id, row.dialogue, row.references, row.metadata]).encode() + b"\n"


def _canonical_mapping(mapping: Mapping) -> bytes:
    return mapping.model_dump_json(exclude_none=True).encode() + b"\n"

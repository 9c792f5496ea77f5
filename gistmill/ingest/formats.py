"""Which format a file has: what it holds counts first, its name second."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from gistmill.errors import Detail, InvalidDataset
from gistmill.ingest.jsonl import BYTE_ORDER_MARK

HEAD_BYTES = 4096
# Text in UTF-16 without a mark has every second byte zero; a stray NUL in a text is reported by its line instead.
MOST_NULS = HEAD_BYTES // 32


class Format(StrEnum):
    """The formats of dataset files."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


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
    b"\xfd7zXZ": "an xz file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a Zstandard file; unpack it first",
    b"SQLite format 3": "a SQLite database",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
}


def detect_format(path: Path, filename: str = "") -> Format:
    """Return the format of a file; `filename` is what its owner calls it.

    Raises:
        InvalidDataset: the file is empty or of another kind; the message says which.
    """
    head, line = _read_head(path)
    refuse_foreign(path)
    if head.startswith(b"PAR1"):
        return Format.PARQUET
    if head.startswith(b"{"):
        return Format.JSONL
    if head.startswith(b"["):
        raise InvalidDataset("The file is one JSON array. Write one JSON object per line instead (JSON Lines).")
    suffix = Path(filename or path.name).suffix.lower()
    named = SUFFIXES.get(suffix)
    if named == Format.PARQUET:
        raise InvalidDataset("The file is named .parquet but does not begin as Parquet files do.")
    if named == Format.JSONL:
        wrong = Detail("not_an_object", 'not a JSON object such as {"dialogue": "…"}', line=line)
        advice = f"The file is named {suffix}; if it holds CSV, name it .csv."
        raise InvalidDataset(f"Line {line}: {wrong.message}. {advice}", details=[wrong])
    return Format.CSV


def refuse_foreign(path: Path) -> None:
    """Make sure that a file holds something.

    Raises:
        InvalidDataset: it is empty, or plainly of a kind that is not read here; the message says which.
    """
    head, _ = _read_head(path)
    if not head:
        raise InvalidDataset("The file is empty.")
    for magic, kind in FOREIGN.items():
        if head.startswith(magic):
            raise InvalidDataset(f"The file is {kind}. Gistmill reads JSON Lines, CSV and Parquet.")
    if not head.startswith(b"PAR1") and head.count(0) > MOST_NULS:
        raise InvalidDataset("The file is binary, or text in UTF-16. Gistmill reads JSON Lines, CSV and Parquet in UTF-8.")


def misnamed(filename: str, format: Format) -> str | None:
    """Return a warning when a file's name promises another format than it has."""
    suffix = Path(filename).suffix.lower()
    if SUFFIXES.get(suffix, format) == format:
        return None
    return f"The file is named {suffix} but holds {format}; it was read as {format}."


def _read_head(path: Path) -> tuple[bytes, int]:
    """Return the first bytes that are not blank, and their line."""
    line = 1
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).removeprefix(BYTE_ORDER_MARK)
        while head and not head.strip():
            line += head.count(b"\n")
            head = file.read(HEAD_BYTES)
    stripped = head.lstrip()
    return stripped, line + head[: len(head) - len(stripped)].count(b"\n")

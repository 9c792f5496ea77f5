"""Parquet files, read in batches of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gistmill.errors import Detail, InvalidDataset
from gistmill.ingest.rows import Record

BATCH_ROWS = 256
# A larger batch is turned into Python values row by row, so that few rows are held twice.
LARGE_BATCH_BYTES = 64 * 1024**2
BUFFER_BYTES = 1024 * 1024


def read(path: Path, *, max_line_bytes: int) -> Iterator[Record | Detail]:
    """Yield a record for each row; `line` is the row's number from 1. The longest text is for the caller to check.

    Raises:
        InvalidDataset: the file is not Parquet, or is broken.
    """
    import pyarrow
    from pyarrow import parquet

    line = 0
    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER_BYTES) as file:
            _refuse_repeated_names(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for values in _rows(batch):
                    line += 1
                    yield Record(line, values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise InvalidDataset(f"The Parquet file cannot be read behind row {line}: {first}") from error


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    if batch.nbytes <= LARGE_BATCH_BYTES:
        yield from batch.to_pylist()
        return
    for number in range(batch.num_rows):
        yield from batch.slice(number, 1).to_pylist()


def _refuse_repeated_names(names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidDataset(f"The Parquet file names the column '{twice}' twice.")

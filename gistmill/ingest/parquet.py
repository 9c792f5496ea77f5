"""Parquet files, read in batches of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gistmill.errors import Detail, InvalidDataset
from gistmill.ingest.rows import Record

BATCH_ROWS = 1000


def read(path: Path, *, max_line_bytes: int) -> Iterator[Record | Detail]:
    """Yield a record for each row; `line` is the row's number from 1.

    Raises:
        InvalidDataset: the file is not Parquet, or is broken.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            line = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for values in batch.to_pylist():
                    line += 1
                    yield Record(line, values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidDataset(f"The Parquet file cannot be read: {first}") from error

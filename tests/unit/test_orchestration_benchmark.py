"""The benchmark of the orchestration: what it refuses to call by a name that it does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.orchestration import chunks
from benchmarks.orchestration.stack import Stack


class Workers:
    """Stand for a stack whose workers noted chunks of so many rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def start_workers(self, count: int, **settings: Any) -> None:
        pass

    def stop_workers(self) -> list[dict[str, Any]]:
        return [{"seconds": 5.01, "generating": 5.0, "recording": 0.005, "rows": self.rows}]


def measure(monkeypatch: pytest.MonkeyPatch, rows: int, directory: Path) -> dict[str, Any]:
    monkeypatch.setattr(chunks, "_run", lambda *_, **__: 0.0)
    return chunks.measure_long_chunks(cast("Stack", Workers(rows)), directory)


def test_overhead_is_what_is_left_of_a_chunk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = measure(monkeypatch, chunks.LONG_CHUNK_ROWS, tmp_path)
    assert (found["overhead_median_ms"], found["rows_per_chunk"]) == (5.0, 256)


def test_chunks_of_more_rows_are_not_called_chunks_of_five_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="960 rows"):
        measure(monkeypatch, 960, tmp_path)

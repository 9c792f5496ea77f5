"""How large the answer to a user's query may grow, and how it is taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gistmill.errors import QueryRefused
from gistmill.views import QueryView

LARGEST_BYTES = 32 * 1024**2
LARGEST_VALUE_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class Limits:
    """Most rows and longest time of one query."""

    rows: int
    timeout_s: float


def collect(columns: list[str], rows: Iterable[tuple[list[Any], int]], limits: Limits) -> QueryView:
    """Take rows, each with its size in bytes, until there are enough.

    Raises:
        QueryRefused: together they are too large.
    """
    taken: list[list[Any]] = []
    size = 0
    for row, row_bytes in rows:
        if len(taken) == limits.rows:
            return QueryView(columns=columns, rows=taken, truncated=True)
        size += row_bytes
        if size > LARGEST_BYTES:
            raise too_large()
        taken.append(row)
    return QueryView(columns=columns, rows=taken)


def too_large() -> QueryRefused:
    """Return the error that says so."""
    return QueryRefused(f"The answer is larger than {LARGEST_BYTES // 1024**2} MB. Ask for fewer columns or rows.")

"""Lists that are streamed: JSON Lines, read and sent a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Protocol

from fastapi import Query
from starlette.concurrency import run_in_threadpool

LINES = "application/x-ndjson"

Limit = Annotated[int | None, Query(ge=0, description="Most lines; all of them by default.")]


class Line(Protocol):
    """A view that tells where it stands in its list."""

    cursor: str

    def model_dump_json(self) -> str:
        """Return it as JSON."""
        ...


PageReader = Callable[[str | None, int], Sequence[Line]]


class Position:
    """How far a stream has come, and how many lines a page of it may have."""

    def __init__(self, after: str | None, limit: int | None, *, page: int) -> None:
        self.cursor, self.left, self._page = after, limit, page

    @property
    def page(self) -> int:
        """The most lines of the next page; 0 when nothing more is wanted."""
        return self._page if self.left is None else min(self._page, self.left)


async def lines(read: PageReader, position: Position) -> AsyncIterator[str]:
    """Yield what is there behind the position, a page of lines at a time, and move the position."""
    while most := position.page:
        page = await run_in_threadpool(read, position.cursor, most)
        if page:
            position.cursor = page[-1].cursor
            position.left = None if position.left is None else position.left - len(page)
            yield as_lines(page)
        if len(page) < most:
            return


def as_lines(page: Sequence[Line]) -> str:
    """Return views as JSON Lines."""
    return "".join(line.model_dump_json() + "\n" for line in page)

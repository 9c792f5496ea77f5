"""How a job is cut into chunks: ranges of ranks that hold about equally many of the dialogues it takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sqlalchemy import Connection, select, text

from gistmill.db.jobs import JobRows, takes
from gistmill.db.tables import dataset_dialogues, dataset_rows

# A chunk is about this much work, so that little is lost with a worker and all workers end at about the same time.
CHUNK_S = 30.0
CHUNKS_PER_WORKER = 4
LEAST_DIALOGUES = 16
DIALOGUES_AT_UNKNOWN_SPEED = 256
# A large job may have larger ones: at its end, workers wait for each other at most for this part of what each has done.
MOST_AT_UNKNOWN_SPEED = 1024
TAIL = 64
PAGE = 5_000


class Range(NamedTuple):
    """The ranks of a chunk, first to last and both inside, and how many selected dialogues they hold."""

    first: int
    last: int
    dialogues: int


def chunk_size(selected: int, *, live_workers: int, dialogues_per_s: float | None) -> int:
    """Return how many selected dialogues a chunk should hold, so that the last one is about as large as the others.

    No live worker counts as one of several: they will come. A worker that is alone shares with nobody.
    """
    workers = max(1, live_workers)
    if dialogues_per_s is None:
        size = max(DIALOGUES_AT_UNKNOWN_SPEED, min(MOST_AT_UNKNOWN_SPEED, selected // (TAIL * workers)))
    else:
        size = int(CHUNK_S * dialogues_per_s)
    if dialogues_per_s is None or live_workers != 1:
        size = min(size, selected // (CHUNKS_PER_WORKER * workers))
    chunks = min(round(selected / max(1, size)), selected // LEAST_DIALOGUES)
    return max(LEAST_DIALOGUES, math.ceil(selected / max(1, chunks)))


def plan_all(dialogues: int, size: int) -> Iterator[Range]:
    """Cut the ranks 0 to dialogues-1, all of which are selected, without a look at any row."""
    for first in range(0, dialogues, size):
        last = min(first + size, dialogues) - 1
        yield Range(first, last, last - first + 1)


def cut(ranks: Iterable[int], size: int) -> Iterator[Range]:
    """Cut after every `size` of these ascending ranks; in memory there is one range at a time."""
    first, last, count = 0, 0, 0
    for rank in ranks:
        if count == size:
            yield Range(first, last, count)
            count = 0
        if count == 0:
            first = rank
        last = rank
        count += 1
    if count:
        yield Range(first, last, count)


def selected_ranks(connection: Connection, dataset_key: int, rows: JobRows) -> Iterator[int]:
    """Stream, in order, the ranks of the dialogues that have at least one of these rows.

    One walk over the ranks and one over the rows: the dialogues of the selected rows are collected by the database first.
    """
    if connection.dialect.name == "postgresql":
        # A pass over millions of rows may take longer than a statement of a request may. Without statistics, as just after
        # an upload, the planner compared each rank with each row: 168 s for 100,000, where a hash of the rows takes 0.3 s.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL enable_nestloop = off"))
    taken = select(dataset_rows.c.dialogue_key).where(
        dataset_rows.c.dataset_key == dataset_key, takes(connection, rows, dataset_rows.c.row_number)
    )
    query = (
        select(dataset_dialogues.c.rank)
        .where(dataset_dialogues.c.dataset_key == dataset_key, dataset_dialogues.c.dialogue_key.in_(taken))
        .order_by(dataset_dialogues.c.rank)
    )
    yield from connection.execute(query, execution_options={"yield_per": PAGE}).scalars()

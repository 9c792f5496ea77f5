"""Chunks whose worker is gone: taken away from it, split until the item that kills workers stands alone, failed at last.

A lost epoch under which something progressed is no crash. A crash splits what the chunk still has to do in two, and both
halves start without crashes; so a dialogue that kills every worker is alone after about log2 of the chunk's size crashes, and
only then are its crashes counted. Everything else of the chunk is done meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog
from sqlalchemy import Connection, Row, insert, select, update

from gistmill.db import results
from gistmill.db.chunks import Budgets, close_if_job_ended, queued_after
from gistmill.db.claim import is_held
from gistmill.db.clock import db_now
from gistmill.db.endings import count_down, mark_failed
from gistmill.db.pending import pending_ranks
from gistmill.db.tables import chunks, jobs, workers
from gistmill.errors import WorkerCrashed
from gistmill.states import KINDS_WITH_ITEMS, ChunkState

log = structlog.get_logger(__name__)


def bury(connection: Connection, worker: str, budgets: Budgets) -> int:
    """Take the chunks of a worker that is known to be dead away from it; return how many."""
    rows = connection.execute(_held().where(chunks.c.owner == worker).with_for_update()).all()
    buried = sum(_take_away(connection, row, budgets) for row in rows)
    connection.execute(update(workers).where(workers.c.id == worker).values(state="gone", chunk_key=None))
    return buried


def reap(connection: Connection, budgets: Budgets, *, limit: int = 20, may_reap: Callable[[], bool] = lambda: True) -> int:
    """Take chunks whose lease has ended away from their owners; return how many.

    `may_reap` is asked once more when the rows have come: this transaction may have waited for a lock as long as their owners.
    """
    query = _held().where(chunks.c.lease_until < db_now()).limit(limit).with_for_update(skip_locked=True)
    rows = connection.execute(query).all()
    if not may_reap():
        return 0
    return sum(_take_away(connection, row, budgets, expired_only=True) for row in rows)


def _held() -> Any:
    return select(chunks).where(is_held()).order_by(chunks.c.key)


def _take_away(connection: Connection, row: Row[Any], budgets: Budgets, *, expired_only: bool = False) -> int:
    """Queue the chunk again, split or failed if it crashed; 1, or 0 when it is its owner's after all.

    The loss of a chunk that was claimed ahead costs nothing: it did not run.
    """
    still_lost = [chunks.c.key == row.key, chunks.c.epoch == row.epoch, chunks.c.state == row.state]
    if expired_only:
        still_lost.append(chunks.c.lease_until < db_now())
    crashes = 0 if row.progressed else row.crashes
    values = queued_after(0.0) | {"crashes": crashes}
    if connection.execute(update(chunks).where(*still_lost).values(values)).rowcount != 1:
        return 0
    log.warning("chunk_taken_back", chunk=row.key, epoch=row.epoch, owner=row.owner, progressed=row.progressed)
    did_run = row.state == ChunkState.RUNNING
    if not close_if_job_ended(connection, row.key, row.job_key) and did_run and not row.progressed:
        _note_crash(connection, row, budgets)
    return 1


def _note_crash(connection: Connection, row: Row[Any], budgets: Budgets) -> None:
    kind = connection.execute(select(jobs.c.kind).where(jobs.c.key == row.job_key)).scalar_one()
    unfinished = pending_ranks(connection, row.key) if kind in KINDS_WITH_ITEMS else []
    if len(unfinished) > 1:
        _split(connection, row, unfinished)
        return
    crashes = row.crashes + 1
    rest_s = budgets.delay_s(crashes)
    connection.execute(update(chunks).where(chunks.c.key == row.key).values(queued_after(rest_s) | {"crashes": crashes}))
    if crashes >= budgets.max_crashes:
        _fail_crashed(connection, row, kind, crashes)


def _split(connection: Connection, row: Row[Any], unfinished: Sequence[int]) -> None:
    """Let the chunk keep the lower half of the dialogues it has not finished, and a new one have the upper half.

    The two share the whole range: a later retry looks up a failed dialogue by its rank, wherever among them it lies.
    """
    middle = len(unfinished) // 2
    border = unfinished[middle - 1]
    ordinal = connection.execute(
        update(jobs)
        .where(jobs.c.key == row.job_key)
        .values(chunks=jobs.c.chunks + 1, chunks_left=jobs.c.chunks_left + 1)
        .returning(jobs.c.chunks)
    ).scalar_one()
    connection.execute(update(chunks).where(chunks.c.key == row.key).values(last_rank=border, dialogues=middle, crashes=0))
    connection.execute(
        insert(chunks).values(
            job_key=row.job_key,
            ordinal=ordinal - 1,
            first_rank=border + 1,
            last_rank=row.last_rank,
            dialogues=len(unfinished) - middle,
            state=ChunkState.QUEUED,
        )
    )
    log.warning("chunk_split", chunk=row.key, dialogues=len(unfinished))


def _fail_crashed(connection: Connection, row: Row[Any], kind: str, crashes: int) -> None:
    if kind in KINDS_WITH_ITEMS:
        message = f"The worker ended {crashes} times while it worked on this dialogue alone."
        results.fail_remaining_of(connection, row.key, WorkerCrashed(message))
    else:
        message = f"The worker ended {crashes} times without progress while it ran this job."
        mark_failed(connection, row.job_key, WorkerCrashed(message))
    connection.execute(
        update(chunks)
        .where(chunks.c.key == row.key, chunks.c.state == ChunkState.QUEUED)
        .values(state=ChunkState.DONE, outcome="failed", finished_at=db_now())
    )
    count_down(connection, row.job_key, 1)

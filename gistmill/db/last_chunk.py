"""The last chunk of an evaluation: it aggregates the scores, so it is queued when all other chunks are done.

Its ranks are -1: it scores nothing. A job has one; after a retry the same is queued again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, insert, not_, select, update

from gistmill.db.tables import chunks, evaluations, jobs
from gistmill.states import CLAIMABLE_JOB_STATES, ChunkState, JobKind

LAST_RANK = -1
# What a chunk that is taken up again no longer says of its earlier runs. Its epoch never falls.
AFRESH: dict[str, Any] = {
    "state": ChunkState.QUEUED,
    "run_at": 0.0,
    "failures": 0,
    "crashes": 0,
    "outcome": None,
    "error": None,
    "finished_at": None,
}


def queue_last_chunk(connection: Connection, job_key: int) -> bool:
    """Queue the last chunk of an evaluation that may run, has no other chunk left and no aggregate; True when it did."""
    job = connection.execute(
        update(jobs)
        .where(jobs.c.key == job_key, jobs.c.kind == JobKind.EVALUATE, jobs.c.state.in_(CLAIMABLE_JOB_STATES))
        .where(jobs.c.chunks_left == 0, not_(_has_aggregate()))
        .values(chunks_left=1)
        .returning(jobs.c.key, jobs.c.chunks)
    ).one_or_none()
    if job is None:
        return False
    mine = and_(chunks.c.job_key == job_key, ~is_scoring())
    if connection.execute(update(chunks).where(mine).values(AFRESH)).rowcount == 0:
        _add_last_chunk(connection, job)
    return True


def is_scoring() -> ColumnElement[bool]:
    """The condition on a chunk: it has ranks, so it is not a last chunk."""
    return chunks.c.first_rank > LAST_RANK


def _has_aggregate() -> ColumnElement[bool]:
    of_job = evaluations.c.job_key == jobs.c.key
    return exists(select(evaluations.c.job_key).where(of_job, evaluations.c.aggregated_at.is_not(None)))


def _add_last_chunk(connection: Connection, job: Row[Any]) -> None:
    connection.execute(update(jobs).where(jobs.c.key == job.key).values(chunks=jobs.c.chunks + 1))
    connection.execute(
        insert(chunks).values(
            job_key=job.key,
            ordinal=job.chunks,
            first_rank=LAST_RANK,
            last_rank=LAST_RANK,
            dialogues=0,
            state=ChunkState.QUEUED,
        )
    )

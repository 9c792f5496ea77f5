"""Jobs that failed because of a job that they need, when that one is taken up again: they wait for it once more."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any

from sqlalchemy import Connection, Row, select, update

from gistmill.db import dependencies
from gistmill.db.bulk import listed
from gistmill.db.clock import db_now
from gistmill.db.last_chunk import AFRESH, is_scoring
from gistmill.db.tables import chunks, jobs
from gistmill.errors import DependencyFailed
from gistmill.states import ChunkState, JobState

CLOSED = ("cancelled", "failed")


def lock_chunks(connection: Connection, job_key: int) -> None:
    """Lock the chunks that a retry of this job may queue, in order: its own, and those of jobs that may have failed with it."""
    downstream = dependencies.list_downstream(connection, job_key)
    failed = select(jobs.c.key).where(jobs.c.key.in_(listed(connection, downstream)), jobs.c.state == JobState.FAILED)
    keys = [job_key, *connection.execute(failed).scalars()]
    mine = select(chunks.c.key).where(chunks.c.job_key.in_(listed(connection, keys)))
    connection.execute(mine.order_by(chunks.c.key).with_for_update()).all()


def revive_dependents(connection: Connection, job_key: int) -> None:
    """Let the jobs that failed because of this one wait again, and on and on those that failed because of them.

    A job of which another need is lost stays failed: it is revived with the last of them.
    """
    ahead = dependencies.list_dependents(connection, job_key)
    while ahead:
        job = dependencies.lock_job(connection, heappop(ahead))
        if _failed_with_a_need(job) and dependencies.find_lost(dependencies.list_needs(connection, job.key)) is None:
            _revive(connection, job)
            for key in dependencies.list_dependents(connection, job.key):
                heappush(ahead, key)


def _failed_with_a_need(job: Row[Any]) -> bool:
    return job.state == JobState.FAILED and (job.error or {}).get("code") == DependencyFailed.code


def _revive(connection: Connection, job: Row[Any]) -> None:
    """Begin a new attempt over the chunks that were closed unrun. Those that the sweep has not closed yet are still queued."""
    closed = (chunks.c.job_key == job.key, chunks.c.state == ChunkState.DONE, chunks.c.outcome.in_(CLOSED), is_scoring())
    opened = connection.execute(update(chunks).where(*closed).values(AFRESH)).rowcount
    connection.execute(
        update(jobs)
        .where(jobs.c.key == job.key)
        .values(
            state=JobState.WAITING,
            attempt=jobs.c.attempt + 1,
            not_run=0,
            chunks_left=jobs.c.chunks_left + opened,
            error=None,
            finished_at=None,
            claimed_at=db_now(),
        )
    )

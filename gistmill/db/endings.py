"""How jobs end, and what then becomes of the jobs that wait for them, all in one transaction.

A waiting job is judged by whoever ends one of its needs: released when all have completed, failed when one is lost. It is
judged under the lock of its own row, by statements that begin when that is had. So of two needs that complete at the same
moment, the one that gets the lock later sees both and releases the job; the other sees one and leaves it alone.

Jobs are judged in the order of their keys, those included that end on the way; dependencies.py says why that is enough for
nobody to wait in a circle.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from heapq import heappop, heappush
from typing import Any

import structlog
from sqlalchemy import BigInteger, Connection, Row, bindparam, case, update
from sqlalchemy.sql.dml import ReturningUpdate

from gistmill.db import dependencies
from gistmill.db.clock import db_now
from gistmill.db.handover import take_model
from gistmill.db.last_chunk import queue_last_chunk
from gistmill.db.tables import jobs
from gistmill.errors import DependencyFailed, GistmillError
from gistmill.states import CLAIMABLE_JOB_STATES, FINAL_JOB_STATES, JobState

log = structlog.get_logger(__name__)

# The kinds of the jobs that were released: their queues are to be rung when the transaction has committed.
Kinds = frozenset[str]
NONE: Kinds = frozenset()


def count_down(connection: Connection, job_key: int, closed: int) -> None:
    """Take closed chunks off the job; at zero the job ends. The job's row lock makes one caller the last."""
    left = connection.execute(_counting_down(), {"of_job": job_key, "closed": closed}).scalar_one()
    if left == 0:
        settle(connection, job_key)


@cache
def _counting_down() -> ReturningUpdate[int]:
    left = jobs.c.chunks_left - bindparam("closed", type_=BigInteger())
    return update(jobs).where(jobs.c.key == bindparam("of_job")).values(chunks_left=left).returning(jobs.c.chunks_left)


def settle(connection: Connection, job_key: int) -> Kinds:
    """End a job that has no chunk left: completed, or cancelled when that was wished. An evaluation gets its last chunk first.

    Return the kinds of the jobs that waited for it and can be claimed now.
    """
    if queue_last_chunk(connection, job_key) or not _end(connection, job_key):
        return NONE
    return judge(connection, dependencies.list_dependents(connection, job_key))


def mark_failed(connection: Connection, job_key: int, error: GistmillError) -> None:
    """Let a job that has not ended be failed with this error, and those that wait for it; what its items have is kept."""
    if _fail(connection, job_key, error):
        judge(connection, dependencies.list_dependents(connection, job_key))


def look_again(connection: Connection, job_key: int) -> Kinds:
    """Do what should have been done when a need of this job or its last chunk ended, if that was missed."""
    return judge(connection, [job_key]) | settle(connection, job_key)


def judge(connection: Connection, job_keys: Iterable[int]) -> Kinds:
    """Release or fail those of these jobs that wait for nothing any more, and on and on the jobs that wait for those."""
    released: set[str] = set()
    ahead = sorted(job_keys)
    while ahead:
        job = dependencies.lock_job(connection, heappop(ahead))
        if job.state != JobState.WAITING:
            continue
        state = _judge(connection, job)
        if state in CLAIMABLE_JOB_STATES:
            released.add(job.kind)
        elif state in FINAL_JOB_STATES:
            for key in dependencies.list_dependents(connection, job.key):
                heappush(ahead, key)
    return frozenset(released)


def _judge(connection: Connection, job: Row[Any]) -> JobState:
    """Do what the needs of this waiting job allow or demand; return its state then."""
    needs = dependencies.list_needs(connection, job.key)
    lost = dependencies.find_lost(needs)
    if lost is not None:
        _fail(connection, job.key, dependencies.failure_of(lost))
        return JobState.FAILED
    if any(need.state != JobState.COMPLETED for need in needs):
        return JobState.WAITING
    return _release(connection, job)


def _release(connection: Connection, job: Row[Any]) -> JobState:
    """Queue the job; one without chunks completes at once."""
    try:
        values = take_model(connection, job)
    except DependencyFailed as error:
        _fail(connection, job.key, error)
        return JobState.FAILED
    connection.execute(update(jobs).where(jobs.c.key == job.key).values(**values, state=JobState.QUEUED, claimed_at=db_now()))
    log.info("job_released", job_id=job.id, kind=job.kind)
    if job.chunks_left or queue_last_chunk(connection, job.key):
        return JobState.QUEUED
    _end(connection, job.key)
    return JobState.COMPLETED


def _end(connection: Connection, job_key: int) -> bool:
    statement = (
        update(jobs)
        .where(jobs.c.key == job_key, jobs.c.chunks_left == 0, jobs.c.state.in_((*CLAIMABLE_JOB_STATES, JobState.CANCELLING)))
        .values(
            state=case((jobs.c.state == JobState.CANCELLING, JobState.CANCELLED), else_=JobState.COMPLETED),
            not_run=jobs.c["items"] - jobs.c.succeeded - jobs.c.failed,
            finished_at=db_now(),
        )
        .returning(jobs.c.id, jobs.c.state, jobs.c["items"], jobs.c.not_run)
    )
    job = connection.execute(statement).one_or_none()
    if job is None:
        return False
    log.info("job_ended", job_id=job.id, state=job.state, items=job[2], not_run=job.not_run)
    return True


def _fail(connection: Connection, job_key: int, error: GistmillError) -> bool:
    statement = (
        update(jobs)
        .where(jobs.c.key == job_key, jobs.c.state.not_in(FINAL_JOB_STATES))
        .values(
            state=JobState.FAILED,
            error={"code": error.code, "message": error.message},
            not_run=jobs.c["items"] - jobs.c.succeeded - jobs.c.failed,
            finished_at=db_now(),
        )
        .returning(jobs.c.id)
    )
    job = connection.execute(statement).one_or_none()
    if job is None:
        return False
    log.info("job_ended", job_id=job.id, state=JobState.FAILED, code=error.code)
    return True

"""What a user wishes of a job, written down so that whoever holds a chunk sees it: cancel, pause, resume."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from sqlalchemy import select, update

from gistmill.db import chunks as chunk_rows
from gistmill.db import endings
from gistmill.db.session import Database
from gistmill.db.tables import jobs
from gistmill.errors import JobIsOver, UnknownJob
from gistmill.states import CLAIMABLE_JOB_STATES, FINAL_JOB_STATES, JobState

STEERABLE_STATES = CLAIMABLE_JOB_STATES | {JobState.WAITING}

Ring = Callable[[str], object]


def cancel(database: Database, tenant_key: int, job_id: str) -> None:
    """Cancel a job: queued chunks are closed now, running ones within seconds by their workers.

    The wish and the closing are two transactions. With the wish committed first, a chunk that is released at the same moment
    is closed by whoever releases it, and none stays queued under a job that ends. The sweep repeats the closing.

    Raises:
        UnknownJob: there is no such job of this tenant.
        JobIsOver: the job completed or failed before.
    """
    alive = set(JobState) - FINAL_JOB_STATES
    key = _wish(database, tenant_key, job_id, alive, state=JobState.CANCELLING)
    if key is None:
        _explain(database, tenant_key, job_id, "cancelled", unless=JobState.CANCELLED)
        return
    database.transact(lambda connection: chunk_rows.close_ended(connection, key))


def pause(database: Database, tenant_key: int, job_id: str) -> None:
    """Pause a job: no chunk of it is handed out, and running ones stop within a step and are given back.

    Raises:
        UnknownJob: there is no such job of this tenant.
        JobIsOver: the job has ended, or is being cancelled.
    """
    if _wish(database, tenant_key, job_id, STEERABLE_STATES, paused=True) is None:
        _explain(database, tenant_key, job_id, "paused")


def resume(database: Database, tenant_key: int, job_id: str, *, ring: Ring | None = None) -> None:
    """Let a paused job go on, and wake workers for it. A job that was not paused stays as it is.

    Whether it still waits for other jobs, and whether any chunk of it is left, is looked at again.

    Raises:
        UnknownJob: there is no such job of this tenant.
        JobIsOver: the job has ended, or is being cancelled.
    """
    key = _wish(database, tenant_key, job_id, STEERABLE_STATES, paused=False)
    if key is None:
        _explain(database, tenant_key, job_id, "resumed")
        return
    released = database.transact(partial(endings.look_again, job_key=key))
    ring_all(ring, released | {kind_of(database, key)})


def ring_all(ring: Ring | None, kinds: Collection[str]) -> None:
    """Ring the queues of these kinds; call it when the transaction has committed."""
    if ring is not None:
        for kind in sorted(kinds):
            ring(kind)


def kind_of(database: Database, job_key: int) -> str:
    """Return what the job does, which names its queue."""
    with database.read() as connection:
        return str(connection.execute(select(jobs.c.kind).where(jobs.c.key == job_key)).scalar_one())


def _wish(database: Database, tenant_key: int, job_id: str, states: Collection[JobState], **values: object) -> int | None:
    """Set these values if the job is in one of the states; return its key, or None when it is not."""
    statement = (
        update(jobs)
        .where(jobs.c.tenant_key == tenant_key, jobs.c.id == job_id, jobs.c.state.in_(states))
        .values(**values)
        .returning(jobs.c.key)
    )
    return database.transact(lambda connection: connection.execute(statement).scalar_one_or_none())


def _explain(database: Database, tenant_key: int, job_id: str, done: str, *, unless: JobState | None = None) -> None:
    with database.read() as connection:
        query = select(jobs.c.state).where(jobs.c.tenant_key == tenant_key, jobs.c.id == job_id)
        state = connection.execute(query).scalar_one_or_none()
    if state is None:
        raise UnknownJob(f"There is no job '{job_id}'. List them with: gistmill jobs list")
    if state == JobState.CANCELLING:
        raise JobIsOver(f"The job {job_id} is being cancelled, so it cannot be {done}.")
    if state != unless:
        raise JobIsOver(f"The job {job_id} has {_ended(state)} already, so it cannot be {done}.")


def _ended(state: str) -> str:
    return "been cancelled" if state == JobState.CANCELLED else state

"""Steering jobs: what a user wishes, written down so that whoever holds a chunk sees it."""

from __future__ import annotations

from sqlalchemy import select, update

from gistmill.db import chunks as chunk_rows
from gistmill.db.session import Database
from gistmill.db.tables import jobs
from gistmill.errors import JobIsOver, UnknownJob
from gistmill.states import FINAL_JOB_STATES, JobState


def cancel(database: Database, tenant_key: int, job_id: str) -> None:
    """Cancel a job: queued chunks are closed now, running ones within seconds by their workers.

    The wish and the closing are two transactions. With the wish committed first, a chunk that is released at the same moment
    is closed by whoever releases it, and none stays queued under a job that ends. The sweep repeats the closing.

    Raises:
        UnknownJob: there is no such job of this tenant.
        JobIsOver: the job completed or failed before.
    """
    key = database.transact(
        lambda connection: connection.execute(
            update(jobs)
            .where(jobs.c.tenant_key == tenant_key, jobs.c.id == job_id, jobs.c.state.not_in(FINAL_JOB_STATES))
            .values(state=JobState.CANCELLING)
            .returning(jobs.c.key)
        ).scalar_one_or_none()
    )
    if key is None:
        _explain(database, tenant_key, job_id)
        return
    database.transact(lambda connection: chunk_rows.close_ended(connection, key))


def _explain(database: Database, tenant_key: int, job_id: str) -> None:
    with database.read() as connection:
        state = connection.execute(
            select(jobs.c.state).where(jobs.c.tenant_key == tenant_key, jobs.c.id == job_id)
        ).scalar_one_or_none()
    if state is None:
        raise UnknownJob(f"There is no job '{job_id}'. List them with: gistmill jobs list")
    if state != JobState.CANCELLED:
        raise JobIsOver(f"The job {job_id} has {state} already, so it cannot be cancelled.")

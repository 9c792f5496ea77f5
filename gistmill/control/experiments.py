"""Steering as users mean it: what is done to an experiment, or to an evaluation, is done to the jobs that came with it.

An evaluation's are the summarize jobs that it has submitted, and not those that were there before. Every other job has no
steps, and is steered alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from sqlalchemy import select

from gistmill.control import wishes
from gistmill.control.retry import Missing
from gistmill.control.retry import retry as retry_job
from gistmill.control.wishes import Ring
from gistmill.db import experiments
from gistmill.db.session import Database
from gistmill.db.tables import jobs
from gistmill.errors import JobIsOver
from gistmill.states import JobKind, JobState

# Kinds of jobs that come with others.
WHOLES = (JobKind.EXPERIMENT, JobKind.EVALUATE)
LOST = (JobState.FAILED, JobState.CANCELLED)


def cancel(database: Database, tenant_key: int, job_id: str) -> None:
    """Cancel a job; of an experiment or evaluation also every step that no other job needs.

    The job itself comes first, then those that need others, so that none fails because of one that is cancelled. Of one that
    has failed, the steps that still run are cancelled.

    Raises:
        UnknownJob: there is no such job of this tenant.
        JobIsOver: the job completed or failed before, and nothing of it runs.
    """
    key = _find_whole(database, tenant_key, job_id)
    try:
        wishes.cancel(database, tenant_key, job_id)
    except JobIsOver:
        if key is None or not _list_open(database, key):
            raise
    while key is not None and (step := _find_unneeded(database, key)):
        # One that has ended since then is not found again.
        with suppress(JobIsOver):
            wishes.cancel(database, tenant_key, step)


def pause(database: Database, tenant_key: int, job_id: str) -> None:
    """Pause a job, and every step of an experiment or evaluation.

    Raises:
        UnknownJob: there is no such job of this tenant.
        JobIsOver: the job has ended, or is being cancelled.
    """
    wishes.pause(database, tenant_key, job_id)
    for step in _open_steps(database, tenant_key, job_id):
        with suppress(JobIsOver):
            wishes.pause(database, tenant_key, step)


def resume(database: Database, tenant_key: int, job_id: str, *, ring: Ring | None = None) -> None:
    """Let a paused job go on, and every step of an experiment or evaluation.

    Raises:
        UnknownJob: there is no such job of this tenant.
        JobIsOver: the job has ended, or is being cancelled.
    """
    wishes.resume(database, tenant_key, job_id, ring=ring)
    for step in _open_steps(database, tenant_key, job_id):
        with suppress(JobIsOver):
            wishes.resume(database, tenant_key, step, ring=ring)


def retry(database: Database, tenant_key: int, job_id: str, missing: Missing | None = None, *, ring: Ring | None = None) -> int:
    """Queue what an ended job is missing, as a new attempt, and return how many items that is.

    Of an experiment or evaluation, those of its steps that have failed or were cancelled are taken up, the needed ones first;
    what those failed with them waits again.

    Raises:
        UnknownJob: there is no such job of this tenant.
        JobNotOver: the job runs, or another retry was faster.
        NothingToRetry: no item is missing, or none of those that `missing` names; or a job that this one needs is lost.
    """
    key = _find_whole(database, tenant_key, job_id)
    if key is None:
        return retry_job(database, tenant_key, job_id, missing, ring=ring)
    items = 0
    lost = _list_lost(database, key)
    for step in lost:
        if _is_lost(database, step):
            items += retry_job(database, tenant_key, step, missing, ring=ring)
    if not lost or _is_lost(database, job_id):
        retry_job(database, tenant_key, job_id, ring=ring)
    return items


def _find_whole(database: Database, tenant_key: int, job_id: str) -> int | None:
    """Return the key of the job if it is an experiment or evaluation of this tenant, else None."""
    query = select(jobs.c.key).where(jobs.c.tenant_key == tenant_key, jobs.c.id == job_id, jobs.c.kind.in_(WHOLES))
    with database.read() as connection:
        return connection.execute(query).scalar_one_or_none()


def _open_steps(database: Database, tenant_key: int, job_id: str) -> Iterator[str]:
    key = _find_whole(database, tenant_key, job_id)
    if key is not None:
        yield from _list_open(database, key)


def _list_open(database: Database, key: int) -> list[str]:
    with database.read() as connection:
        return experiments.list_open(connection, key)


def _find_unneeded(database: Database, key: int) -> str | None:
    with database.read() as connection:
        return experiments.find_unneeded(connection, key)


def _list_lost(database: Database, key: int) -> list[str]:
    with database.read() as connection:
        return experiments.list_lost(connection, key)


def _is_lost(database: Database, job_id: str) -> bool:
    with database.read() as connection:
        return connection.scalar(select(jobs.c.state).where(jobs.c.id == job_id)) in LOST

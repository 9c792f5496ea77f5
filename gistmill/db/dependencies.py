"""Jobs that need other jobs: who needs whom, and which of those that wait wait for nothing any more.

A job is written after what it needs and so has the larger key. Whoever goes from jobs to their dependents, smallest key first,
therefore locks jobs in the order of their keys.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, insert, literal, or_, select

from gistmill.db.tables import job_dependencies, jobs
from gistmill.errors import DependencyFailed
from gistmill.states import JobState

LOST = (JobState.FAILED, JobState.CANCELLED)
needed = jobs.alias("needed")
LONGEST_REASON = 500


def add_needs(connection: Connection, job_key: int, needs: Collection[int]) -> None:
    """Write down which jobs this new one needs.

    They are locked until this transaction ends: a need that ends at this moment is seen as ended by whoever judges the new job
    next, or its own transaction waits and then finds the new job among its dependents.
    """
    keys = sorted(needs)
    connection.execute(select(jobs.c.key).where(jobs.c.key.in_(keys)).order_by(jobs.c.key).with_for_update(read=True)).all()
    connection.execute(insert(job_dependencies), [{"job_key": job_key, "needs_key": key} for key in keys])


def list_dependents(connection: Connection, job_key: int) -> list[int]:
    """Return the keys of the jobs that need this one, whatever has become of them, in order."""
    query = select(job_dependencies.c.job_key).where(job_dependencies.c.needs_key == job_key)
    return list(connection.execute(query.order_by(job_dependencies.c.job_key)).scalars())


def list_downstream(connection: Connection, job_key: int) -> list[int]:
    """Return the keys of the jobs that need this one, directly or through others."""
    direct = select(job_dependencies.c.job_key).where(job_dependencies.c.needs_key == job_key)
    found = direct.cte("downstream", recursive=True)
    through = select(job_dependencies.c.job_key).join(found, found.c.job_key == job_dependencies.c.needs_key)
    return list(connection.execute(select(found.union(through).c.job_key)).scalars())


def list_needs(connection: Connection, job_key: int) -> Sequence[Row[Any]]:
    """Return key, id, state and error of the jobs that this one needs, in order."""
    query: Select[Any] = (
        select(jobs.c.key, jobs.c.id, jobs.c.state, jobs.c.error)
        .join(job_dependencies, job_dependencies.c.needs_key == jobs.c.key)
        .where(job_dependencies.c.job_key == job_key)
        .order_by(jobs.c.key)
    )
    return connection.execute(query).all()


def list_open_needs(connection: Connection, job_keys: Collection[int]) -> dict[int, list[Row[Any]]]:
    """Return key, id and state of the jobs that each of these needs and that have not completed, in order."""
    query: Select[Any] = (
        select(job_dependencies.c.job_key, jobs.c.key, jobs.c.id, jobs.c.state)
        .join(job_dependencies, job_dependencies.c.needs_key == jobs.c.key)
        .where(job_dependencies.c.job_key.in_(job_keys), jobs.c.state != JobState.COMPLETED)
        .order_by(jobs.c.key)
    )
    found: dict[int, list[Row[Any]]] = {}
    for row in connection.execute(query):
        found.setdefault(row.job_key, []).append(row)
    return found


def lock_job(connection: Connection, job_key: int) -> Row[Any]:
    """Lock the job and return its row as it is then.

    The statement names no state: a job in another one would not be waited for, and a move that is about to be committed missed.
    """
    return connection.execute(select(jobs).where(jobs.c.key == job_key).with_for_update()).one()


def find_lost(needs: Sequence[Row[Any]]) -> Row[Any] | None:
    """Return the first of these needs that has failed or was cancelled, or None."""
    return next((need for need in needs if need.state in LOST), None)


def failure_of(need: Row[Any]) -> DependencyFailed:
    """Return the error of a job that needs this lost one. Through a chain it stays the same: it names where to begin."""
    error = need.error or {}
    if error.get("code") == DependencyFailed.code:
        return DependencyFailed(error["message"])
    if need.state == JobState.CANCELLED:
        return DependencyFailed(f"The job {need.id}, which this one needs, was cancelled. {_advise(need)}")
    reason = str(error.get("message", "no reason is known"))[:LONGEST_REASON].rstrip(". \n")
    return DependencyFailed(f"The job {need.id}, which this one needs, failed: {reason}. {_advise(need)}")


def _advise(need: Row[Any]) -> str:
    return f"Take that one up again, and this one goes on: gistmill jobs retry {need.id}"


def waits_in_vain() -> ColumnElement[bool]:
    """The condition on a job: it waits although its needs have all completed, or one of them is lost."""
    is_open = _has_need(needed.c.state != JobState.COMPLETED)
    return (jobs.c.state == JobState.WAITING) & or_(_has_need(needed.c.state.in_(LOST)), ~is_open)


def _has_need(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    joined = job_dependencies.join(needed, needed.c.key == job_dependencies.c.needs_key)
    return select(literal(1)).select_from(joined).where(job_dependencies.c.job_key == jobs.c.key, condition).exists()

"""Experiments in SQL: the jobs that one consists of, each with the name that people read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, Select, exists, insert, select

from gistmill.db.tables import experiment_steps, job_dependencies, jobs
from gistmill.states import FINAL_JOB_STATES, STOPPED_JOB_STATES, JobState


class Step(NamedTuple):
    """A job of an experiment by its key."""

    name: str
    job_key: int


def add_steps(connection: Connection, job_key: int, steps: Sequence[Step]) -> None:
    """Write the steps of a new experiment in this order. A job that stands there twice keeps the first of its names."""
    named: dict[int, str] = {}
    for step in steps:
        named.setdefault(step.job_key, step.name)
    rows = [
        {"job_key": job_key, "number": number, "name": name, "step_key": key}
        for number, (key, name) in enumerate(named.items(), start=1)
    ]
    connection.execute(insert(experiment_steps), rows)


def list_steps(connection: Connection, job_key: int) -> Sequence[Row[Any]]:
    """Return number and name of each step with the row of its job, in order; none for a job of another kind."""
    return connection.execute(_steps(job_key).order_by(experiment_steps.c.number)).all()


def list_open(connection: Connection, job_key: int) -> list[str]:
    """Return the ids of the steps that have not ended, those first that need others."""
    query = _steps(job_key).where(jobs.c.state.not_in(FINAL_JOB_STATES)).order_by(jobs.c.key.desc())
    return [row.id for row in connection.execute(query)]


def find_unneeded(connection: Connection, job_key: int) -> str | None:
    """Return the id of the newest step that may still run and that no job needs which may, or None."""
    dependent = jobs.alias("dependent")
    is_needed = exists(
        select(dependent.c.key)
        .join(job_dependencies, job_dependencies.c.job_key == dependent.c.key)
        .where(job_dependencies.c.needs_key == jobs.c.key, dependent.c.state.not_in(STOPPED_JOB_STATES))
    )
    query = _steps(job_key).where(jobs.c.state.not_in(STOPPED_JOB_STATES), ~is_needed)
    row = connection.execute(query.order_by(jobs.c.key.desc()).limit(1)).one_or_none()
    return None if row is None else str(row.id)


def list_lost(connection: Connection, job_key: int) -> list[str]:
    """Return the ids of the steps that have failed or were cancelled, the needed ones first."""
    query = _steps(job_key).where(jobs.c.state.in_((JobState.FAILED, JobState.CANCELLED))).order_by(jobs.c.key)
    return [row.id for row in connection.execute(query)]


def _steps(job_key: int) -> Select[Any]:
    return (
        select(jobs, experiment_steps.c.number, experiment_steps.c.name.label("step_name"))
        .join(experiment_steps, experiment_steps.c.step_key == jobs.c.key)
        .where(experiment_steps.c.job_key == job_key)
    )

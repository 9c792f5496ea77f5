"""Recount what the counters of the jobs say, and look for rows that name what is not there.

The statements are built once: with many small jobs, building them took longer than running them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    bindparam,
    case,
    distinct,
    exists,
    func,
    literal,
    select,
    text,
)
from sqlalchemy.sql.selectable import ScalarSelect

from gistmill.db.dependencies import waits_in_vain
from gistmill.db.session import Database
from gistmill.db.tables import (
    chunks,
    dataset_dialogues,
    dataset_rows,
    datasets,
    dialogues,
    evaluation_cases,
    evaluations,
    generations,
    job_rows,
    jobs,
    recipes,
    results,
    scores,
    tenants,
)
from gistmill.states import FINAL_JOB_STATES, KINDS_WITH_ITEMS, ChunkState

SCORED = "scored"
# Foreign keys would look at every row that is written; see ADR 5.
NAMES = {
    results.c.job_key: jobs,
    results.c.generation_key: generations,
    generations.c.recipe_key: recipes,
    generations.c.dialogue_key: dialogues,
    dataset_rows.c.dataset_key: datasets,
    dataset_rows.c.dialogue_key: dialogues,
    dataset_dialogues.c.dataset_key: datasets,
    dataset_dialogues.c.dialogue_key: dialogues,
    job_rows.c.job_key: jobs,
    dialogues.c.tenant_key: tenants,
    evaluation_cases.c.job_key: jobs,
    evaluation_cases.c.dialogue_key: dialogues,
    scores.c.job_key: jobs,
    scores.c.dialogue_key: dialogues,
}


def check(database: Database) -> list[str]:
    """Return a line for each counter that differs from the rows, for names of rows that are not there, and for forgotten jobs.

    One statement counts a job, so it may be running.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    return [
        *recount(database),
        *_recount_evaluations(database),
        *_find_nameless(database),
        *_find_forgotten(database),
    ]


def _find_nameless(database: Database) -> list[str]:
    found = []
    for column, named in NAMES.items():
        with database.read() as connection:
            _take_time(connection)
            count = connection.scalar(_nameless(column))
        if count:
            found.append(f"{column.table.name}.{column.name}: {count} rows name nothing in {named.name}")
    return found


@cache
def _nameless(column: Column[int]) -> Select[Any]:
    named = NAMES[column]
    is_there = select(named.c.key).where(named.c.key == column).exists()
    return select(func.count()).where(column.is_not(None), ~is_there)


def _find_forgotten(database: Database) -> list[str]:
    """The release is part of the transaction that ends the last need, so that no reader should meet such a job."""
    with database.read() as connection:
        _take_time(connection)
        forgotten = connection.execute(_forgotten()).scalars()
        return [f"{job_id}: it waits, but not for any job" for job_id in forgotten]


@cache
def _forgotten() -> Select[Any]:
    return select(jobs.c.id).where(waits_in_vain()).order_by(jobs.c.key)


def _recount_evaluations(database: Database) -> list[str]:
    """Count the outcomes of cases again, and look for scores that do not belong to a case which was scored."""
    with database.read() as connection:
        _take_time(connection)
        rows = connection.execute(_miscounted_evaluations()).all()
        numbers = {what: connection.scalar(query) for what, query in _odd_scores().items()}
    found = [f"{row.id}: ended is {row.ended}, but the rows make {row.real}" for row in rows]
    return found + [f"evaluation_cases: {number} {what}" for what, number in numbers.items() if number]


@cache
def _miscounted_evaluations() -> Select[Any]:
    real = select(func.count()).where(evaluation_cases.c.job_key == evaluations.c.job_key).scalar_subquery()
    counted = select(jobs.c.id, evaluations.c.ended, real.label("real")).join(jobs, jobs.c.key == evaluations.c.job_key)
    return counted.where(evaluations.c.ended != real).order_by(jobs.c.key)


@cache
def _odd_scores() -> dict[str, Select[Any]]:
    of_case = and_(scores.c.job_key == evaluation_cases.c.job_key, scores.c.dialogue_key == evaluation_cases.c.dialogue_key)
    is_scored = and_(of_case, evaluation_cases.c.outcome == SCORED)
    lacking = select(func.count()).where(evaluation_cases.c.outcome == SCORED, ~exists(select(literal(1)).where(of_case)))
    needless = select(func.count()).select_from(scores).where(~exists(select(literal(1)).where(is_scored)))
    return {"cases are scored and have no scores": lacking, "scores belong to no case that is scored": needless}


def _take_time(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL statement_timeout = 0"))


def recount(database: Database) -> list[str]:
    """Return a line for each counter of a job that differs from the rows.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    differences: list[str] = []
    for job in _recounted_jobs(database):
        for name in _counts():
            if job[name] != job["real_" + name]:
                differences.append(f"{job['id']}: {name} is {job[name]}, but the rows make {job['real_' + name]}")
        ended = job["succeeded"] + job["failed"] + job["not_run"]
        if job["state"] in FINAL_JOB_STATES and job["items"] != ended:
            differences.append(f"{job['id']}: items is {job['items']}, but {ended} have ended")
        if job["state"] not in FINAL_JOB_STATES and job["not_run"]:
            differences.append(f"{job['id']}: not_run is {job['not_run']}, but the job has not ended")
    return differences


def _recounted_jobs(database: Database) -> Iterator[RowMapping]:
    last = 0
    while True:
        with database.read() as connection:
            _take_time(connection)
            row = connection.execute(_next_job(), {"behind": last}).mappings().one_or_none()
        if row is None:
            return
        last = row["key"]
        yield row


@cache
def _next_job() -> Select[Any]:
    columns = [count.label("real_" + name) for name, count in _counts().items()]
    return select(jobs, *columns).where(jobs.c.key == _first_key_behind())


def _first_key_behind() -> ScalarSelect[int]:
    others = jobs.alias()
    return select(func.min(others.c.key)).where(others.c.key > bindparam("behind")).scalar_subquery()


def _results(*conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    return select(func.count()).where(results.c.job_key == jobs.c.key, *conditions).correlate(jobs).scalar_subquery()


def _generations(condition: ColumnElement[bool]) -> ScalarSelect[int]:
    joined = results.join(generations, generations.c.key == results.c.generation_key)
    counted = select(func.count()).select_from(joined).where(results.c.job_key == jobs.c.key, condition)
    return counted.correlate(jobs).scalar_subquery()


def _chunks(*conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    return select(func.count()).where(chunks.c.job_key == jobs.c.key, *conditions).correlate(jobs).scalar_subquery()


def _rows(counted: ColumnElement[int]) -> ColumnElement[int]:
    """Count the dataset's rows that the job takes: by its list when its step is 0, else by its range."""
    listed = (
        select(counted)
        .select_from(
            job_rows.join(
                dataset_rows,
                and_(
                    dataset_rows.c.dataset_key == jobs.c.dataset_key,
                    dataset_rows.c.row_number == job_rows.c.row_number,
                ),
            )
        )
        .where(job_rows.c.job_key == jobs.c.key)
        .correlate(jobs)
        .scalar_subquery()
    )
    ranged = (
        select(counted)
        .where(
            dataset_rows.c.dataset_key == jobs.c.dataset_key,
            dataset_rows.c.row_number >= jobs.c.row_start,
            dataset_rows.c.row_number < jobs.c.row_stop,
            (dataset_rows.c.row_number - jobs.c.row_start) % func.nullif(jobs.c.row_step, 0) == 0,
        )
        .correlate(jobs)
        .scalar_subquery()
    )
    return case((jobs.c.row_step == 0, listed), else_=ranged)


@cache
def _counts() -> dict[str, ColumnElement[int]]:
    has_summary = results.c.generation_key.is_not(None)
    return {
        "succeeded": _results(has_summary),
        "failed": _results(~has_summary),
        "generated": _results(has_summary, ~results.c.shared),
        "shared": _results(has_summary, results.c.shared),
        "truncated": _generations(generations.c.truncated),
        "cut_off": _generations(generations.c.finish_reason == "length"),
        "chunks": _chunks(),
        "chunks_left": _chunks(chunks.c.state != ChunkState.DONE),
        "items": case((jobs.c.kind.in_(KINDS_WITH_ITEMS), _rows(func.count())), else_=0),
        "distinct_dialogues": _rows(func.count(distinct(dataset_rows.c.dialogue_key))),
    }

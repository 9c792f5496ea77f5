"""Evaluations in SQL: what they compare, which models those summaries come from, and on what those were trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select

from gistmill.db.jobs import JobRows
from gistmill.db.lineage import find_origin
from gistmill.db.tables import datasets, evaluation_systems, evaluations, jobs, models, recipes
from gistmill.errors import UnknownComparison
from gistmill.specs import digest_of
from gistmill.states import JobKind, JobState

LONGEST_CHAIN = 100


@dataclass(frozen=True)
class System:
    """One of those that are compared: the summaries of a job, or a column of a file."""

    number: int
    name: str
    summaries_key: int | None = None
    column: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluate job compares, the baseline first."""

    job_key: int
    predictions_key: int | None
    systems: tuple[System, ...]
    is_aggregated: bool


def add(
    connection: Connection,
    job_key: int,
    *,
    cases: int,
    predictions_key: int | None,
    systems: Sequence[System],
) -> None:
    """Write what a new job compares."""
    row = {"job_key": job_key, "cases": cases, "notes": [], "predictions_key": predictions_key}
    connection.execute(insert(evaluations).values(row))
    connection.execute(
        insert(evaluation_systems),
        [
            {
                "job_key": job_key,
                "number": system.number,
                "name": system.name,
                "summaries_key": system.summaries_key,
                "column_name": system.column,
            }
            for system in systems
        ],
    )


def get_row(connection: Connection, tenant_key: int, job_id: str) -> Row[Any]:
    """Return the evaluate job with its evaluation and dataset.

    Raises:
        UnknownComparison: this tenant has no evaluate job of this id.
    """
    row: Row[Any] | None = connection.execute(select_rows(tenant_key).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise UnknownComparison(f"There is no evaluation '{job_id[:60]}'. List them with: gistmill compare list")
    return row


def select_rows(tenant_key: int) -> Select[Any]:
    """Return the query of a tenant's evaluate jobs with their evaluations and datasets."""
    joined = jobs.join(evaluations, evaluations.c.job_key == jobs.c.key).join(datasets, datasets.c.key == jobs.c.dataset_key)
    names = ("cases", "ended", "counts", "signature", "notes", "predictions_key")
    return (
        select(
            jobs,
            jobs.c.key.label("job_key"),
            *(evaluations.c[name] for name in names),
            datasets.c.id.label("dataset_id"),
            datasets.c.name.label("dataset_name"),
            datasets.c.digest.label("dataset_digest"),
        )
        .select_from(joined)
        .where(jobs.c.tenant_key == tenant_key, jobs.c.kind == JobKind.EVALUATE)
    )


def load(connection: Connection, job_key: int) -> Evaluation:
    """Return what the job compares."""
    row = connection.execute(select(evaluations).where(evaluations.c.job_key == job_key)).one()
    systems = tuple(list_systems(connection, job_key))
    return Evaluation(job_key, row.predictions_key, systems, row.aggregated_at is not None)


def list_systems(connection: Connection, job_key: int) -> list[System]:
    """Return the compared, the baseline first."""
    query = select(evaluation_systems).where(evaluation_systems.c.job_key == job_key).order_by(evaluation_systems.c.number)
    return [System(row.number, row.name, row.summaries_key, row.column_name) for row in connection.execute(query)]


def list_sources(connection: Connection, systems: Sequence[System]) -> dict[int, Row[Any]]:
    """Return the jobs that made the systems' summaries, by the system's number; columns have none."""
    keys = {system.number: system.summaries_key for system in systems if system.summaries_key is not None}
    rows = {row.key: row for row in connection.execute(select(jobs).where(jobs.c.key.in_(set(keys.values()))))}
    return {number: rows[key] for number, key in keys.items()}


def find_completed(
    connection: Connection,
    tenant_key: int,
    *,
    recipe: dict[str, Any],
    model_key: int,
    dataset_key: int,
    rows: JobRows,
    with_truncated: bool,
) -> int | None:
    """Return the newest job that has a summary by this recipe for each of these rows, or None. Listed rows are not compared.

    The model's version counts too: another one of the same files may have been trained on other data, as far as is known.
    Without `with_truncated` no prompt of the job may have been cut.
    """
    if rows.listed is not None:
        return None
    query = (
        select(jobs.c.key)
        .join(recipes, recipes.c.key == jobs.c.recipe_key)
        .where(recipes.c.tenant_key == tenant_key, recipes.c.digest == digest_of(recipe))
        .where(jobs.c.tenant_key == tenant_key, jobs.c.kind == JobKind.SUMMARIZE, jobs.c.state == JobState.COMPLETED)
        .where(jobs.c.dataset_key == dataset_key, jobs.c.model_key == model_key, jobs.c.failed == 0)
        .where(*(() if with_truncated else (jobs.c.truncated == 0,)))
        .where(jobs.c.row_start == rows.start, jobs.c.row_stop == rows.stop, jobs.c.row_step == rows.step)
        .order_by(jobs.c.key.desc())
        .limit(1)
    )
    return connection.execute(query).scalar_one_or_none()


def trainings_of(connection: Connection, model_key: int) -> list[Row[Any]]:
    """Return the finetune jobs that made a model version and what it stands on, newest first.

    The same files under another name were made by the same training.
    """
    trainings: list[Row[Any]] = []
    row: Row[Any] | None = connection.execute(select(models).where(models.c.key == model_key)).one_or_none()
    for _ in range(LONGEST_CHAIN):
        if row is None:
            break
        same_files = (models.c.tenant_key == row.tenant_key, models.c.digest == row.digest)
        made_by = select(models.c.job_key).where(*same_files, models.c.job_key.is_not(None))
        trainings += connection.execute(select(jobs).where(jobs.c.key.in_(made_by)).order_by(jobs.c.key.desc())).all()
        row = find_origin(connection, row)
    return trainings

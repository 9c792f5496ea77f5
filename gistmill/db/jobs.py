"""Jobs as they enter SQL: the row, its recipe, its rows when they are listed, and its chunks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from gistmill.db.bulk import insert_many, listed
from gistmill.db.clock import db_now
from gistmill.db.ids import make_id
from gistmill.db.tables import chunks, job_rows, jobs, recipes
from gistmill.specs import SPEC_VERSION, FinetuneSpec, SummarizeSpec, digest_of
from gistmill.states import ChunkState, JobState


@dataclass(frozen=True)
class JobRows:
    """The rows of a job, frozen at submit: every `step`-th from start to before stop, or those listed, and then step is 0."""

    start: int
    stop: int
    step: int = 1
    listed: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """How many rows these are."""
        return len(range(self.start, self.stop, self.step)) if self.listed is None else len(self.listed)


@dataclass(frozen=True)
class NewJob:
    """A job that was checked and planned."""

    tenant_key: int
    spec: SummarizeSpec | FinetuneSpec
    request_digest: str
    idempotency_key: str | None
    dataset_key: int
    recipe: dict[str, Any] | None
    model_key: int | None
    model_digest: str
    rows: JobRows
    distinct_dialogues: int
    chunks: int
    retry_of_key: int | None = None
    warnings: tuple[str, ...] = ()


def takes(connection: Connection, rows: JobRows, row_number: ColumnElement[int]) -> ColumnElement[bool]:
    """The condition on a row number: the job takes this row."""
    if rows.listed is not None:
        return row_number.in_(listed(connection, rows.listed))
    condition = and_(row_number >= rows.start, row_number < rows.stop)
    return condition if rows.step == 1 else and_(condition, (row_number - rows.start) % rows.step == 0)


def find_job_by_idempotency_key(connection: Connection, tenant_key: int, key: str) -> tuple[str, str] | None:
    """Return the id and request digest of the job that was submitted under this key, or None."""
    query = select(jobs.c.id, jobs.c.request_digest).where(jobs.c.tenant_key == tenant_key, jobs.c.idempotency_key == key)
    row = connection.execute(query).one_or_none()
    return None if row is None else (row.id, row.request_digest)


def insert_job(connection: Connection, new: NewJob, ranges: Iterable[tuple[int, int, int]]) -> str:
    """Write the job with all its chunks, each a (first rank, last rank, dialogues); return the job's id.

    Raises:
        IntegrityError: a job was submitted under the same idempotency key a moment ago.
    """
    job_id = make_id("job")
    key = connection.execute(insert(jobs).values(_job_row(connection, new, job_id)).returning(jobs.c.key)).scalar_one()
    if new.rows.listed is not None:
        columns = (job_rows.c.job_key, job_rows.c.row_number)
        insert_many(connection, columns, ((key, number) for number in new.rows.listed))
    names = ("job_key", "ordinal", "first_rank", "last_rank", "dialogues", "state")
    rows = ((key, ordinal, *chunk, ChunkState.QUEUED.value) for ordinal, chunk in enumerate(ranges))
    insert_many(connection, [chunks.c[name] for name in names], rows)
    return job_id


def _job_row(connection: Connection, new: NewJob, job_id: str) -> dict[str, Any]:
    rows = new.rows
    return {
        "id": job_id,
        "tenant_key": new.tenant_key,
        "kind": new.spec.kind,
        "state": JobState.QUEUED,
        "priority": new.spec.priority,
        "retry_of_key": new.retry_of_key,
        "spec_version": SPEC_VERSION,
        "spec": new.spec.model_dump(mode="json"),
        "labels": new.spec.labels,
        "warnings": list(new.warnings),
        "idempotency_key": new.idempotency_key,
        "request_digest": new.request_digest,
        "dataset_key": new.dataset_key,
        "recipe_key": None if new.recipe is None else _find_or_add_recipe(connection, new.tenant_key, new.recipe),
        "model_key": new.model_key,
        "model_digest": new.model_digest,
        "row_start": rows.start,
        "row_stop": rows.stop,
        "row_step": rows.step,
        "items": rows.count,
        "distinct_dialogues": new.distinct_dialogues,
        "chunks": new.chunks,
        "chunks_left": new.chunks,
        "created_at": db_now(),
        "claimed_at": db_now(),
    }


def _find_or_add_recipe(connection: Connection, tenant_key: int, body: dict[str, Any]) -> int:
    digest = digest_of(body)
    query = select(recipes.c.key).where(recipes.c.tenant_key == tenant_key, recipes.c.digest == digest)
    key = connection.execute(query).scalar_one_or_none()
    if key is None:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        values = {"tenant_key": tenant_key, "digest": digest, "body": body}
        connection.execute(dialect.insert(recipes).values(values).on_conflict_do_nothing())
        key = connection.execute(query).scalar_one()
    return int(key)

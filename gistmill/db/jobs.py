"""Jobs as they enter SQL: the row, its recipe, its rows when they are listed, and its chunks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, insert, select

from gistmill.db import dependencies, endings
from gistmill.db.bulk import insert_many, listed
from gistmill.db.clock import db_now
from gistmill.db.ids import make_id
from gistmill.db.recipes import find_or_add_recipe
from gistmill.db.tables import chunks, job_rows, jobs
from gistmill.specs import SPEC_VERSION, AnySpec
from gistmill.states import KINDS_WITH_ITEMS, ChunkState, JobState


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
    """A job that was checked and planned.

    `needs` are the keys of the jobs that it waits for. `model_job_key` is the one of them whose model it will run: its model
    and its recipe are filled in when that is there. A job that others of its transaction name has got its `id` before.
    """

    tenant_key: int
    spec: AnySpec
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
    needs: tuple[int, ...] = ()
    model_job_key: int | None = None
    id: str | None = None

    @property
    def all_needs(self) -> frozenset[int]:
        """The keys of the jobs that it waits for, the maker of its model among them."""
        made_by = () if self.model_job_key is None else (self.model_job_key,)
        return frozenset((*self.needs, *made_by))


class InsertedJob(NamedTuple):
    """A job that was written."""

    key: int
    id: str


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


def insert_job_row(connection: Connection, new: NewJob, ranges: Iterable[tuple[int, int, int]]) -> InsertedJob:
    """Write the job with all its chunks, each a (first rank, last rank, dialogues).

    It waits while one of its needs has not completed, and has failed at once when one is lost. Jobs that need each other may
    be written in one transaction, the needed ones first.

    Raises:
        IntegrityError: a job was submitted under the same idempotency key a moment ago, or there is no such job as it needs.
    """
    job_id = new.id or make_id("job")
    key = connection.execute(insert(jobs).values(_job_row(connection, new, job_id)).returning(jobs.c.key)).scalar_one()
    if new.rows.listed is not None:
        columns = (job_rows.c.job_key, job_rows.c.row_number)
        insert_many(connection, columns, ((key, number) for number in new.rows.listed))
    names = ("job_key", "ordinal", "first_rank", "last_rank", "dialogues", "state")
    rows = ((key, ordinal, *chunk, ChunkState.QUEUED.value) for ordinal, chunk in enumerate(ranges))
    insert_many(connection, [chunks.c[name] for name in names], rows)
    if new.all_needs:
        dependencies.add_needs(connection, key, new.all_needs)
        endings.judge(connection, [key])
    return InsertedJob(key, job_id)


def _job_row(connection: Connection, new: NewJob, job_id: str) -> dict[str, Any]:
    rows = new.rows
    return {
        "id": job_id,
        "tenant_key": new.tenant_key,
        "kind": new.spec.kind,
        "state": JobState.WAITING if new.all_needs else JobState.QUEUED,
        "priority": new.spec.priority,
        "retry_of_key": new.retry_of_key,
        "spec_version": SPEC_VERSION,
        "spec": new.spec.model_dump(mode="json"),
        "labels": new.spec.labels,
        "warnings": list(new.warnings),
        "idempotency_key": new.idempotency_key,
        "request_digest": new.request_digest,
        "dataset_key": new.dataset_key,
        "recipe_key": None if new.recipe is None else find_or_add_recipe(connection, new.tenant_key, new.recipe),
        "model_key": new.model_key,
        "model_digest": new.model_digest,
        "model_job_key": new.model_job_key,
        "row_start": rows.start,
        "row_stop": rows.stop,
        "row_step": rows.step,
        "items": rows.count if new.spec.kind in KINDS_WITH_ITEMS else 0,
        "distinct_dialogues": new.distinct_dialogues,
        "chunks": new.chunks,
        "chunks_left": new.chunks,
        "created_at": db_now(),
        "claimed_at": db_now(),
    }

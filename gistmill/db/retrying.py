"""A job taken up again: which of its items are missing, which chunks hold them, and the transaction that reopens those."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select, text, update

from gistmill.db import dependencies, endings, scores
from gistmill.db.bulk import listed
from gistmill.db.clock import db_now
from gistmill.db.endings import Kinds
from gistmill.db.last_chunk import AFRESH, is_scoring
from gistmill.db.reviving import lock_chunks, revive_dependents
from gistmill.db.tables import chunks, dataset_dialogues, dataset_rows, jobs, results
from gistmill.errors import JobNotOver, NothingToRetry, UnknownJob
from gistmill.states import FINAL_JOB_STATES, ChunkState, JobKind, JobState

PAGE = 5_000


def get_ended(connection: Connection, tenant_key: int, job_id: str) -> Row[Any]:
    """Return the row of a job that has ended, with every chunk closed.

    Raises:
        UnknownJob: there is no such job of this tenant.
        JobNotOver: it has not ended.
    """
    query = select(jobs).where(jobs.c.tenant_key == tenant_key, jobs.c.id == job_id)
    job: Row[Any] | None = connection.execute(query).one_or_none()
    if job is None:
        raise UnknownJob(f"There is no job '{job_id}'. List them with: gistmill jobs list")
    if job.state not in FINAL_JOB_STATES:
        raise JobNotOver(f"The job {job_id} is {job.state}. Wait until it ends, or cancel it first.")
    if job.chunks_left:
        raise JobNotOver(f"The job {job_id} has {job.state}, but workers still give {job.chunks_left} chunks back. Try again.")
    return job


def count_errors(connection: Connection, job_key: int, codes: Sequence[str] | None) -> int:
    """Return how many items failed, with one of these codes if any are given."""
    return connection.execute(select(func.count()).where(_failed(job_key, codes))).scalar_one()


def failed_rows(connection: Connection, job_key: int, codes: Sequence[str] | None) -> list[int]:
    """Return the numbers of the rows that failed, with one of these codes if any are given, in order."""
    query = select(results.c.row_number).where(_failed(job_key, codes)).order_by(results.c.row_number)
    return list(connection.execute(query).scalars())


def find_chunks(connection: Connection, job: Row[Any], codes: Sequence[str] | None) -> list[int]:
    """Return the keys of the chunks that hold a failed item with one of these codes, or items that were never run.

    A failed item is looked up by its rank, not by the chunk that wrote the error: that one may have been split since.
    """
    known = connection.execute(
        select(chunks.c.key, chunks.c.first_rank, chunks.c.outcome)
        .where(chunks.c.job_key == job.key)
        .order_by(chunks.c.first_rank)
    ).all()
    firsts = [chunk.first_rank for chunk in known]
    holding = {known[bisect_right(firsts, rank) - 1].key for rank in _failed_ranks(connection, job, codes)}
    return sorted(chunk.key for chunk in known if chunk.key in holding or chunk.outcome in ("cancelled", "failed"))


def chunk_keys(connection: Connection, job_key: int) -> list[int]:
    """Return the keys of all chunks of a job in order, save for a last chunk: that is queued when the others are done."""
    query = select(chunks.c.key).where(chunks.c.job_key == job_key, is_scoring())
    return list(connection.execute(query.order_by(chunks.c.key)).scalars())


def reopen(connection: Connection, job: Row[Any], chunk_keys: Sequence[int], codes: Sequence[str] | None) -> Kinds:
    """Begin a new attempt over these chunks, all or nothing. `job` is its row as read before.

    Jobs that failed because of this one wait for it again. The job itself waits for those of its needs that have not completed.
    Return the kinds of the jobs that can be claimed now.

    Raises:
        JobNotOver: the job was taken up again in between; nothing was written.
        NothingToRetry: a job that it needs is lost, and has to be taken up first.
    """
    lock_chunks(connection, job.key)
    among = chunks.c.key.in_(listed(connection, chunk_keys))
    done = and_(among, chunks.c.state == ChunkState.DONE)
    opened = connection.execute(update(chunks).where(done).values(AFRESH)).rowcount
    changed = connection.execute(
        update(jobs)
        .where(
            jobs.c.key == job.key,
            jobs.c.attempt == job.attempt,
            jobs.c.state.in_(FINAL_JOB_STATES),
            jobs.c.chunks_left == 0,
        )
        .values(
            state=JobState.WAITING,
            attempt=jobs.c.attempt + 1,
            retry_codes=None if codes is None else list(codes),
            paused=False,
            not_run=0,
            chunks_left=opened,
            error=None,
            finished_at=None,
            claimed_at=db_now(),
        )
    ).rowcount
    if changed != 1 or opened != len(chunk_keys):
        raise JobNotOver(f"The job {job.id} was taken up again a moment ago.")
    _check_needs(connection, job)
    if job.kind == JobKind.EVALUATE:
        scores.forget(connection, job)
    revive_dependents(connection, job.key)
    return endings.judge(connection, [job.key])


def is_missing_items() -> ColumnElement[bool]:
    """The condition on a job: it has ended, and has not completed or has items without a summary."""
    is_short = or_(jobs.c.state != JobState.COMPLETED, jobs.c.failed > 0, jobs.c.not_run > 0)
    return and_(jobs.c.state.in_(FINAL_JOB_STATES), is_short)


def _check_needs(connection: Connection, job: Row[Any]) -> None:
    lost = dependencies.find_lost(dependencies.list_needs(connection, job.key))
    if lost is not None:
        raise NothingToRetry(
            f"The job {job.id} needs the job {lost.id}, which {_LOST[lost.state]}. Take that one up first, and this one goes"
            f" on: gistmill jobs retry {lost.id}"
        )


_LOST = {JobState.FAILED: "has failed", JobState.CANCELLED: "was cancelled"}


def _failed(job_key: int, codes: Sequence[str] | None) -> ColumnElement[bool]:
    condition = and_(results.c.job_key == job_key, results.c.generation_key.is_(None))
    return condition if codes is None else and_(condition, results.c.error_code.in_(codes))


def _failed_ranks(connection: Connection, job: Row[Any], codes: Sequence[str] | None) -> Iterable[int]:
    if connection.dialect.name == "postgresql":
        # As in planning: without statistics the planner would compare each rank with each failed row.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL enable_nestloop = off"))
    failed = (
        select(dataset_rows.c.dialogue_key)
        .select_from(results)
        .join(
            dataset_rows, and_(dataset_rows.c.dataset_key == job.dataset_key, dataset_rows.c.row_number == results.c.row_number)
        )
        .where(_failed(job.key, codes))
    )
    query = select(dataset_dialogues.c.rank).where(
        dataset_dialogues.c.dataset_key == job.dataset_key, dataset_dialogues.c.dialogue_key.in_(failed)
    )
    return connection.execute(query, execution_options={"yield_per": PAGE}).scalars()

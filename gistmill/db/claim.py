"""Who gets the next chunk: the only place that holds fairness, priority, affinity and fit.

The statements are built once and get their values when they run: building those of a claim took longer than running them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Row,
    Select,
    Update,
    and_,
    bindparam,
    case,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from gistmill.db.clock import db_now
from gistmill.db.session import Changed
from gistmill.db.tables import chunks, jobs, tenants, workers
from gistmill.states import CLAIMABLE_JOB_STATES, HELD_CHUNK_STATES, ChunkState, JobState

# A job that nobody has touched for this long goes before jobs whose model is at hand.
PATIENCE_S = 60.0
# How many jobs one claim tries before it gives up; another worker may hold all chunks of the first ones.
CANDIDATES = 8


@dataclass(frozen=True)
class Claimant:
    """The worker that asks, and what it can run."""

    worker: str
    kinds: tuple[str, ...]
    device_bytes: int
    spec_version: int
    resident: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A chunk that is this worker's until its lease ends, and what its job asks for."""

    chunk_key: int
    epoch: int
    worker: str
    first_rank: int
    last_rank: int
    dialogues: int
    failures: int
    crashes: int
    job_key: int
    job_id: str
    tenant_key: int
    kind: str
    attempt: int
    retry_codes: tuple[str, ...] | None
    spec: dict[str, Any]
    dataset_key: int
    recipe_key: int
    model_key: int | None
    model_digest: str
    row_start: int
    row_stop: int
    row_step: int


def claim(connection: Connection, claimant: Claimant, *, lease_s: float) -> Claim | None:
    """Take the chunk that should run next, or None when nothing that waits fits this worker.

    At most one worker gets a chunk: the UPDATE names the state it expects, so the loser of a race changes no row.

    Raises:
        Changed: a job may not run any more since it was looked at.
        StoreUnavailable: the database did not answer; the claim may have been made all the same.
    """
    for job in candidates(connection, claimant):
        taken = take(connection, job, claimant.worker, lease_s=lease_s)
        if taken is not None:
            note_running(connection, taken)
            return taken
    return None


def take(
    connection: Connection, job: Row[Any], worker: str, *, lease_s: float, state: ChunkState = ChunkState.RUNNING
) -> Claim | None:
    """Give this worker the next chunk of a job, or None when another worker has it.

    Raises:
        Changed: the job may not run any more.
    """
    taken = take_of_marked(connection, job, worker, lease_s=lease_s, state=state)
    if taken is not None and not mark_running(connection, job.key):
        # It was paused or ended meanwhile, which is rare: a savepoint would cost every claim two journeys to the server.
        raise Changed
    return taken


def take_of_marked(connection: Connection, job: Row[Any], worker: str, *, lease_s: float, state: ChunkState) -> Claim | None:
    """Do as `take` does, for a job that this transaction has marked as running."""
    values = {"of_job": job.key, "new_owner": worker, "for_s": lease_s}
    chunk = connection.execute(_taking(state), values).one_or_none()
    return None if chunk is None else _make_claim(chunk, job, worker)


def candidates(connection: Connection, claimant: Claimant) -> Sequence[Row[Any]]:
    """Return the jobs to try, best first."""
    return connection.execute(_ranking(claimant)).all()


@lru_cache
def _ranking(claimant: Claimant) -> Select[Any]:
    """The jobs to try, best first: smallest share, longest unserved tenant, priority, patience, model, age."""
    running = (
        select(jobs.c.tenant_key, func.count().label("chunks"))
        .select_from(chunks.join(jobs, jobs.c.key == chunks.c.job_key))
        .where(is_held())
        .group_by(jobs.c.tenant_key)
        .subquery()
    )
    share = func.coalesce(running.c.chunks, 0) / tenants.c.weight
    # On a small fleet nobody runs anything at the moment of a claim: then tenants take turns.
    served_at = func.max(jobs.c.claimed_at).over(partition_by=jobs.c.tenant_key)
    has_waited = case((db_now() - jobs.c.claimed_at > PATIENCE_S, 0), else_=1)
    is_resident = case((jobs.c.model_digest.in_(claimant.resident), 0), else_=1) if claimant.resident else literal(1)
    return (
        select(jobs)
        .select_from(
            jobs.join(tenants, tenants.c.key == jobs.c.tenant_key).outerjoin(running, running.c.tenant_key == jobs.c.tenant_key)
        )
        .where(is_claimable(), fits(claimant))
        .order_by(share, served_at, jobs.c.tenant_key)
        .order_by(jobs.c.priority.desc(), has_waited, is_resident, jobs.c.created_at, jobs.c.key)
        .limit(CANDIDATES)
    )


def is_claimable() -> ColumnElement[bool]:
    """The condition on a job: it may run and one of its chunks waits."""
    waiting = (
        select(literal(1))
        .where(chunks.c.job_key == jobs.c.key, chunks.c.state == ChunkState.QUEUED, chunks.c.run_at <= db_now())
        .exists()
    )
    return and_(may_run(), waiting)


def may_run() -> ColumnElement[bool]:
    """The condition on a job: its chunks may be handed out."""
    return and_(jobs.c.state.in_(CLAIMABLE_JOB_STATES), not_(jobs.c.paused))


def is_held() -> ColumnElement[bool]:
    """The condition on a chunk: it has an owner, who runs it or will run it next. That it has a lease tells the index."""
    return and_(chunks.c.state.in_(HELD_CHUNK_STATES), chunks.c.lease_until.is_not(None))


def fits(claimant: Claimant) -> ColumnElement[bool]:
    """The condition on a job: this worker can run it."""
    return and_(
        jobs.c.kind.in_(claimant.kinds) if claimant.kinds else false(),
        jobs.c.spec_version <= claimant.spec_version,
        jobs.c.min_device_bytes <= claimant.device_bytes,
    )


def kinds_that_wait(connection: Connection, idle: Collection[Claimant]) -> list[str]:
    """Return the job kinds that hold claimable work which one of these idle workers fits."""
    if not idle:
        return []
    query = select(jobs.c.kind).where(is_claimable(), or_(*(fits(claimant) for claimant in idle))).distinct()
    return sorted(connection.execute(query).scalars())


@cache
def _taking(state: ChunkState) -> ReturningUpdate[Any]:
    # A chunk that has crashed runs alone.
    may_be_taken = chunks.c.crashes == literal(0) if state == ChunkState.RESERVED else true()
    # On PostgreSQL SKIP LOCKED stands inside a CTE: in a plain subquery the planner may update more rows than LIMIT.
    next_chunk = (
        select(chunks.c.key)
        .where(chunks.c.job_key == bindparam("of_job"), chunks.c.state == ChunkState.QUEUED, chunks.c.run_at <= db_now())
        .order_by(chunks.c.ordinal)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("next_chunk")
    )
    return (
        update(chunks)
        .where(chunks.c.key == select(next_chunk.c.key).scalar_subquery(), chunks.c.state == ChunkState.QUEUED)
        .where(may_be_taken)
        .values(
            state=state,
            owner=bindparam("new_owner"),
            lease_until=db_now() + bindparam("for_s", type_=Float()),
            epoch=chunks.c.epoch + 1,
            progressed=False,
            ended=0,
            started_at=db_now(),
            finished_at=None,
            outcome=None,
        )
        .returning(chunks)
    )


def mark_running(connection: Connection, job_key: int) -> bool:
    """Note that a chunk of the job was claimed; False when the job may not run any more."""
    return connection.execute(_marking(), {"of_job": job_key}).rowcount == 1


@cache
def _marking() -> Update:
    return (
        update(jobs)
        .where(jobs.c.key == bindparam("of_job"), jobs.c.state.in_(CLAIMABLE_JOB_STATES), not_(jobs.c.paused))
        .values(state=JobState.RUNNING, claimed_at=db_now(), started_at=func.coalesce(jobs.c.started_at, db_now()))
    )


def note_running(connection: Connection, claim: Claim) -> None:
    """Note that the worker runs this chunk."""
    connection.execute(_noting(), {"of_worker": claim.worker, "taken": claim.chunk_key})


@cache
def _noting() -> Update:
    values = {"chunk_key": bindparam("taken"), "state": "busy", "seen_at": db_now()}
    return update(workers).where(workers.c.id == bindparam("of_worker")).values(values)


def _make_claim(chunk: Row[Any], job: Row[Any], worker: str) -> Claim:
    return Claim(
        chunk_key=chunk.key,
        epoch=chunk.epoch,
        worker=worker,
        first_rank=chunk.first_rank,
        last_rank=chunk.last_rank,
        dialogues=chunk.dialogues,
        failures=chunk.failures,
        crashes=chunk.crashes,
        job_key=job.key,
        job_id=job.id,
        tenant_key=job.tenant_key,
        kind=job.kind,
        attempt=job.attempt,
        retry_codes=None if job.retry_codes is None else tuple(job.retry_codes),
        spec=job.spec,
        dataset_key=job.dataset_key,
        recipe_key=job.recipe_key,
        model_key=job.model_key,
        model_digest=job.model_digest,
        row_start=job.row_start,
        row_stop=job.row_stop,
        row_step=job.row_step,
    )

"""Chunks claimed ahead: a worker that runs one reserves the next, so that its device need not wait between the two.

A reserved chunk has an owner, a lease and an epoch like one that runs, and is renewed with the one that does. Nothing is
written under it before its turn comes, so its loss costs neither a failure nor a crash. What may run at all, and who comes
first, is decided by claim.py as ever: only what the worker would claim now anyway is reserved.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import Connection, Float, Row, Select, Update, and_, bindparam, case, func, literal, select, update

from gistmill.db import workers as worker_rows
from gistmill.db.chunks import queue_again, release
from gistmill.db.claim import Claim, Claimant, candidates, fits, mark_running, may_run, note_running, take, take_of_marked
from gistmill.db.clock import db_now
from gistmill.db.fence import is_named, is_of, names_of
from gistmill.db.references import ADAPTER
from gistmill.db.tables import chunks, jobs, models
from gistmill.states import ChunkState


def claim_ahead(
    connection: Connection, claimant: Claimant, running: Claim, *, lease_s: float, live_within_s: float
) -> Claim | None:
    """Reserve the chunk that this worker would claim if it were through with the running one, or None.

    Only while more chunks wait than workers live, so that nobody has nothing to do because of it, or while no other worker
    lives; only if the chunk takes the same base model in the same precision; and neither of the two has crashed: such a chunk
    runs alone.

    Raises:
        Changed: its job may not run any more since it was looked at.
        StoreUnavailable: the database did not answer; the chunk may have been reserved all the same.
    """
    first = _first(connection, claimant, running, worker_rows.live(connection, within_s=live_within_s))
    if first is None or not _is_alike(connection, running, first):
        return None
    return take(connection, first, claimant.worker, lease_s=lease_s, state=ChunkState.RESERVED)


def claim_behind(
    connection: Connection, claimant: Claimant, running: Claim, live: Sequence[Row[Any]], *, lease_s: float
) -> Claim | None:
    """Do as `claim_ahead` does in the transaction in which the running chunk begins, for one who knows which workers live.

    Only a chunk of the same job, whose row this transaction has locked: two workers that locked two jobs in two orders would
    wait for each other.
    """
    first = _first(connection, claimant, running, live)
    if first is None or first.key != running.job_key:
        return None
    return take_of_marked(connection, first, claimant.worker, lease_s=lease_s, state=ChunkState.RESERVED)


def begin(connection: Connection, claim: Claim, *, lease_s: float) -> bool:
    """Let a reserved chunk run, under a lease from now.

    False when it is lost, and also when its job may not run now: then the chunk is given back.
    """
    if connection.execute(_beginning(), names_of(claim) | {"for_s": lease_s}).rowcount != 1:
        return False
    if not mark_running(connection, claim.job_key):
        release(connection, claim)
        return False
    note_running(connection, claim)
    return True


def give_back(connection: Connection, claim: Claim) -> None:
    """Queue a reserved chunk again, at no cost. Nothing happens when it is lost."""
    is_mine = and_(is_of(claim), chunks.c.state == ChunkState.RESERVED)
    queue_again(connection, is_mine, chunk_key=claim.chunk_key, job_key=claim.job_key)


@cache
def _beginning() -> Update:
    return (
        update(chunks)
        .where(is_named(ChunkState.RESERVED))
        .values(state=ChunkState.RUNNING, started_at=db_now())
        .values(lease_until=db_now() + bindparam("for_s", type_=Float()))
    )


def _first(connection: Connection, claimant: Claimant, running: Claim, live: Sequence[Row[Any]]) -> Row[Any] | None:
    """Return the job whose chunk comes next, or None when nothing may be reserved beside the running chunk."""
    if running.crashes or not _others_find_work(connection, claimant, running.kind, live):
        return None
    return next(iter(candidates(connection, claimant)), None)


def _others_find_work(connection: Connection, claimant: Claimant, kind: str, live: Sequence[Row[Any]]) -> bool:
    """True when more chunks wait that this worker fits than workers of that kind are live, or when there is no other one."""
    others = sum(kind in row.kinds for row in live if row.id != claimant.worker)
    spare = others + 1 if others else 0
    values = {"of_kind": kind, "most": spare + 1}
    return bool(connection.execute(_counting(claimant), values).scalar_one() > spare)


@lru_cache
def _counting(claimant: Claimant) -> Select[Any]:
    waiting = (
        select(literal(1))
        .select_from(chunks.join(jobs, jobs.c.key == chunks.c.job_key))
        .where(chunks.c.state == ChunkState.QUEUED, chunks.c.run_at <= db_now(), jobs.c.kind == bindparam("of_kind"))
        .where(may_run(), fits(claimant))
        .limit(bindparam("most"))
        .subquery()
    )
    return select(func.count()).select_from(waiting)


def _is_alike(connection: Connection, running: Claim, job: Row[Any]) -> bool:
    """True when the job's chunks run on the model that the running chunk runs on; their adapters may differ."""
    if job.kind != running.kind or job.spec.get("precision") != running.spec.get("precision"):
        return False
    if job.model_digest == running.model_digest:
        return True
    if job.model_key is None or running.model_key is None:
        return False
    base = case((models.c.kind == ADAPTER, models.c.base_digest), else_=models.c.digest)
    bases = select(base).where(models.c.key.in_((job.model_key, running.model_key))).distinct()
    return len(connection.execute(bases).all()) == 1

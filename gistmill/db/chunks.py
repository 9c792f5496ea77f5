"""What happens to a chunk after its claim: renewal, finish, release. Every statement carries key, epoch and state.

Lock order, here and everywhere: chunks by key, generations by key, the job, its results, workers, and when the job ends, those
that need it by key. A transaction that would leave a queued chunk under a job that ended looks at the job after it has locked
the chunk, and closes the chunk instead. Where a chunk begins with one reserved behind it, that one is locked after the job,
but only if nobody holds it: such a transaction waits for no chunk while it has the job (ahead.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, Update, and_, bindparam, func, select, true, update

from gistmill.db import results
from gistmill.db.claim import Claim, is_held
from gistmill.db.clock import db_now
from gistmill.db.endings import count_down, mark_failed, settle
from gistmill.db.fence import guard, held_by, is_named, names_of
from gistmill.db.tables import chunks, jobs, workers
from gistmill.errors import ChunkFailed, GistmillError
from gistmill.states import CLAIMABLE_JOB_STATES, KINDS_WITH_ITEMS, STOPPED_JOB_STATES, ChunkState, JobState

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Budgets:
    """How often a chunk may fail and crash, and how long it rests in between."""

    max_failures: int = 3
    max_crashes: int = 3
    retry_base_s: float = 2.0
    retry_max_s: float = 300.0

    def delay_s(self, times: int) -> float:
        """Return a rest after the n-th failure: full jitter under a doubling limit."""
        return random.uniform(0, min(self.retry_max_s, self.retry_base_s * 2 ** (times - 1)))


@dataclass(frozen=True)
class Wish:
    """What the user wants of the job whose chunk this worker holds."""

    is_owned: bool
    job_state: JobState | None
    is_paused: bool


def renew(connection: Connection, claim: Claim, *, lease_s: float) -> bool:
    """Extend the lease from now, also of a chunk that was claimed ahead; False when it is lost."""
    statement = update(chunks).where(held_by(claim)).values(lease_until=db_now() + lease_s)
    return connection.execute(statement).rowcount == 1


def read_wish(connection: Connection, claim: Claim) -> Wish:
    """Return what is wanted of the claim's job; travels in the heartbeat."""
    query = select(chunks.c.epoch, chunks.c.state.label("chunk_state"), jobs.c.state, jobs.c.paused).where(
        chunks.c.key == claim.chunk_key, jobs.c.key == chunks.c.job_key
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return Wish(False, None, False)
    is_owned = row.epoch == claim.epoch and row.chunk_state == ChunkState.RUNNING
    return Wish(is_owned, JobState(row.state), row.paused)


def finish(
    connection: Connection,
    claim: Claim,
    *,
    ended: int | None = None,
    last_words: Callable[[Connection], None] | None = None,
) -> None:
    """Mark the chunk done; whoever brings the job's remaining chunks to zero ends the job.

    With `ended` it is done only if so many of its items ended under this epoch. A database that was restored, or failed over to
    a standby, may have lost commits that it had answered: then the chunk is given back, and its next claim looks at what is
    pending. `last_words` writes what its worker has to say of it, after all that others wait for. The worker counts as busy
    until it has claimed the next chunk or found none.

    Raises:
        LeaseLost: the chunk is no longer this claim's.
    """
    names = names_of(claim) if ended is None else names_of(claim) | {"all_ended": ended}
    if connection.execute(_finishing(is_counted=ended is not None), names).rowcount != 1:
        release(connection, claim)
        log.warning("ends_were_lost", chunk=claim.chunk_key, job_id=claim.job_id, epoch=claim.epoch, ended=ended)
        return
    count_down(connection, claim.job_key, 1)
    if last_words is not None:
        last_words(connection)


def release(connection: Connection, claim: Claim, *, delay_s: float = 0.0) -> None:
    """Give the chunk back at no cost, to be claimed again after `delay_s`.

    Raises:
        LeaseLost: the chunk is no longer this claim's.
    """
    guard(connection, claim, **queued_after(delay_s))
    _free_worker(connection, claim.worker)
    close_if_job_ended(connection, claim.chunk_key, claim.job_key)


def fail(connection: Connection, claim: Claim, error: GistmillError, budgets: Budgets) -> None:
    """Give the chunk back at the cost of one failure; when none is left, write the error to its remaining items.

    Raises:
        LeaseLost: the chunk is no longer this claim's.
    """
    failures = claim.failures + 1
    body = {"code": error.code, "message": error.message}
    if failures < budgets.max_failures:
        guard(connection, claim, failures=failures, error=body, **queued_after(budgets.delay_s(failures)))
        _free_worker(connection, claim.worker)
        close_if_job_ended(connection, claim.chunk_key, claim.job_key)
        return
    guard(connection, claim, failures=failures, error=body)
    message = f"The chunk failed {failures} times; the last error was: {error.message}"
    if claim.kind not in KINDS_WITH_ITEMS:
        fail_job(connection, claim, ChunkFailed(message))
        return
    results.fail_remaining(connection, claim, ChunkFailed(message))
    finish(connection, claim)


def fail_job(connection: Connection, claim: Claim, error: GistmillError) -> None:
    """End the whole job with this error: its cause holds for every chunk.

    Raises:
        LeaseLost: the chunk is no longer this claim's.
    """
    guard(connection, claim, state=ChunkState.DONE, outcome="failed", owner=None, lease_until=None, finished_at=db_now())
    _free_worker(connection, claim.worker)
    mark_failed(connection, claim.job_key, error)
    count_down(connection, claim.job_key, 1)


def close(connection: Connection, claim: Claim) -> None:
    """End the chunk of a job that was cancelled or has failed; its remaining items count as not run.

    Raises:
        LeaseLost: the chunk is no longer this claim's.
    """
    guard(connection, claim, state=ChunkState.DONE, outcome="cancelled", owner=None, lease_until=None, finished_at=db_now())
    _free_worker(connection, claim.worker)
    count_down(connection, claim.job_key, 1)


def release_owned(connection: Connection, worker: str) -> int:
    """Give back, at no cost, whatever chunks carry this worker's uuid; return how many.

    A worker calls it after an error of the database: a claim may have been made though its answer was lost.
    """
    query = select(chunks.c.key, chunks.c.job_key, chunks.c.epoch).where(chunks.c.owner == worker, is_held())
    released = 0
    for row in connection.execute(query.order_by(chunks.c.key)).all():
        is_mine = and_(chunks.c.key == row.key, chunks.c.epoch == row.epoch, is_held())
        released += queue_again(connection, is_mine, chunk_key=row.key, job_key=row.job_key)
    _free_worker(connection, worker)
    return released


def queue_again(connection: Connection, is_mine: ColumnElement[bool], *, chunk_key: int, job_key: int) -> bool:
    """Queue a chunk at no cost if it still is what `is_mine` says; False when it is not, and nothing was changed."""
    if connection.execute(update(chunks).where(is_mine).values(**queued_after(0.0))).rowcount != 1:
        return False
    close_if_job_ended(connection, chunk_key, job_key)
    return True


def close_queued(connection: Connection, job_key: int) -> int:
    """Close the chunks of a job that is cancelling or has ended of which none runs, also those claimed ahead; return how many.

    The job is looked at once more when the chunks are locked: a retry may have taken it up again meanwhile.
    """
    unrun = and_(chunks.c.job_key == job_key, chunks.c.state.in_((ChunkState.QUEUED, ChunkState.RESERVED)))
    mine = select(chunks.c.key).where(unrun)
    keys = connection.execute(mine.order_by(chunks.c.key).with_for_update()).scalars().all()
    if not keys or _read_state(connection, job_key) not in STOPPED_JOB_STATES:
        return 0
    statement = (
        update(chunks)
        .where(unrun)
        .values(state=ChunkState.DONE, outcome="cancelled", owner=None, lease_until=None, finished_at=db_now())
    )
    closed = connection.execute(statement).rowcount
    count_down(connection, job_key, closed)
    return closed


def close_ended(connection: Connection, job_key: int) -> None:
    """Close what is queued under a job that is cancelling or has ended, and end the job when nothing is left."""
    close_queued(connection, job_key)
    settle(connection, job_key)


def queued_after(delay_s: float) -> dict[str, Any]:
    """Return the values of a chunk that waits to be claimed again."""
    return {"state": ChunkState.QUEUED, "owner": None, "lease_until": None, "run_at": db_now() + delay_s}


def close_if_job_ended(connection: Connection, chunk_key: int, job_key: int) -> bool:
    """Close this queued chunk when its job may not run any more; True when it did. Locks the job's row."""
    if _read_state(connection, job_key) in CLAIMABLE_JOB_STATES:
        return False
    closed = connection.execute(
        update(chunks)
        .where(chunks.c.key == chunk_key, chunks.c.state == ChunkState.QUEUED)
        .values(state=ChunkState.DONE, outcome="cancelled", finished_at=db_now())
    ).rowcount
    count_down(connection, job_key, closed)
    return closed == 1


def _read_state(connection: Connection, job_key: int) -> JobState:
    """Lock the job's row and return its state."""
    return JobState(connection.execute(select(jobs.c.state).where(jobs.c.key == job_key).with_for_update()).scalar_one())


@cache
def _finishing(*, is_counted: bool) -> Update:
    """Return the statement that ends a chunk; made once, because the next chunk waits for its making."""
    is_whole = chunks.c.ended == bindparam("all_ended") if is_counted else true()
    values = {"state": ChunkState.DONE, "outcome": "done", "owner": None, "lease_until": None, "finished_at": db_now()}
    return update(chunks).where(is_named(ChunkState.RUNNING), is_whole).values(values)


def _free_worker(connection: Connection, worker: str) -> None:
    connection.execute(_freeing(), {"of_worker": worker})


@cache
def _freeing() -> Update:
    free = func.coalesce(func.nullif(workers.c.state, "busy"), "idle")
    return update(workers).where(workers.c.id == bindparam("of_worker")).values(chunk_key=None, state=free)

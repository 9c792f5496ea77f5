"""Take an ended job up again: only what is missing is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Row

from gistmill import errors
from gistmill.control.wishes import Ring, ring_all
from gistmill.db import retrying
from gistmill.db.session import Database
from gistmill.errors import ItemError, NothingToRetry
from gistmill.states import KINDS_WITH_ITEMS, JobState

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Missing:
    """Which of the missing items a retry takes up.

    `failed` leaves out jobs with items that were never run; `retryable` leaves out items whose error would only repeat itself.
    """

    failed: bool = False
    retryable: bool = False

    @property
    def codes(self) -> tuple[str, ...] | None:
        """The error codes to take up again, or None for all."""
        return retryable_codes() if self.retryable else None


def retryable_codes() -> tuple[str, ...]:
    """Return the codes of item errors that may not happen again."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ItemError)]
    return tuple(sorted(kind.code for kind in kinds if kind.retryable))


def retry(database: Database, tenant_key: int, job_id: str, missing: Missing | None = None, *, ring: Ring | None = None) -> int:
    """Queue what an ended job is missing, as a new attempt, and return how many items that is.

    Raises:
        UnknownJob: there is no such job of this tenant.
        JobNotOver: the job runs, or another retry was faster.
        NothingToRetry: no item is missing, or none of those that `missing` names; or a job that this one needs is lost.
    """
    missing = missing or Missing()
    with database.read() as connection:
        job = retrying.get_ended(connection, tenant_key, job_id)
        if job.kind not in KINDS_WITH_ITEMS:
            return _run_again(database, job, ring)
        if missing.failed and job.not_run:
            raise NothingToRetry(
                f"The job {job_id} has {job.not_run} items that were never run; leave out --failed to run those too."
            )
        found = retrying.count_errors(connection, job.key, missing.codes) + job.not_run
        # A job that was cancelled as its last item ended misses nothing: it completes at once, and what needs it can go on.
        if found == 0 and (job.state == JobState.COMPLETED or job.failed):
            raise NothingToRetry(_why_nothing(job, missing))
        chunk_keys = retrying.find_chunks(connection, job, missing.codes)
    _reopen(database, job, chunk_keys, codes=missing.codes, items=int(found), ring=ring)
    return int(found)


def _run_again(database: Database, job: Row[Any], ring: Ring | None) -> int:
    """Queue the chunks of a job without items, which go on where they stopped; nothing of them counts as an item."""
    if job.state == JobState.COMPLETED:
        raise NothingToRetry(f"The job {job.id} has done what it was to do.")
    with database.read() as connection:
        chunk_keys = retrying.chunk_keys(connection, job.key)
    _reopen(database, job, chunk_keys, codes=None, items=0, ring=ring)
    return 0


def _reopen(
    database: Database,
    job: Row[Any],
    chunk_keys: Sequence[int],
    *,
    codes: Sequence[str] | None,
    items: int,
    ring: Ring | None,
) -> None:
    released = database.transact(partial(retrying.reopen, job=job, chunk_keys=chunk_keys, codes=codes))
    log.info("job_retried", job_id=job.id, items=items, chunks=len(chunk_keys), attempt=job.attempt + 1)
    ring_all(ring, released)


def _why_nothing(job: Row[Any], missing: Missing) -> str:
    if missing.retryable and job.failed:
        return (
            f"None of the {job.failed} failed items of the job {job.id} has an error that another try could mend. "
            "Leave out --retryable, or change the job with --set."
        )
    return f"Every item of the job {job.id} has its summary."

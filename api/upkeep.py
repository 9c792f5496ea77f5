"""What the service tidies up every minute, besides the sweep that workers do too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from api.deps import Service
from gistmill.db import workers as worker_rows
from gistmill.db.tables import jobs, models
from gistmill.errors import StoreUnavailable
from gistmill.states import JobState
from gistmill.submit import sweep_datasets

log = structlog.get_logger(__name__)

PERIOD_S = 60.0
# A model upload that nobody has touched for a day is given up.
STALE_UPLOAD_S = 24 * 3600.0


async def keep_up(service: Service) -> None:
    """Tidy up until cancelled."""
    while True:
        await run_in_threadpool(tidy_up, service)
        await asyncio.sleep(PERIOD_S)


def tidy_up(service: Service) -> None:
    """Undo datasets and model uploads that were given up, and forget workers that ended long ago."""
    try:
        sweep_datasets(service.database)
        service.database.transact(worker_rows.forget_old)
        _let_checkpoints_go(service)
        service.store.sweep_unlisted(partial(_list_known, service), older_than_s=STALE_UPLOAD_S)
    except StoreUnavailable as error:
        log.warning("upkeep_failed", reason=error.message)
    service.store.sweep(older_than_s=STALE_UPLOAD_S)
    service.store.sweep_converted()


def _list_known(service: Service, digests: Sequence[str]) -> list[str]:
    """Return those of these digests that a model version of any tenant has."""
    with service.database.read() as connection:
        return list(connection.execute(select(models.c.digest).where(models.c.digest.in_(digests))).scalars())


def _let_checkpoints_go(service: Service) -> None:
    """Remove the checkpoints of jobs that need them no more; a failed job may be taken up again within a day."""
    untouched = set(service.shelf.jobs(untouched_s=STALE_UPLOAD_S))
    for job_id in list(service.shelf.jobs()):
        with service.database.read() as connection:
            state = connection.scalar(select(jobs.c.state).where(jobs.c.id == job_id))
        is_over = state in (None, JobState.COMPLETED, JobState.CANCELLED)
        if is_over or (state == JobState.FAILED and job_id in untouched):
            service.shelf.remove(job_id)
            log.info("checkpoints_removed", job_id=job_id)

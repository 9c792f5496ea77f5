"""What the service tidies up every minute, besides the sweep that workers do too."""

from __future__ import annotations

import asyncio

import structlog
from starlette.concurrency import run_in_threadpool

from api.deps import Service
from gistmill.db import workers as worker_rows
from gistmill.errors import StoreUnavailable
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
    except StoreUnavailable as error:
        log.warning("upkeep_failed", reason=error.message)
    service.store.sweep(older_than_s=STALE_UPLOAD_S)

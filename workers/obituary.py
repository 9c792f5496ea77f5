"""What the launcher does when a worker has died: its chunks are taken back at once instead of at the end of their leases."""

from __future__ import annotations

from functools import partial

import structlog

from gistmill.db import crashes
from gistmill.db.session import Database
from gistmill.errors import StoreUnavailable
from gistmill.queue import Bells
from gistmill.settings import WorkerSettings
from gistmill.sweep import budgets, ring_waiting

log = structlog.get_logger(__name__)


def report(database: Database, bells: Bells, settings: WorkerSettings, worker_uuid: str) -> None:
    """Release the chunks of a dead worker within a second. When SQL does not answer, their leases end by themselves."""
    try:
        buried = database.transact(partial(crashes.bury, worker=worker_uuid, budgets=budgets(settings)))
        log.warning("worker_died", worker=worker_uuid, chunks=buried)
        ring_waiting(database, bells, settings)
    except StoreUnavailable as error:
        log.warning("death_not_reported", worker=worker_uuid, reason=error.message)

"""Whether the process lives, and whether work would go through."""

from __future__ import annotations

from fastapi import APIRouter, Response
from sqlalchemy import select

from api.deps import Service, ServiceDep
from gistmill.db import workers as worker_rows
from gistmill.db.claim import is_claimable
from gistmill.db.tables import jobs
from gistmill.errors import StoreUnavailable

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Answer as long as the process lives."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(service: ServiceDep, response: Response) -> dict[str, bool]:
    """Say whether the database and Redis answer (else 503), and whether waiting work would find a worker."""
    database, consuming = _look(service)
    redis = service.bells.ping()
    if not (database and redis):
        response.status_code = 503
    return {"database": database, "redis": redis, "consuming": consuming}


def _look(service: Service) -> tuple[bool, bool]:
    try:
        with service.database.read() as connection:
            is_waiting = connection.scalar(select(jobs.c.key).where(is_claimable()).limit(1)) is not None
            live = worker_rows.count_live(connection, within_s=service.gone_after_s)
    except StoreUnavailable:
        return False, False
    return True, live > 0 or not is_waiting

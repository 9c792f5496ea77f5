"""Workers as they stand."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, and_, select

from gistmill.db.clock import as_datetime, db_now
from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs, models, workers
from gistmill.views import Page, WorkerView

# Three leases of the default length.
GONE_AFTER_S = 90.0
# A worker that is gone for longer is found in v_workers only.
SHOWN_FOR_S = 3600.0


def list_workers(database: Database, tenant_key: int, *, gone_after_s: float = GONE_AFTER_S) -> Page[WorkerView]:
    """Return the workers, newest first, and those that went in the last hour. A job is named only to its own tenant."""
    mine = and_(jobs.c.key == chunks.c.job_key, jobs.c.tenant_key == tenant_key)
    joined = (
        workers.outerjoin(chunks, chunks.c.key == workers.c.chunk_key)
        .outerjoin(jobs, mine)
        .outerjoin(models, models.c.key == jobs.c.model_key)
    )
    query = (
        select(
            workers,
            jobs.c.id.label("job_id"),
            models.c.name.label("model_name"),
            models.c.version.label("model_version"),
            (db_now() - workers.c.seen_at).label("unseen_s"),
        )
        .select_from(joined)
        .where(workers.c.seen_at > db_now() - max(SHOWN_FOR_S, gone_after_s))
        .order_by(workers.c.started_at.desc(), workers.c.id)
    )
    with database.read() as connection:
        return Page(data=[_view(row, gone_after_s) for row in connection.execute(query)])


def _view(row: Row[Any], gone_after_s: float) -> WorkerView:
    is_gone = row.unseen_s > gone_after_s or row.state == "gone"
    return WorkerView(
        id=row.id,
        host=row.host,
        pid=row.pid,
        device=row.device,
        device_name=row.device_name,
        engine=row.engine,
        kinds=row.kinds,
        state="gone" if is_gone else row.state,
        job=None if is_gone else row.job_id,
        model=None if is_gone or row.model_name is None else f"{row.model_name}@{row.model_version}",
        started_at=as_datetime(row.started_at),
        seen_at=as_datetime(row.seen_at),
    )

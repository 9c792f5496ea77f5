"""Training curves as they are read back, page by page."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select

from gistmill.db.session import Database
from gistmill.db.tables import jobs
from gistmill.db.training import Point, read_points
from gistmill.errors import InvalidInput, UnknownJob
from gistmill.views import MetricView

PAGE = 1_000
BEFORE_ALL = (-1, "")


def read_metrics(
    database: Database, tenant_key: int, job_id: str, *, after: str | None = None, limit: int = PAGE
) -> list[MetricView]:
    """Return at most `limit` points behind the cursor, by step.

    Raises:
        InvalidInput: the cursor cannot be read.
        UnknownJob: this tenant has no job of this id.
    """
    position = BEFORE_ALL if after is None else _parse(after)
    with database.read() as connection:
        key = connection.scalar(select(jobs.c.key).where(jobs.c.tenant_key == tenant_key, jobs.c.id == job_id))
        if key is None:
            raise UnknownJob(f"There is no job '{job_id}'. List them with: gistmill jobs list")
        return [view_of_point(point) for point in read_points(connection, key, after=position, limit=limit)]


def iterate_metrics(database: Database, tenant_key: int, job_id: str) -> Iterator[MetricView]:
    """Yield every point that is there, by step.

    Raises:
        UnknownJob: this tenant has no job of this id.
    """
    after: str | None = None
    while page := read_metrics(database, tenant_key, job_id, after=after):
        yield from page
        after = page[-1].cursor


def view_of_point(point: Point) -> MetricView:
    """Return what users read of a point."""
    return MetricView(cursor=f"m:{point.step}:{point.kind}", **point._asdict())


def _parse(cursor: str) -> tuple[int, str]:
    kind, _, rest = cursor.partition(":")
    step, _, of = rest.partition(":")
    if kind == "m" and step.isascii() and step.isdigit() and len(step) < 19 and of in ("train", "eval"):
        return int(step), of
    raise InvalidInput(f"'{cursor[:40]}' is not a cursor. Give back the `cursor` of a line that you have read.")

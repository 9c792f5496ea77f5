"""Rows first, then the bell."""

from __future__ import annotations

from sqlalchemy import func, insert, select

from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs, models
from gistmill.specs import SummarizeSpec
from gistmill.submit import submit_job
from tests.support.jobs import first_tenant, make_dataset


def test_bell_finds_the_job_committed_with_its_chunks(sqlite_only: Database) -> None:
    make_dataset(sqlite_only, ["one", "two"])
    tenant = first_tenant(sqlite_only)
    model = {"name": "tiny", "version": 1, "digest": "b" * 64, "manifest": {}, "weight_bytes": 1, "source": "test"}
    sqlite_only.transact(
        lambda connection: connection.execute(insert(models).values(tenant_key=tenant, created_at=0.0, **model))
    )
    heard: list[list[int | None]] = []

    def ring(_kind: str) -> None:
        with sqlite_only.read() as connection:
            found = [connection.scalar(select(func.count()).select_from(table)) for table in (jobs, chunks)]
        heard.append(found)

    submit_job(sqlite_only, tenant, SummarizeSpec(dataset="test", model="tiny"), ring=ring)
    assert heard == [[1, 1]]

"""How much PostgreSQL reads for a page, when its statistics know only an older, larger job. Counted in rows, not seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, select, update

from gistmill.db.pending import chunk_with_job, load_pending
from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs, metadata, results
from gistmill.readback.items import read_errors, read_results
from tests.support.bench import Bench, work_until_completed
from tests.support.jobs import make_job

OLD_ROWS = 4_000
NEW_ROWS = 600
# At most four tables, joined and sorted.
LOOKS_PER_ROW = 16


@pytest.fixture
def new_job(bench: Bench) -> int:
    """A completed job that the statistics of PostgreSQL know nothing of: they are of a larger one before it."""
    if bench.database.is_sqlite:
        pytest.skip("SQLite plans without such statistics")
    work_until_completed(bench, make_job(bench.database, [f"old {number}" for number in range(OLD_ROWS)]))
    with bench.database.write() as connection:
        for table in metadata.tables:
            connection.exec_driver_sql(f"ANALYZE {table}")
    job = make_job(bench.database, [f"new {number}" for number in range(NEW_ROWS)])
    work_until_completed(bench, job)
    return job


def rows_read(database: Database, read: Callable[[], Any]) -> float:
    """Return how many rows the database looks at for the SELECTs of `read`, by its own count."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        seen.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    read()
    event.remove(database.engine, "before_cursor_execute", note)
    touched = 0.0
    with database.read() as connection:
        for statement, parameters in seen:
            if statement.startswith("SELECT"):
                explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
                touched += _rows_of(explained.scalar_one()[0]["Plan"])
            else:
                connection.exec_driver_sql(statement, parameters)
    return touched


def _rows_of(node: dict[str, Any]) -> float:
    """Return how many rows the nodes of a plan looked at, those that they then left out included."""
    removed = sum(node.get(f"Rows Removed by {what}", 0) for what in ("Filter", "Join Filter", "Index Recheck"))
    return (node["Actual Rows"] + removed) * node["Actual Loops"] + sum(_rows_of(part) for part in node.get("Plans", ()))


def test_page_of_a_chunk_looks_each_item_up_by_its_key(bench: Bench, new_job: int) -> None:
    with bench.database.read() as connection:
        key = connection.scalar(select(chunks.c.key).where(chunks.c.job_key == new_job))
        chunk = chunk_with_job(connection, key)

    def read() -> None:
        with bench.database.read() as connection:
            assert load_pending(connection, chunk, limit=NEW_ROWS, is_sampling=False) == []

    assert rows_read(bench.database, read) < NEW_ROWS * LOOKS_PER_ROW


@pytest.mark.parametrize("order", ["input", "arrival"])
def test_page_of_results_looks_each_row_up_by_its_key(bench: Bench, new_job: int, order: Any) -> None:
    def read() -> None:
        assert len(read_results(bench.database, *_names(bench, new_job), limit=NEW_ROWS, order=order)) == NEW_ROWS

    assert rows_read(bench.database, read) < NEW_ROWS * LOOKS_PER_ROW


def test_page_of_errors_looks_each_row_up_by_its_key(bench: Bench, new_job: int) -> None:
    with bench.database.write() as connection:
        connection.execute(
            update(results)
            .where(results.c.job_key == new_job)
            .values(generation_key=None, error_code="generation_failed", error_message="")
        )

    def read() -> None:
        assert len(read_errors(bench.database, *_names(bench, new_job), limit=NEW_ROWS)) == NEW_ROWS

    assert rows_read(bench.database, read) < NEW_ROWS * LOOKS_PER_ROW


def _names(bench: Bench, job: int) -> tuple[int, str]:
    with bench.database.read() as connection:
        row = connection.execute(select(jobs.c.tenant_key, jobs.c.id).where(jobs.c.key == job)).one()
    return row.tenant_key, row.id

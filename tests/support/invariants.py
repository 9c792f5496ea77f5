"""What must hold after every fault: checked from SQL alone."""

from __future__ import annotations

from sqlalchemy import and_, func, select

from gistmill.db.check import check
from gistmill.db.session import Database
from gistmill.db.tables import chunks, generations, jobs, results
from tests.support.jobs import job_row
from tests.support.ledger import Ledger, assert_agrees
from tests.support.servers import wait_until


def wait_for_end(database: Database, job: int, *, timeout_s: float = 30.0) -> None:
    """Wait until the job has ended."""
    ended = ("completed", "failed", "cancelled")
    wait_until(lambda: job_row(database, job)["state"] in ended, timeout_s=timeout_s, what=f"the end of job {job}")


def assert_complete(database: Database, job: int) -> None:
    """Every item succeeded exactly once, counts equal rows, epochs never fell, and no chunk is left open."""
    row = job_row(database, job)
    assert row["state"] == "completed"
    assert row["succeeded"] == row["items"]
    assert (row["failed"], row["not_run"], row["chunks_left"]) == (0, 0, 0)
    with database.read() as connection:
        stored = connection.execute(select(func.count()).where(results.c.job_key == job)).scalar_one()
        assert stored == row["items"]
        open_chunks = select(func.count()).where(chunks.c.job_key == job, chunks.c.state != "done")
        assert connection.execute(open_chunks).scalar_one() == 0
        later = select(func.count()).join_from(results, chunks, chunks.c.key == results.c.chunk_key).where(
            results.c.job_key == job, results.c.epoch > chunks.c.epoch
        )  # fmt: skip
        assert connection.execute(later).scalar_one() == 0
        doubled = (
            select(func.count())
            .select_from(generations)
            .group_by(generations.c.recipe_key, generations.c.dialogue_key, generations.c.draw)
            .having(func.count() > 1)
        )
        assert connection.execute(doubled).all() == []
        assert connection.execute(select(func.min(jobs.c.chunks_left))).scalar_one() >= 0
    assert_ends_are_counted(database)
    assert check(database) == []


def assert_ends_are_counted(database: Database) -> None:
    """Each chunk counts as many ends as there are results that name it and its epoch."""
    mine = and_(results.c.chunk_key == chunks.c.key, results.c.epoch == chunks.c.epoch)
    written = select(func.count()).select_from(results).where(mine).correlate(chunks).scalar_subquery()
    with database.read() as connection:
        wrong = connection.execute(select(chunks.c.key, chunks.c.ended, written).where(chunks.c.ended != written)).all()
    assert wrong == []


def assert_all_ended(database: Database, job: int, ledger: Ledger) -> None:
    """The job is complete, and the ledger that its workers kept tells the same."""
    assert_complete(database, job)
    assert_agrees(ledger, database)

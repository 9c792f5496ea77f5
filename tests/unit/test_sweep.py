"""What one sweep picks up, and what it leaves to a process that has been in contact for longer."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
from sqlalchemy import update

from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs
from gistmill.errors import StoreUnavailable
from gistmill.queue import Bells
from gistmill.settings import WorkerSettings
from gistmill.sweep import Sweeper
from tests.support.jobs import chunk_rows_of, expire_leases, job_row, make_job, make_worker, take

TEXTS = [f"dialogue number {number}" for number in range(6)]


class Chimes(Bells):
    """Bells that hang nowhere: they note who was rung for."""

    def __init__(self) -> None:
        self.rung: list[tuple[str, int]] = []

    def ring(self, kind: str, *, listeners: int = 1) -> bool:
        """Note the ring."""
        self.rung.append((kind, listeners))
        return True


@pytest.fixture
def bells() -> Chimes:
    return Chimes()


@pytest.fixture
def sweeper(sqlite_only: Database, bells: Chimes) -> Sweeper:
    return Sweeper(sqlite_only, bells, WorkerSettings(lease_s=60))


def set_state(database: Database, state: str) -> None:
    database.transact(lambda connection: connection.execute(update(jobs).values(state=state)))


def test_bell_that_was_lost_is_rung_again(sqlite_only: Database, sweeper: Sweeper, bells: Chimes) -> None:
    make_job(sqlite_only, TEXTS)
    sweeper.sweep()
    assert bells.rung == []
    make_worker(sqlite_only, "idle")
    sweeper.sweep()
    assert bells.rung == [("summarize", 1)]


def test_cancel_that_was_cut_off_is_carried_out(sqlite_only: Database, sweeper: Sweeper) -> None:
    job = make_job(sqlite_only, TEXTS, per_chunk=2)
    set_state(sqlite_only, "cancelling")
    sweeper.sweep()
    row = job_row(sqlite_only, job)
    assert (row["state"], row["not_run"], row["chunks_left"]) == ("cancelled", 6, 0)
    assert {chunk["state"] for chunk in chunk_rows_of(sqlite_only, job)} == {"done"}


def test_job_that_has_no_chunk_left_is_ended(sqlite_only: Database, sweeper: Sweeper) -> None:
    job = make_job(sqlite_only, TEXTS, state="cancelling", chunks_left=0)
    sqlite_only.transact(lambda connection: connection.execute(update(chunks).values(state="done")))
    sweeper.sweep()
    assert job_row(sqlite_only, job)["state"] == "cancelled"


def test_process_that_has_just_started_takes_nothing_away(sqlite_only: Database, sweeper: Sweeper) -> None:
    job = make_job(sqlite_only, TEXTS)
    take(sqlite_only, make_worker(sqlite_only, "gone"))
    expire_leases(sqlite_only)
    sweeper.sweep()
    assert chunk_rows_of(sqlite_only, job)[0]["owner"] == "gone"
    sweeper.contact.answered()
    assert sweeper.contact.since is not None
    sweeper.contact.since -= 61
    sweeper.sweep()
    assert chunk_rows_of(sqlite_only, job)[0]["owner"] is None


def test_sweep_without_an_answer_ends_the_contact(
    sqlite_only: Database, sweeper: Sweeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> AbstractContextManager[None]:
        raise StoreUnavailable("away")

    sweeper.sweep_if_due()
    assert sweeper.contact.since is not None
    sweeper._next = 0.0
    monkeypatch.setattr(sqlite_only, "read", read)
    sweeper.sweep_if_due()
    assert sweeper.contact.since is None

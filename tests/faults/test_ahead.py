"""Workers hurt while they hold a chunk that they have claimed ahead: the running chunk may pay for it, that one never does."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from gistmill import control
from gistmill.db.session import Database
from tests.support.faults import Blow, hang_at, kill_at, lose_reply_at, stop_at
from tests.support.fleet import Fleet
from tests.support.invariants import assert_all_ended, wait_for_end
from tests.support.jobs import chunk_rows_of, first_tenant, has_reserved_chunk, job_row, make_job
from tests.support.servers import wait_until

# Two micro-batches of the fake engine to a chunk: behind the first one the next chunk is claimed, for which the second waits.
PER_CHUNK = 12
SECONDS_PER_ROW = 0.02
FIRST_CHUNK_LASTS = hang_at("generate.begun", 3.0, nth=2)
# For a worker that is not to lose its lease, however slow the machine.
LONG_LEASE_S = "10"
TEXTS = [f"dialogue number {number:02} about something" for number in range(4 * PER_CHUNK)]


def chunks_of(database: Database, job: int) -> list[tuple[Any, ...]]:
    names = ("state", "epoch", "failures", "crashes")
    return [tuple(chunk[name] for name in names) for chunk in chunk_rows_of(database, job)]


def assert_unharmed(database: Database, job: int) -> None:
    """The second chunk was claimed twice and neither split nor charged, whatever became of the first."""
    second = chunk_rows_of(database, job)[1]
    assert (second["first_rank"], second["last_rank"]) == (PER_CHUNK, 2 * PER_CHUNK - 1)
    assert chunks_of(database, job)[1:4] == [("done", epoch, 0, 0) for epoch in (2, 1, 1)]


def start_one_with_a_reserved_chunk(database: Database, fleet: Fleet) -> int:
    job = make_job(database, TEXTS, per_chunk=PER_CHUNK)
    fleet.start(seconds_per_row=SECONDS_PER_ROW, drill=[FIRST_CHUNK_LASTS], GISTMILL_WORKER__LEASE_S=LONG_LEASE_S)
    wait_until(lambda: has_reserved_chunk(database, job), timeout_s=20, what="a reserved chunk")
    return job


def test_worker_killed_with_a_reserved_chunk_costs_that_one_nothing(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS, per_chunk=PER_CHUNK)
    victim = fleet.start(seconds_per_row=SECONDS_PER_ROW, drill=[FIRST_CHUNK_LASTS, kill_at("ahead.committed")])
    assert victim.wait(20) == -signal.SIGKILL
    assert chunks_of(database, job)[1] == ("reserved", 1, 0, 0)
    fleet.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)
    assert_unharmed(database, job)


def test_worker_killed_as_its_reserved_chunk_begins_loses_and_doubles_nothing(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS, per_chunk=PER_CHUNK)
    victim = fleet.start(seconds_per_row=SECONDS_PER_ROW, drill=[FIRST_CHUNK_LASTS, kill_at("claim.committed", nth=2)])
    assert victim.wait(20) == -signal.SIGKILL
    assert "ahead.committed" in [entry.event for entry in fleet.ledger.read()]
    assert chunks_of(database, job)[1][0] == "running"
    fleet.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


def test_zombie_that_wakes_with_a_reserved_chunk_writes_nothing(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS, per_chunk=PER_CHUNK)
    zombie = fleet.start(seconds_per_row=SECONDS_PER_ROW, drill=[FIRST_CHUNK_LASTS, stop_at("ahead.committed")])
    wait_until(lambda: fleet.ledger.blows()["stop"] == 1, timeout_s=20, what="the blow")
    fleet.start()
    wait_for_end(database, job)
    ended = chunks_of(database, job)
    zombie.send(signal.SIGCONT)
    wait_until(lambda: "lease_lost" in zombie.log.read_text(), timeout_s=15, what="the zombie noticing")
    assert_all_ended(database, job, fleet.ledger)
    assert chunks_of(database, job) == ended
    assert_unharmed(database, job)
    assert {chunk["owner"] for chunk in chunk_rows_of(database, job)} == {None}


@pytest.mark.parametrize(
    ("blow", "epochs"),
    [(lose_reply_at("ahead.committed"), (1, 2, 1, 1)), (lose_reply_at("claim.committed", nth=2), (1, 2, 1, 1))],
    ids=["reserved", "begun"],
)
def test_reply_lost_to_a_reservation_or_its_begin_costs_nothing(
    database: Database, fleet: Fleet, blow: Blow, epochs: tuple[int, ...]
) -> None:
    fleet.start(seconds_per_row=SECONDS_PER_ROW, drill=[FIRST_CHUNK_LASTS, blow], GISTMILL_WORKER__LEASE_S=LONG_LEASE_S)
    job = make_job(database, TEXTS, per_chunk=PER_CHUNK)
    wait_for_end(database, job)
    assert fleet.ledger.blows() == {"hang": 1, "lose_reply": 1}
    assert_all_ended(database, job, fleet.ledger)
    assert chunks_of(database, job) == [("done", epoch, 0, 0) for epoch in epochs]


def test_worker_that_is_told_to_end_gives_its_reserved_chunk_back(database: Database, fleet: Fleet) -> None:
    job = start_one_with_a_reserved_chunk(database, fleet)
    fleet.workers[0].send(signal.SIGTERM)
    assert fleet.workers[0].wait(10) == 0
    assert chunks_of(database, job) == [("queued", epoch, 0, 0) for epoch in (1, 1, 0, 0)]
    fleet.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


def test_cancel_and_retry_beside_a_reserved_chunk_keep_the_counts(database: Database, fleet: Fleet) -> None:
    job = start_one_with_a_reserved_chunk(database, fleet)
    job_id, tenant = job_row(database, job)["id"], first_tenant(database)
    control.cancel(database, tenant, job_id)
    assert chunks_of(database, job)[1:] == [("done", epoch, 0, 0) for epoch in (1, 0, 0)]
    wait_until(lambda: job_row(database, job)["state"] == "cancelled", timeout_s=10, what="the end of the cancelled job")
    control.retry(database, tenant, job_id)
    wait_for_end(database, job, timeout_s=60)
    assert_all_ended(database, job, fleet.ledger)

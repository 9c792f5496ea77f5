"""Real workers on both databases, hurt in the middle of a job. Nothing may be lost and nothing doubled."""

from __future__ import annotations

import signal
import time

import pytest

from gistmill.control import cancel
from gistmill.db.session import Database
from gistmill.queue import Bells
from tests.support.fleet import LEASE_S, Fleet, WorkerProcess
from tests.support.invariants import assert_complete, wait_for_end
from tests.support.jobs import chunk_rows_of, first_tenant, job_row, make_job
from tests.support.servers import RedisServer, wait_until

pytestmark = pytest.mark.usefixtures("forked_workers")

TEXTS = [f"dialogue number {number} about something" for number in range(60)]


def wait_until_running(database: Database, job: int, *, succeeded: int = 4) -> None:
    wait_until(lambda: job_row(database, job)["succeeded"] >= succeeded, timeout_s=20, what="some results")


def owner_of_a_chunk(database: Database, fleet: Fleet, job: int) -> WorkerProcess:
    owners: list[str] = []

    def is_owned() -> bool:
        owners[:] = [chunk["owner"] for chunk in chunk_rows_of(database, job) if chunk["state"] == "running"]
        return bool(owners)

    wait_until(is_owned, timeout_s=20, what="a running chunk")
    return next(worker for worker in fleet.workers if worker.uuid == owners[0])


@pytest.fixture
def programs(forked_workers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here each worker is a program of its own, as the launcher starts it; elsewhere it is a fork."""
    monkeypatch.setattr(Fleet, "nursery", None)


@pytest.fixture
def slow_pair(fleet: Fleet) -> Fleet:
    """Two workers that take 100 ms per dialogue."""
    fleet.start(seconds_per_row=0.1)
    fleet.start(seconds_per_row=0.1)
    return fleet


def test_two_workers_finish_a_job_and_one_bell_wakes_both(database: Database, programs: None, slow_pair: Fleet) -> None:
    wait_until(lambda: all("worker_started" in worker.log.read_text() for worker in slow_pair.workers), timeout_s=20)
    job = make_job(database, TEXTS, per_chunk=10)
    Bells(slow_pair.redis_url, "gistmill:").ring("summarize")
    wait_for_end(database, job)
    assert_complete(database, job)
    with database.read() as connection:
        devices = connection.exec_driver_sql("SELECT count(DISTINCT chunk_key) FROM results").scalar_one()
    assert devices == 6
    assert all("chunk_started" in worker.log.read_text() for worker in slow_pair.workers)


def test_killed_workers_chunk_is_queued_again_and_finished_by_the_other(database: Database, slow_pair: Fleet) -> None:
    job = make_job(database, TEXTS, per_chunk=30)
    wait_until_running(database, job)
    victim = owner_of_a_chunk(database, slow_pair, job)
    victim.send(signal.SIGKILL)
    victim.wait()
    killed_at = time.monotonic()
    wait_until(
        lambda: victim.uuid not in {chunk["owner"] for chunk in chunk_rows_of(database, job)},
        timeout_s=LEASE_S + 5,
        what="the chunk being queued again",
    )
    assert time.monotonic() - killed_at < LEASE_S + 5
    wait_for_end(database, job)
    assert_complete(database, job)


@pytest.mark.alone
def test_terminated_worker_drains_in_two_seconds_and_costs_no_retry(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS, per_chunk=60)

    def seconds_until_drained() -> float:
        victim = fleet.start(seconds_per_row=0.2)
        wait_until_running(database, job, succeeded=job_row(database, job)["succeeded"] + 4)
        asked_at = time.monotonic()
        victim.send(signal.SIGTERM)
        assert victim.wait() == 0
        seconds = time.monotonic() - asked_at
        assert [(chunk["state"], chunk["owner"]) for chunk in chunk_rows_of(database, job)] == [("queued", None)]
        return seconds

    # The machine may stand still for two seconds itself, but hardly three times. The chunk would last for seven or more.
    assert min(seconds_until_drained() for _ in range(3)) < 2.0
    fleet.start()
    wait_for_end(database, job)
    assert_complete(database, job)
    assert {(chunk["failures"], chunk["crashes"]) for chunk in chunk_rows_of(database, job)} == {(0, 0)}


def test_zombie_that_wakes_after_its_lease_writes_nothing(database: Database, slow_pair: Fleet) -> None:
    job = make_job(database, TEXTS, per_chunk=60)
    wait_until_running(database, job)
    zombie = owner_of_a_chunk(database, slow_pair, job)
    # Not while its heart writes: on SQLite nobody else could write until it goes on.
    with database.write():
        zombie.send(signal.SIGSTOP)
    wait_until(lambda: chunk_rows_of(database, job)[0]["epoch"] == 2, timeout_s=LEASE_S + 10, what="another worker's claim")
    zombie.send(signal.SIGCONT)
    wait_for_end(database, job)
    assert_complete(database, job)
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT row_number, epoch FROM results ORDER BY arrival").all()
    epochs = [row.epoch for row in rows]
    assert epochs == sorted(epochs)
    wait_until(lambda: "lease_lost" in zombie.log.read_text(), timeout_s=10, what="the zombie noticing")


def test_worker_that_is_stopped_for_less_than_its_lease_keeps_its_chunk(database: Database, fleet: Fleet) -> None:
    for _ in range(2):
        # The machine may stand still too, for a second or more, and together they must not outlast the lease.
        fleet.start(seconds_per_row=0.05, GISTMILL_WORKER__LEASE_S="6")
    job = make_job(database, TEXTS, per_chunk=60)
    wait_until_running(database, job)
    stopped = owner_of_a_chunk(database, fleet, job)
    stopped.send(signal.SIGSTOP)
    time.sleep(1.5)  # The fault itself is a time: a quarter of the lease.
    stopped.send(signal.SIGCONT)
    wait_for_end(database, job)
    assert_complete(database, job)
    assert chunk_rows_of(database, job)[0]["epoch"] == 1


def test_flushed_redis_loses_nothing(database: Database, slow_pair: Fleet, redis_server: RedisServer) -> None:
    job = make_job(database, TEXTS, per_chunk=10)
    wait_until_running(database, job)
    redis_server.flush()
    wait_for_end(database, job)
    assert_complete(database, job)
    later = make_job(database, ["one more"], per_chunk=10)
    wait_for_end(database, later)


def test_bells_that_come_ten_times_do_no_harm(database: Database, slow_pair: Fleet) -> None:
    job = make_job(database, TEXTS, per_chunk=10)
    bells = Bells(slow_pair.redis_url, "gistmill:")
    for _ in range(10):
        bells.ring("summarize", listeners=100)
    wait_for_end(database, job)
    assert_complete(database, job)


def test_cancel_stops_a_running_generation_within_five_seconds(database: Database, slow_pair: Fleet) -> None:
    job = make_job(database, TEXTS * 20, per_chunk=1000)
    wait_until_running(database, job)
    cancel(database, first_tenant(database), job_row(database, job)["id"])
    wait_until(lambda: job_row(database, job)["state"] == "cancelled", timeout_s=5, what="the job being cancelled")
    row = job_row(database, job)
    assert row["succeeded"] + row["failed"] + row["not_run"] == row["items"]
    assert row["not_run"] > 0


def test_job_waits_for_workers_that_come_later(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS[:5])
    fleet.start()
    wait_for_end(database, job)
    assert_complete(database, job)


def test_poisoned_dialogue_fails_alone(database: Database, fleet: Fleet) -> None:
    job = make_job(database, [*TEXTS[:5], "a [[poison]] dialogue"])
    fleet.start()
    wait_for_end(database, job)
    row = job_row(database, job)
    assert (row["state"], row["succeeded"], row["failed"]) == ("completed", 5, 1)

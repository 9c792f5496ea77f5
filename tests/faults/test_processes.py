"""Worker processes that are killed, stopped and hung, at every step of a chunk."""

from __future__ import annotations

import signal

import pytest

from gistmill.db.session import Database
from gistmill.queue import Bells
from tests.support.faults import (
    KILLING_POINTS,
    die_at,
    hang_at,
    kill_at,
    kill_on_dialogue,
    segfault_at,
    stop_at,
    stop_for,
)
from tests.support.fleet import Fleet, WorkerProcess
from tests.support.invariants import assert_all_ended, wait_for_end
from tests.support.jobs import chunk_rows_of, job_row, make_job
from tests.support.ledger import assert_agrees
from tests.support.servers import wait_until

TEXTS = [f"dialogue number {number:02} about something" for number in range(24)]


def dies(worker: WorkerProcess, *, within_s: float = 20.0) -> int:
    return worker.wait(within_s)


@pytest.mark.parametrize(("point", "nth"), KILLING_POINTS)
def test_worker_killed_at_any_point_loses_and_doubles_nothing(database: Database, fleet: Fleet, point: str, nth: int) -> None:
    job = make_job(database, TEXTS, per_chunk=16)
    victim = fleet.start(drill=[kill_at(point, nth=nth)])
    assert dies(victim) == -signal.SIGKILL
    assert fleet.ledger.blows() == {"kill": 1}
    fleet.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


@pytest.mark.parametrize("moment", ["begun", "committed"])
def test_worker_killed_while_it_releases_loses_nothing(database: Database, fleet: Fleet, moment: str) -> None:
    job = make_job(database, TEXTS, per_chunk=24)
    victim = fleet.start(seconds_per_row=0.1, drill=[kill_at(f"ending.{moment}", ending="release")])
    wait_until(lambda: job_row(database, job)["state"] == "running", timeout_s=20)
    victim.send(signal.SIGTERM)
    assert dies(victim) == -signal.SIGKILL
    fleet.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


def test_segfault_is_a_death_like_any_other(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS)
    assert dies(fleet.start(drill=[segfault_at("generate.begun", nth=2)])) == -signal.SIGSEGV
    fleet.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


@pytest.mark.parametrize("point", ["record.begun", "ending.begun", "claim.committed"])
def test_zombie_stopped_just_before_it_writes_writes_nothing_when_it_wakes(
    database: Database, fleet: Fleet, point: str
) -> None:
    job = make_job(database, TEXTS)
    zombie = fleet.start(drill=[stop_at(point)])
    wait_until(lambda: bool(fleet.ledger.blows()), timeout_s=20, what="the blow")
    fleet.start()
    wait_for_end(database, job)
    zombie.send(signal.SIGCONT)
    wait_until(lambda: "lease_lost" in zombie.log.read_text(), timeout_s=15, what="the zombie noticing")
    assert_all_ended(database, job, fleet.ledger)
    assert {chunk["owner"] for chunk in chunk_rows_of(database, job)} == {None}


def test_hanging_kernel_loses_its_lease_and_its_process_ends(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS)
    hung = fleet.start(drill=[hang_at("generate.begun", 60)], GISTMILL_WORKER__GENERATE_STALL_S="1")
    wait_until(lambda: bool(fleet.ledger.blows()), timeout_s=20, what="the blow")
    fleet.start()
    assert dies(hung, within_s=25) == 70
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


def test_worker_whose_heart_dies_ends_and_another_goes_on(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS)
    assert dies(fleet.start(seconds_per_row=0.2, drill=[die_at("heart.beat", nth=8)])) == 70
    fleet.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGTERM,),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGQUIT,),
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGHUP,),
    ],
    ids=lambda signals: "-".join(number.name for number in signals),
)
@pytest.mark.parametrize("is_busy", [True, False], ids=["busy", "idle"])
def test_signals_lose_nothing(database: Database, fleet: Fleet, signals: tuple[signal.Signals, ...], *, is_busy: bool) -> None:
    victim = fleet.start(seconds_per_row=0.03)
    job = make_job(database, TEXTS) if is_busy else 0
    wait_until(lambda: "worker_started" in victim.log.read_text(), timeout_s=20)
    if is_busy:
        wait_until(lambda: job_row(database, job)["succeeded"] > 0, timeout_s=20)
    for number in signals:
        if victim.is_alive:
            victim.send(number)
    job = job or make_job(database, TEXTS)
    fleet.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


def test_fleet_that_is_killed_whole_is_followed_by_another(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS * 2, per_chunk=4)
    for _ in range(3):
        fleet.start(seconds_per_row=0.05)
    wait_until(lambda: job_row(database, job)["succeeded"] >= 6, timeout_s=20)
    for worker in fleet.workers:
        worker.send(signal.SIGKILL)
    for worker in fleet.workers:
        worker.wait()
    fleet.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


def test_restart_storm_delays_but_loses_nothing(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS, per_chunk=8)
    fleet.start(seconds_per_row=0.1)
    for _ in range(5):
        dies(fleet.start(drill=[kill_at("heart.beat", nth=2)]))
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


def test_clock_that_is_ten_minutes_off_changes_nothing(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS, per_chunk=6)
    for skew_s in ("600", "-600"):
        fleet.start(seconds_per_row=0.05, GISTMILL_TEST_SKEW_S=skew_s, GISTMILL_WORKER__LEASE_S="10")
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)
    assert {chunk["epoch"] for chunk in chunk_rows_of(database, job)} == {1}


def test_worker_that_stands_still_for_less_than_its_lease_keeps_its_chunk(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS)
    for _ in range(2):
        fleet.start(seconds_per_row=0.1, GISTMILL_WORKER__LEASE_S="6")
    wait_until(lambda: job_row(database, job)["succeeded"] > 0, timeout_s=20)
    owner = chunk_rows_of(database, job)[0]["owner"]
    stop_for(next(worker for worker in fleet.workers if worker.uuid == owner), 1.5)
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)
    assert chunk_rows_of(database, job)[0]["epoch"] == 1


def test_poison_that_kills_every_worker_fails_alone(database: Database, fleet: Fleet) -> None:
    poison = "dialogue number 99 [[deadly]] something"
    job = make_job(database, [*TEXTS, poison], per_chunk=25)
    bells = Bells(fleet.redis_url, "gistmill:")
    deaths = 0
    while job_row(database, job)["state"] not in ("completed", "failed"):
        alive = [worker for worker in fleet.workers if worker.is_alive]
        deaths = len(fleet.workers) - len(alive)
        if len(alive) < 2:
            fleet.start(drill=[kill_on_dialogue("[[deadly]]")])
            bells.ring("summarize")
        assert deaths < 15
        wait_until(lambda: sum(w.is_alive for w in fleet.workers) < 2 or job_row(database, job)["finished_at"], timeout_s=30)
    row = job_row(database, job)
    assert (row["state"], row["succeeded"], row["failed"]) == ("completed", 24, 1)
    with database.read() as connection:
        codes = connection.exec_driver_sql("SELECT error_code FROM results WHERE error_code IS NOT NULL").scalars().all()
    assert codes == ["worker_crashed"]
    assert_agrees(fleet.ledger, database)

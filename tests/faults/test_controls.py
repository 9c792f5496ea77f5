"""Users who change their minds while workers run, die and are swept up after; and jobs that get in each other's way."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from gistmill import control
from gistmill.db.check import check
from gistmill.db.session import Database
from gistmill.errors import Conflict
from gistmill.states import FINAL_JOB_STATES
from tests.support.faults import kill_at, kill_on_dialogue
from tests.support.fleet import Fleet
from tests.support.invariants import assert_all_ended, wait_for_end
from tests.support.jobs import first_tenant, job_row, make_job
from tests.support.ledger import assert_agrees
from tests.support.servers import wait_until

TEXTS = [f"dialogue number {number:02} about something" for number in range(40)]
MANY = [f"dialogue number {number:03} about something" for number in range(120)]
STEER = (control.cancel, control.pause, control.resume, control.retry)
STEERING_S = 8.0


def id_of(database: Database, job: int) -> str:
    return str(job_row(database, job)["id"])


def is_over(database: Database, job: int) -> bool:
    row = job_row(database, job)
    return row["state"] in FINAL_JOB_STATES and row["chunks_left"] == 0


def finish_whatever_was_wished(database: Database, job: int) -> None:
    """Resume and retry until the job is complete."""
    tenant, job_id = first_tenant(database), id_of(database, job)
    for _ in range(5):
        with suppress(Conflict):
            control.resume(database, tenant, job_id)
        wait_until(lambda: is_over(database, job), timeout_s=45, what="the end of the job")
        if job_row(database, job)["succeeded"] == job_row(database, job)["items"]:
            return
        control.retry(database, tenant, job_id)


def steer_at_random(database: Database, jobs: list[int], seed: int) -> None:
    draw = random.Random(seed)
    tenant = first_tenant(database)
    until = time.monotonic() + STEERING_S
    while time.monotonic() < until:
        with suppress(Conflict):
            draw.choice(STEER)(database, tenant, id_of(database, draw.choice(jobs)))
        time.sleep(draw.uniform(0, 0.2))  # The rhythm of impatient users.


def test_three_users_who_steer_at_random_while_workers_die_break_no_count(database: Database, fleet: Fleet) -> None:
    jobs = [make_job(database, [f"{number} {text}" for text in TEXTS], per_chunk=5) for number in range(3)]
    fleet.start(seconds_per_row=0.02)
    fleet.start(seconds_per_row=0.02)
    fleet.start(seconds_per_row=0.02, drill=[kill_at("record.begun", nth=4)])
    fleet.start(seconds_per_row=0.02, drill=[kill_at("ending.begun", nth=2)])
    users = [threading.Thread(target=steer_at_random, args=(database, jobs, seed)) for seed in range(3)]
    for user in users:
        user.start()
    while any(user.is_alive() for user in users):
        assert check(database) == []
    for user in users:
        user.join()
    for job in jobs:
        finish_whatever_was_wished(database, job)
        # A cancel that came with the last item leaves a cancelled job that misses nothing.
        row = job_row(database, job)
        assert (row["state"] in ("completed", "cancelled"), row["succeeded"], row["failed"], row["not_run"]) == (True, 40, 0, 0)
    assert check(database) == []
    assert_agrees(fleet.ledger, database)


@pytest.mark.parametrize("act", [control.cancel, control.pause], ids=["cancel", "pause"])
def test_wish_reaches_every_worker_of_a_job_within_five_seconds(
    database: Database, fleet: Fleet, act: Callable[[Database, int, str], None]
) -> None:
    for _ in range(3):
        fleet.start(seconds_per_row=0.1)
    job = make_job(database, MANY, per_chunk=10)
    wait_until(lambda: job_row(database, job)["succeeded"] > 0, timeout_s=20)
    act(database, first_tenant(database), id_of(database, job))

    def nobody_runs() -> bool:
        with database.read() as connection:
            running = "SELECT count(*) FROM chunks WHERE state = 'running'"
            return bool(connection.exec_driver_sql(running).scalar_one() == 0)

    wait_until(nobody_runs, timeout_s=5, what="workers to stop")
    finish_whatever_was_wished(database, job)
    assert_agrees(fleet.ledger, database)


def test_cancel_of_a_job_whose_worker_was_killed_ends_it(database: Database, fleet: Fleet) -> None:
    job = make_job(database, TEXTS, per_chunk=20)
    victim = fleet.start(seconds_per_row=0.2)
    wait_until(lambda: job_row(database, job)["succeeded"] > 0, timeout_s=20)
    victim.send(signal.SIGKILL)
    victim.wait()
    control.cancel(database, first_tenant(database), id_of(database, job))
    assert job_row(database, job)["state"] == "cancelling"
    fleet.start()
    wait_for_end(database, job)
    row = job_row(database, job)
    assert (row["state"], row["succeeded"] + row["not_run"], row["chunks_left"]) == ("cancelled", 40, 0)
    assert check(database) == []


def test_small_job_of_another_tenant_does_not_wait_for_a_large_one(database: Database, fleet: Fleet) -> None:
    with database.write() as connection:
        insert = "INSERT INTO tenants (name) VALUES ('small') RETURNING key"
        tenant = int(connection.exec_driver_sql(insert).scalar_one())
    fleet.start(seconds_per_row=0.05)
    large = make_job(database, MANY, per_chunk=8)
    wait_until(lambda: job_row(database, large)["succeeded"] > 0, timeout_s=20)
    small = make_job(database, [f"small {text}" for text in TEXTS[:8]], tenant_key=tenant)
    wait_for_end(database, small)
    ended_at, left = job_row(database, small)["finished_at"], job_row(database, large)["chunks_left"]
    assert left >= 2
    wait_for_end(database, large)
    assert ended_at < job_row(database, large)["finished_at"]
    assert_all_ended(database, small, fleet.ledger)


def test_healthy_job_beside_a_poisoned_one_ends_whole(database: Database, fleet: Fleet) -> None:
    poisoned = make_job(database, ["dialogue 99 [[deadly]] something"])
    healthy = make_job(database, TEXTS, per_chunk=8)
    while not (is_over(database, poisoned) and is_over(database, healthy)):
        if sum(worker.is_alive for worker in fleet.workers) < 2:
            assert len(fleet.workers) < 12
            fleet.start(seconds_per_row=0.01, drill=[kill_on_dialogue("[[deadly]]")])
        wait_until(lambda: sum(w.is_alive for w in fleet.workers) < 2 or is_over(database, poisoned), timeout_s=30)
        if is_over(database, poisoned):
            wait_for_end(database, healthy)
    assert (job_row(database, poisoned)["failed"], job_row(database, healthy)["succeeded"]) == (1, 40)
    assert_all_ended(database, healthy, fleet.ledger)

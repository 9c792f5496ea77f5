"""One host at a time is cut off in the middle of a job and joined again; nothing is lost and nothing doubled."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import select

from gistmill.client import Client
from gistmill.db.session import Database, open_database
from gistmill.db.tables import jobs
from tests.hosts.conftest import STATEMENT_TIMEOUT_S, WORKERS, Fleet, Recovery
from tests.hosts.work import (
    epoch_of,
    key_of,
    results_of,
    start_both,
    submit,
    wait_until_both_started,
    wait_until_shared,
    written_under,
)
from tests.support.fleet import LEASE_S
from tests.support.hosts import Network
from tests.support.invariants import assert_complete, wait_for_end
from tests.support.jobs import chunk_rows_of, job_row
from tests.support.servers import wait_until

OUTAGE_S = LEASE_S + 2.5

pytestmark = pytest.mark.timeout(300)


def test_host_cut_off_longer_than_its_lease_writes_nothing_old_and_works_again(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path, recovery: Recovery
) -> None:
    start_both(fleet, GISTMILL_WORKER__FAKE_SECONDS_PER_ROW="0.08")
    job = submit(client, tmp_path, rows=600)
    key = wait_until_shared(fleet, database, job)
    lost = fleet.events("worker-a", "chunk_started")[-1]
    recovery.cut("worker-a")
    wait_until(lambda: epoch_of(database, lost) > int(str(lost["epoch"])), timeout_s=30, what="another owner")
    before = written_under(database, lost)
    recovery.join("worker-a")
    wait_until(lambda: fleet.chunks_of("worker-a", job.id) > 1, timeout_s=30, what="new work of the joined host")
    recovery.done()
    wait_for_end(database, key, timeout_s=80)
    assert written_under(database, lost) == before
    assert_complete(database, key)
    second = submit(client, tmp_path, rows=80, seed=2).wait(timeout_s=40)
    assert all(fleet.chunks_of(name, second.id) for name in WORKERS)
    assert_complete(database, key_of(database, second))


def test_host_that_never_doubts_its_lease_is_stopped_by_the_fence(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path, recovery: Recovery
) -> None:
    # One writes every 2 s, the other every 6.4 s. So the cut, at the first write of the other, falls between two writes of the
    # one; and the other still works on the chunk that it took over when the write that the cut held up comes through.
    fleet.start_trusting_worker("worker-a", GISTMILL_WORKER__FAKE_SECONDS_PER_ROW="0.25")
    fleet.start_worker("worker-b", GISTMILL_WORKER__FAKE_SECONDS_PER_ROW="0.8")
    wait_until_both_started(fleet)
    job = submit(client, tmp_path, rows=64)
    key = wait_until_shared(fleet, database, job)
    lost = fleet.events("worker-a", "chunk_started")[-1]
    recovery.cut("worker-a")
    wait_until(lambda: epoch_of(database, lost) > int(str(lost["epoch"])), timeout_s=30, what="another owner")
    before = written_under(database, lost)
    recovery.join("worker-a")
    wait_until(lambda: fleet.events("worker-a", "chunk_started")[-1] != lost, timeout_s=40, what="new work of the joined host")
    recovery.done()
    assert written_under(database, lost) == before
    refused = [(entry["chunk"], entry["epoch"]) for entry in fleet.events("worker-a", "lease_lost")]
    assert refused == [(lost["chunk"], lost["epoch"])]
    wait_for_end(database, key, timeout_s=60)
    assert_complete(database, key)


def test_work_goes_on_while_the_api_is_cut_off(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path, recovery: Recovery
) -> None:
    start_both(fleet, GISTMILL_WORKER__FAKE_SECONDS_PER_ROW="0.1")
    job = submit(client, tmp_path, rows=200)
    key = wait_until_shared(fleet, database, job)
    recovery.cut("api")
    wait_for_end(database, key, timeout_s=40)
    recovery.join("api")
    assert len(list(job.wait(timeout_s=40).results())) == 200
    recovery.done()
    assert_complete(database, key)


def test_work_submitted_while_redis_is_cut_off_runs_when_it_is_joined(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path, recovery: Recovery
) -> None:
    start_both(fleet, GISTMILL_WORKER__FAKE_SECONDS_PER_ROW="0.1")
    job = submit(client, tmp_path, rows=200)
    key = wait_until_shared(fleet, database, job)
    recovery.cut("redis")
    wait_for_end(database, key, timeout_s=40)
    later = submit(client, tmp_path, rows=40, seed=2)
    recovery.join("redis")
    wait_until(lambda: results_of(database, key_of(database, later)) > 0, timeout_s=45, what="the job that was submitted then")
    recovery.done()
    later.wait(timeout_s=20)
    for ended in (job, later):
        assert_complete(database, key_of(database, ended))


def test_postgres_cut_off_longer_than_the_lease_costs_no_crash(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path, recovery: Recovery
) -> None:
    start_both(fleet, GISTMILL_WORKER__FAKE_SECONDS_PER_ROW="0.1")
    job = submit(client, tmp_path, rows=200)
    key = wait_until_shared(fleet, database, job)
    planned = job_row(database, key)["chunks"]
    before = results_of(database, key)
    recovery.cut("postgres")
    time.sleep(OUTAGE_S)  # The fault itself is a time.
    recovery.join("postgres")
    wait_until(lambda: results_of(database, key) > before, timeout_s=40, what="work after the outage")
    recovery.done()
    wait_for_end(database, key, timeout_s=60)
    assert_complete(database, key)
    assert job_row(database, key)["chunks"] == planned
    assert {chunk["crashes"] for chunk in chunk_rows_of(database, key)} == {0}


def test_host_cut_off_in_a_transaction_holds_its_locks_no_longer_than_a_statement_may_take(
    network: Network, fleet: Fleet, client: Client, database: Database, tmp_path: Path, recovery: Recovery
) -> None:
    key = key_of(database, submit(client, tmp_path, rows=20))
    with network["worker-a"].inside():
        gone = open_database(fleet.database_url, statement_timeout_s=STATEMENT_TIMEOUT_S)
        holding = gone.engine.connect()
        holding.begin()
        holding.execute(select(jobs.c.key).where(jobs.c.key == key).with_for_update())
    recovery.cut("worker-a")
    began = time.monotonic()
    with database.write() as connection:
        connection.execute(select(jobs.c.key).where(jobs.c.key == key).with_for_update())
    recovery.done()
    assert time.monotonic() - began < STATEMENT_TIMEOUT_S + 5
    holding.invalidate()
    gone.close()

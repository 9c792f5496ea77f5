"""One host at a time is cut off in the middle of a job and joined again; nothing is lost and nothing doubled."""

from __future__ import annotations

import json
import time
from pathlib import Path

from sqlalchemy import func, select

from gistmill.client import Client, Job
from gistmill.db.session import Database, open_database
from gistmill.db.tables import chunks, jobs, results
from models_store.builtin.dialogues import generate
from models_store.store import Store
from tests.hosts.conftest import STATEMENT_TIMEOUT_S, WORKERS, Fleet
from tests.support.fleet import LEASE_S
from tests.support.hosts import Network, processes_in
from tests.support.invariants import assert_complete, wait_for_end
from tests.support.jobs import chunk_rows_of, job_row
from tests.support.servers import wait_until

OUTAGE_S = LEASE_S + 2.5


def submit(client: Client, directory: Path, *, rows: int, seed: int = 1) -> Job:
    path = directory / f"calls-{seed}.jsonl"
    made = generate(rows, seed=seed, split="held_out")
    path.write_text("".join(json.dumps({"dialogue": example.dialogue}) + "\n" for example in made))
    return client.summarize(path, model="gist-tiny")


def start_both(fleet: Fleet, **environment: str) -> None:
    for name in WORKERS:
        fleet.start_worker(name, **environment)
    wait_until(lambda: all(fleet.events(name, "worker_started") for name in WORKERS), timeout_s=40, what="both workers")


def key_of(database: Database, job: Job) -> int:
    with database.read() as connection:
        return int(connection.execute(select(jobs.c.key).where(jobs.c.id == job.id)).scalar_one())


def wait_until_shared(fleet: Fleet, database: Database, job: Job) -> int:
    """Wait until both hosts work on the job and have written results; return its key."""
    key = key_of(database, job)
    wait_until(lambda: len([c for c in chunk_rows_of(database, key) if c["progressed"]]) >= 2, timeout_s=30)
    assert all(fleet.chunks_of(name, job.id) for name in WORKERS)
    return key


def test_two_hosts_share_a_job_and_each_fetches_the_model_into_its_own_store(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path
) -> None:
    start_both(fleet, GISTMILL_WORKER__ENGINE="transformers", GISTMILL_WORKER__BATCH_TOKENS="512")
    job = submit(client, tmp_path, rows=400).wait(timeout_s=80)
    assert_complete(database, key_of(database, job))
    assert len(list(job.results())) == 400
    assert all(fleet.chunks_of(name, job.id) for name in WORKERS)
    digest = client.get_model("gist-tiny").digest
    for name in WORKERS:
        assert len(fleet.events(name, "model_fetched")) == 1
        assert Store(tmp_path / name / "store").get_manifest(digest).digest == digest


def test_host_cut_off_longer_than_its_lease_writes_nothing_old_and_works_again(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path
) -> None:
    start_both(fleet, GISTMILL_WORKER__FAKE_SECONDS_PER_ROW="0.08")
    job = submit(client, tmp_path, rows=600)
    key = wait_until_shared(fleet, database, job)
    lost = fleet.events("worker-a", "chunk_started")[-1]
    fleet.network["worker-a"].cut()
    wait_until(lambda: epoch_of(database, lost) > int(str(lost["epoch"])), timeout_s=30, what="another owner")
    before = written_under(database, lost)
    fleet.network["worker-a"].join()
    wait_until(lambda: fleet.chunks_of("worker-a", job.id) > 1, timeout_s=30, what="new work of the joined host")
    wait_for_end(database, key, timeout_s=80)
    assert written_under(database, lost) == before
    assert_complete(database, key)
    second = submit(client, tmp_path, rows=80, seed=2).wait(timeout_s=40)
    assert all(fleet.chunks_of(name, second.id) for name in WORKERS)
    assert_complete(database, key_of(database, second))


def epoch_of(database: Database, lost: dict[str, object]) -> int:
    with database.read() as connection:
        return int(connection.execute(select(chunks.c.epoch).where(chunks.c.key == lost["chunk"])).scalar_one())


def written_under(database: Database, lost: dict[str, object]) -> int:
    query = select(func.count()).where(results.c.chunk_key == lost["chunk"], results.c.epoch == lost["epoch"])
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


def test_work_goes_on_while_the_api_is_cut_off(fleet: Fleet, client: Client, database: Database, tmp_path: Path) -> None:
    start_both(fleet, GISTMILL_WORKER__FAKE_SECONDS_PER_ROW="0.05")
    job = submit(client, tmp_path, rows=200)
    key = wait_until_shared(fleet, database, job)
    fleet.network["api"].cut()
    wait_for_end(database, key, timeout_s=40)
    fleet.network["api"].join()
    assert len(list(job.wait(timeout_s=40).results())) == 200
    assert_complete(database, key)


def test_work_submitted_while_redis_is_cut_off_runs_when_it_is_joined(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path
) -> None:
    start_both(fleet, GISTMILL_WORKER__FAKE_SECONDS_PER_ROW="0.05")
    job = submit(client, tmp_path, rows=200)
    key = wait_until_shared(fleet, database, job)
    fleet.network["redis"].cut()
    wait_for_end(database, key, timeout_s=40)
    later = submit(client, tmp_path, rows=40, seed=2)
    fleet.network["redis"].join()
    later.wait(timeout_s=45)
    for ended in (job, later):
        assert_complete(database, key_of(database, ended))


def test_postgres_cut_off_longer_than_the_lease_costs_no_crash(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path
) -> None:
    start_both(fleet, GISTMILL_WORKER__FAKE_SECONDS_PER_ROW="0.05")
    job = submit(client, tmp_path, rows=200)
    key = wait_until_shared(fleet, database, job)
    planned = job_row(database, key)["chunks"]
    fleet.network["postgres"].cut()
    time.sleep(OUTAGE_S)  # The fault itself is a time.
    fleet.network["postgres"].join()
    wait_for_end(database, key, timeout_s=60)
    assert_complete(database, key)
    assert job_row(database, key)["chunks"] == planned
    assert {chunk["crashes"] for chunk in chunk_rows_of(database, key)} == {0}


def test_host_cut_off_in_a_transaction_holds_its_locks_no_longer_than_a_statement_may_take(
    network: Network, fleet: Fleet, client: Client, database: Database, tmp_path: Path
) -> None:
    key = key_of(database, submit(client, tmp_path, rows=20))
    with network["worker-a"].inside():
        gone = open_database(fleet.database_url, statement_timeout_s=STATEMENT_TIMEOUT_S)
        holding = gone.engine.connect()
        holding.begin()
        holding.execute(select(jobs.c.key).where(jobs.c.key == key).with_for_update())
    network["worker-a"].cut()
    began = time.monotonic()
    with database.write() as connection:
        connection.execute(select(jobs.c.key).where(jobs.c.key == key).with_for_update())
    assert time.monotonic() - began < STATEMENT_TIMEOUT_S + 5
    holding.invalidate()
    gone.close()


def test_nothing_is_left_of_a_network() -> None:
    with Network(("one", "two")) as network:
        inodes = network.inodes
        assert len(inodes) == 3
        assert len(processes_in(inodes)) == 3
    assert processes_in(inodes) == []

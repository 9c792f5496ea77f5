"""The database hurt in the middle of a job. An outage costs time; it costs no chunk its crash budget, no count and no row."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gistmill.db.session import Database, open_database
from tests.support import faults
from tests.support.databases import NoPostgreSQL, PostgreSQLServer, name_in
from tests.support.fleet import LEASE_S, Fleet, running_fleet
from tests.support.invariants import assert_all_ended, wait_for_end
from tests.support.jobs import chunk_rows_of, job_row, make_job
from tests.support.proxy import Proxy
from tests.support.servers import wait_until

TEXTS = [f"dialogue number {number:02} about something" for number in range(40)]
OUTAGE_S = LEASE_S + 1.5


def start_two_and_wait_for_results(database: Database, fleet: Fleet, *, seconds_per_row: float = 0.05) -> int:
    fleet.start(seconds_per_row=seconds_per_row)
    fleet.start(seconds_per_row=seconds_per_row)
    job = make_job(database, TEXTS, per_chunk=20)
    wait_until(lambda: len([c for c in chunk_rows_of(database, job) if c["progressed"]]) == 2, timeout_s=20)
    return job


def assert_ends_without_a_crash(database: Database, fleet: Fleet, job: int) -> None:
    wait_for_end(database, job, timeout_s=60)
    assert_all_ended(database, job, fleet.ledger)
    # A crash counts, and a crash splits: neither happened.
    assert [chunk["crashes"] for chunk in chunk_rows_of(database, job)] == [0, 0]


def test_lock_held_longer_than_the_lease_costs_no_crash(database: Database, fleet: Fleet) -> None:
    job = start_two_and_wait_for_results(database, fleet)
    with faults.locked(database):
        time.sleep(OUTAGE_S)  # The fault itself is a time.
    assert_ends_without_a_crash(database, fleet, job)


def test_lock_held_before_the_first_result_costs_no_crash(database: Database, fleet: Fleet) -> None:
    fleet.start(drill=[faults.hang_at("generate.begun", 4)])
    fleet.start(drill=[faults.hang_at("generate.begun", 4)])
    job = make_job(database, TEXTS, per_chunk=20)
    wait_until(lambda: [c["state"] for c in chunk_rows_of(database, job)] == ["running"] * 2, timeout_s=20)
    with faults.locked(database):
        time.sleep(OUTAGE_S)
    assert_ends_without_a_crash(database, fleet, job)


@pytest.mark.parametrize("point", ["claim.committed", "record.committed", "ending.committed"])
def test_commit_whose_reply_is_lost_neither_doubles_nor_loses(database: Database, fleet: Fleet, point: str) -> None:
    fleet.start(drill=[faults.lose_reply_at(point, nth=nth) for nth in (1, 2, 4)])
    job = make_job(database, TEXTS, per_chunk=8)
    wait_for_end(database, job)
    assert fleet.ledger.blows() == {"lose_reply": 3}
    assert_all_ended(database, job, fleet.ledger)
    assert {chunk["crashes"] for chunk in chunk_rows_of(database, job)} == {0}


@pytest.mark.parametrize("seed", range(4))
def test_worker_killed_during_a_commit_leaves_all_of_it_or_nothing(database: Database, fleet: Fleet, seed: int) -> None:
    job = make_job(database, TEXTS, per_chunk=40)
    for nth in (3, 6):
        victim = fleet.start(seconds_per_row=0.01, drill=[faults.kill_during_commit(nth=nth + seed, seconds=0.0004 * seed)])
        assert victim.wait(20) == -signal.SIGKILL
    fleet.start()
    wait_for_end(database, job)
    assert_all_ended(database, job, fleet.ledger)


def test_columns_added_while_workers_run_disturb_nobody(database: Database, fleet: Fleet) -> None:
    job = start_two_and_wait_for_results(database, fleet)
    # One by one: a transaction that locks jobs and then chunks would be a deadlock with the workers' order: another fault.
    for statement in (
        "ALTER TABLE jobs ADD COLUMN of_a_later_version INTEGER",
        "ALTER TABLE chunks ADD COLUMN of_a_later_version INTEGER",
        "CREATE TABLE of_a_later_version (key INTEGER PRIMARY KEY)",
    ):
        with database.write() as connection:
            connection.exec_driver_sql(statement)
    assert_ends_without_a_crash(database, fleet, job)


class TestSQLite:
    def test_full_disk_delays_but_loses_nothing(self, sqlite_only: Database, tmp_path: Path, redis_url: str) -> None:
        fleet = Fleet(tmp_path / "fleet", str(sqlite_only.engine.url), redis_url)
        try:
            job = start_two_and_wait_for_results(sqlite_only, fleet, seconds_per_row=0.2)
            with faults.full_disk(fleet.workers):
                time.sleep(OUTAGE_S)
                assert job_row(sqlite_only, job)["state"] == "running"
            fleet.start()
            wait_for_end(sqlite_only, job, timeout_s=60)
            assert_all_ended(sqlite_only, job, fleet.ledger)
        finally:
            fleet.stop()
            print(fleet.logs())


@pytest.fixture(scope="module")
def own_postgresql() -> Iterator[PostgreSQLServer]:
    """A PostgreSQL to be hurt, with few connections and quick to find a deadlock."""
    try:
        server = PostgreSQLServer("max_connections=20", "deadlock_timeout=100ms", "synchronous_commit=on")
        server.start()
    except NoPostgreSQL as error:
        pytest.skip(str(error))
    yield server
    server.stop()


@pytest.fixture
def url(own_postgresql: PostgreSQLServer) -> Iterator[str]:
    made = own_postgresql.make_migrated()
    yield made
    own_postgresql.drop(made)


@pytest.fixture
def postgresql(url: str) -> Iterator[Database]:
    opened = open_database(url)
    yield opened
    opened.close()


@pytest.fixture
def pg_fleet(tmp_path: Path, url: str, redis_url: str) -> Iterator[Fleet]:
    with running_fleet(tmp_path / "fleet", url, redis_url) as made:
        yield made


def restart(server: PostgreSQLServer) -> None:
    server.crash()
    server.launch()


def stay_down(server: PostgreSQLServer) -> None:
    server.crash()
    time.sleep(OUTAGE_S)
    server.launch()


def terminate_often(server: PostgreSQLServer) -> None:
    for _ in range(10):
        faults.terminate_backends(server)
        time.sleep(0.1)


def refuse_connections(server: PostgreSQLServer) -> None:
    with faults.no_connections(server):
        time.sleep(OUTAGE_S)


def refuse_writes(server: PostgreSQLServer) -> None:
    with faults.read_only(server):
        time.sleep(OUTAGE_S)


HURTS: dict[str, Callable[[PostgreSQLServer], None]] = {
    "restarted": restart,
    "down-longer-than-the-lease": stay_down,
    "backends-terminated": terminate_often,
    "out-of-connections": refuse_connections,
    "read-only": refuse_writes,
}


@pytest.mark.postgresql
class TestPostgreSQL:
    @pytest.mark.parametrize("hurt", HURTS.values(), ids=HURTS)
    def test_server_that_fails_costs_time_and_no_crash(
        self,
        postgresql: Database,
        pg_fleet: Fleet,
        own_postgresql: PostgreSQLServer,
        hurt: Callable[[PostgreSQLServer], None],
    ) -> None:
        job = start_two_and_wait_for_results(postgresql, pg_fleet)
        postgresql.close()
        hurt(own_postgresql)
        assert_ends_without_a_crash(postgresql, pg_fleet, job)
        assert all(worker.is_alive for worker in pg_fleet.workers)

    @pytest.mark.parametrize("fault", ["cut", "half-open", "slow", "dropped"])
    def test_link_that_fails_costs_time_and_no_crash(
        self, postgresql: Database, pg_fleet: Fleet, own_postgresql: PostgreSQLServer, fault: str
    ) -> None:
        proxy = Proxy(own_postgresql.socket)
        pg_fleet.database_url = through(proxy, pg_fleet.database_url)
        job = start_two_and_wait_for_results(postgresql, pg_fleet)
        if fault == "dropped":
            for _ in range(5):
                proxy.drop()
                time.sleep(0.2)
        elif fault == "slow":
            proxy.delay_s = 0.02
        else:
            {"cut": proxy.cut, "half-open": proxy.half_open}[fault]()
            time.sleep(OUTAGE_S)
            proxy.mend()
        assert_ends_without_a_crash(postgresql, pg_fleet, job)
        proxy.close()

    @pytest.mark.parametrize(
        "behind", [b"next_chunk", b"INSERT INTO results", b"chunks_left=("], ids=["claim", "micro-batch", "finish"]
    )
    def test_reply_to_commit_swallowed_on_the_wire_neither_doubles_nor_loses(
        self, postgresql: Database, pg_fleet: Fleet, own_postgresql: PostgreSQLServer, behind: bytes
    ) -> None:
        proxy = Proxy(own_postgresql.socket)
        pg_fleet.database_url = through(proxy, pg_fleet.database_url)
        pg_fleet.start()
        proxy.swallow_reply_to(b"COMMIT", behind=behind)
        job = make_job(postgresql, TEXTS, per_chunk=20)
        wait_until(lambda: proxy.swallowed == 1, timeout_s=20, what="the swallowed reply")
        assert_ends_without_a_crash(postgresql, pg_fleet, job)
        proxy.close()

    def test_deadlocks_are_repeated_until_they_pass(
        self, postgresql: Database, pg_fleet: Fleet, own_postgresql: PostgreSQLServer
    ) -> None:
        url = str(postgresql.engine.url)
        pg_fleet.start(seconds_per_row=0.02)
        lost_here = 0
        # Who of two is the victim is a matter of milliseconds: in a short job it may always have been this side.
        for number in range(4):
            job = make_job(postgresql, [f"{text}, job {number}" for text in TEXTS] * 5, per_chunk=20)
            while job_row(postgresql, job)["state"] != "completed":
                lost_here += faults.provoke_deadlock(postgresql, job)
            assert_ends_without_a_crash(postgresql, pg_fleet, job)
            if own_postgresql.count_deadlocks(url) > lost_here:
                break
        wait_until(lambda: own_postgresql.count_deadlocks(url) > lost_here, what="a deadlock that a worker lost")


def through(proxy: Proxy, url: str) -> str:
    return f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{name_in(url)}"

"""Redis and the api fail around submit: what was accepted is run all the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gistmill.db import models
from gistmill.db.session import Database, open_database
from gistmill.queue import Bells
from tests.support import faults
from tests.support.fleet import Fleet, running_fleet
from tests.support.invariants import assert_complete, wait_for_end
from tests.support.jobs import first_tenant, job_row, make_job
from tests.support.servers import RedisServer, wait_until

pytestmark = pytest.mark.usefixtures("forked_workers")

TEXTS = [f"dialogue number {number} about something" for number in range(40)]

# Submits a job and dies after the commit, before the bell.
DYING_API = """
import os, sys
from gistmill.db.session import open_database
from gistmill.specs import SummarizeSpec
from gistmill.submit import submit_job
from tests.support.jobs import first_tenant
database = open_database(sys.argv[1])
spec = SummarizeSpec(dataset=sys.argv[2], model="tiny")
submit_job(database, first_tenant(database), spec, ring=lambda kind: os._exit(9))
"""


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server of this test's own, to be stopped and started."""
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def own_fleet(tmp_path: Path, database_url: str, own_redis: RedisServer) -> Iterator[Fleet]:
    """A fleet on that server."""
    with running_fleet(tmp_path / "fleet", database_url, own_redis.url) as made:
        yield made


def test_redis_that_restarts_without_its_data_loses_no_item(
    database: Database, own_fleet: Fleet, own_redis: RedisServer
) -> None:
    own_redis.start()
    own_fleet.start(seconds_per_row=0.05)
    own_fleet.start(seconds_per_row=0.05)
    job = make_job(database, TEXTS, per_chunk=10)
    wait_until(lambda: job_row(database, job)["succeeded"] >= 4, timeout_s=20)
    own_redis.stop()
    wait_until(lambda: job_row(database, job)["succeeded"] >= 12, timeout_s=20, what="work going on without Redis")
    own_redis.start()
    wait_for_end(database, job)
    assert_complete(database, job)
    later = make_job(database, TEXTS[:3])
    wait_for_end(database, later)
    assert_complete(database, later)


def test_job_that_is_submitted_while_redis_is_down_runs_when_it_is_back(
    database: Database, own_fleet: Fleet, own_redis: RedisServer
) -> None:
    bells = Bells(own_redis.url, "gistmill:")
    job = make_job(database, TEXTS)
    assert not bells.ring("summarize")
    own_fleet.start()
    wait_until(lambda: "worker_started" in own_fleet.logs(), timeout_s=20)
    assert job_row(database, job)["state"] == "queued"
    own_redis.start()
    wait_for_end(database, job)
    assert_complete(database, job)


def test_job_of_an_api_that_was_killed_between_commit_and_bell_is_run(
    database: Database, database_url: str, fleet: Fleet
) -> None:
    make_job(database, TEXTS[:1])  # Its dataset is named "test".
    manifest = {"architecture": "T5ForConditionalGeneration", "parameters": 1, "dtype": "float32"}
    files = {"digest": "c" * 64, "weight_bytes": 1, "source": "a test"}
    models.register(database, first_tenant(database), manifest, name="tiny", **files)
    done = subprocess.run([sys.executable, "-c", DYING_API, database_url, "test"], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    fresh = open_database(database_url)
    with fresh.read() as connection:
        keys = connection.exec_driver_sql("SELECT key FROM jobs ORDER BY key").scalars().all()
    fresh.close()
    assert len(keys) == 2
    fleet.start()
    for key in keys:
        wait_for_end(database, key)
        assert_complete(database, key)


@pytest.mark.parametrize(
    ("hurt", "mend"),
    [(faults.fill_memory, faults.free_memory), (faults.refuse_writes, faults.allow_writes)],
    ids=["out-of-memory", "read-only"],
)
def test_worker_that_starts_while_redis_takes_no_writes_waits_and_works(
    database: Database,
    own_fleet: Fleet,
    own_redis: RedisServer,
    hurt: Callable[[RedisServer], None],
    mend: Callable[[RedisServer], None],
) -> None:
    own_redis.start()
    hurt(own_redis)
    worker = own_fleet.start()
    wait_until(lambda: "Trying" in worker.log.read_text() or not worker.is_alive, timeout_s=20)
    assert worker.is_alive
    mend(own_redis)
    job = make_job(database, TEXTS)
    wait_for_end(database, job)
    assert_complete(database, job)

"""Every worker host has a model store of its own and fetches what it lacks from the api, however the link behaves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gistmill.client import Client, Job
from gistmill.db.session import Database
from models_store.store import Store
from tests.hosts.conftest import WORKERS, Fleet, Recovery
from tests.hosts.work import key_of, start_both, submit
from tests.support.fleet import LEASE_S
from tests.support.invariants import assert_complete, wait_for_end
from tests.support.jobs import chunk_rows_of
from tests.support.servers import wait_until

# Two hosts with two threads each would wait for each other on two cores.
REAL = {"GISTMILL_WORKER__ENGINE": "transformers", "GISTMILL_WORKER__THREADS": "1"}
SHORT = {"max_new_tokens": 8}
OUTAGE_S = LEASE_S + 2.5
# The weights are 2.6 MB: they take five seconds, so the cut meets them on their way.
SLOW_BITS_PER_S = 4_000_000

pytestmark = pytest.mark.timeout(300)


def test_two_hosts_share_a_job_and_each_fetches_the_model_into_its_own_store(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path
) -> None:
    start_both(fleet, **REAL)
    job = submit(client, tmp_path, rows=160, generation=SHORT).wait(timeout_s=80)
    assert_complete(database, key_of(database, job))
    assert len(list(job.results())) == 160
    assert all(fleet.chunks_of(name, job.id) for name in WORKERS)
    for name in WORKERS:
        assert_fetched_once(fleet, name, client.get_model("gist-tiny").digest)


def test_host_cut_off_while_it_fetches_the_model_works_when_it_is_joined(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path, recovery: Recovery
) -> None:
    job = submit(client, tmp_path, rows=32, generation=SHORT)
    digest, store, host = client.get_model("gist-tiny").digest, fleet.store("worker-a"), fleet.network["worker-a"]
    host.slow_down(SLOW_BITS_PER_S)
    fleet.start_worker("worker-a", **REAL)
    wait_until(lambda: arrived_bytes(store) > 100_000, timeout_s=60, what="a part of the weights")
    recovery.cut("worker-a")
    time.sleep(OUTAGE_S)  # The fault itself is a time.
    assert store.find(digest) is None
    host.speed_up()
    recovery.join("worker-a")
    wait_for_end_unharmed(database, job)
    recovery.done()
    assert_fetched_once(fleet, "worker-a", digest)


def test_host_started_while_the_api_is_cut_off_fails_nothing_and_works_when_it_is_joined(
    fleet: Fleet, client: Client, database: Database, tmp_path: Path, recovery: Recovery
) -> None:
    job = submit(client, tmp_path, rows=32, generation=SHORT)
    digest = client.get_model("gist-tiny").digest
    recovery.cut("api")
    fleet.network["worker-a"].forget_neighbours()
    fleet.start_worker("worker-a", **REAL)
    wait_until(lambda: bool(fleet.events("worker-a", "chunk_rests")), timeout_s=80, what="a chunk that rests")
    recovery.join("api")
    wait_for_end_unharmed(database, job)
    recovery.done()
    assert_fetched_once(fleet, "worker-a", digest)


def arrived_bytes(store: Store) -> int:
    return sum(path.stat().st_size for path in store.root.glob("incoming/*/model.safetensors"))


def wait_for_end_unharmed(database: Database, job: Job) -> None:
    key = key_of(database, job)
    wait_for_end(database, key, timeout_s=60)
    assert_complete(database, key)
    assert {chunk["failures"] for chunk in chunk_rows_of(database, key)} == {0}


def assert_fetched_once(fleet: Fleet, name: str, digest: str) -> None:
    """The host's store holds this model, whole, and nothing of another attempt."""
    store = fleet.store(name)
    assert len(fleet.events(name, "model_fetched")) == 1
    assert store.get_manifest(digest).digest == digest
    assert [path.name for path in (store.root / "models").iterdir()] == [digest]
    assert list((store.root / "incoming").iterdir()) == []

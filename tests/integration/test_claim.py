"""Who gets the next chunk."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import Row, insert, update

from gistmill.db import claim as claim_rows
from gistmill.db.claim import Claim, Claimant, candidates
from gistmill.db.clock import db_now
from gistmill.db.session import Database
from gistmill.db.tables import jobs, tenants
from gistmill.db.workers import bells_to_ring
from tests.support.hands import claimed, end
from tests.support.jobs import chunk_rows_of, first_tenant, job_row, make_job, make_worker, take, tick
from tests.support.meanwhile import while_uncommitted

TEXTS = [f"dialogue number {number}" for number in range(8)]


def test_claim_sets_owner_lease_and_epoch_and_moves_the_job_to_running(database: Database) -> None:
    job = make_job(database, TEXTS, per_chunk=4)
    worker = make_worker(database, "w1")
    found = take(database, worker)
    assert found is not None
    assert (found.epoch, found.first_rank, found.last_rank) == (1, 0, 3)
    first, second = chunk_rows_of(database, job)
    assert (first["state"], first["owner"], first["epoch"]) == ("running", "w1", 1)
    assert 29 < first["lease_until"] - first["started_at"] < 31
    assert second["state"] == "queued"
    assert job_row(database, job)["state"] == "running"
    assert job_row(database, job)["started_at"] is not None


def test_each_chunk_is_claimed_by_one_worker_when_twenty_ask_at_once(database: Database) -> None:
    make_job(database, TEXTS, per_chunk=1)
    claims: list[Claim] = []
    workers = [make_worker(database, f"w{number}") for number in range(20)]

    def ask(number: int) -> None:
        found = take(database, workers[number])
        if found is not None:
            claims.append(found)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claims) == 8
    assert len({found.chunk_key for found in claims}) == 8


def test_a_claim_passes_over_the_chunk_that_is_being_taken(database: Database) -> None:
    make_job(database, TEXTS, per_chunk=1)
    first, second = (make_worker(database, name) for name in ("w1", "w2"))
    mine: list[Claim | None] = []
    theirs = while_uncommitted(
        database,
        lambda connection: mine.append(claim_rows.claim(connection, first, lease_s=30.0)),
        lambda: take(database, second),
    )
    # With the chunk of the first chosen it would have waited for that, and have taken it too.
    assert [found and found.first_rank for found in (*mine, theirs)] == [0, 1]


def test_higher_priority_goes_first_and_then_the_older_job(database: Database) -> None:
    old = make_job(database, TEXTS[:1])
    urgent = make_job(database, TEXTS[:1], priority=5)
    young = make_job(database, TEXTS[:1])
    worker = make_worker(database, "w1")
    order = [found.job_key for found in (take(database, worker) for _ in range(3)) if found]
    assert order == [urgent, old, young]


def test_resident_model_goes_before_age_until_a_job_has_waited_a_minute(database: Database) -> None:
    other = make_job(database, TEXTS, per_chunk=4, model_digest="b" * 64)
    make_job(database, TEXTS, per_chunk=2)
    worker = make_worker(database, "w1")
    at_hand = type(worker)(worker.worker, worker.kinds, worker.device_bytes, worker.spec_version, resident=("a" * 64,))
    first = take(database, at_hand)
    assert first is not None
    assert first.job_key != other
    database.transact(
        lambda connection: connection.execute(update(jobs).where(jobs.c.key == other).values(claimed_at=db_now() - 61))
    )
    second = take(database, at_hand)
    assert second is not None
    assert second.job_key == other


def test_tenant_with_the_smaller_share_goes_first(database: Database) -> None:
    other = database.transact(
        lambda connection: connection.execute(insert(tenants).values(name="other").returning(tenants.c.key)).scalar_one()
    )
    mine = make_job(database, TEXTS, per_chunk=1, tenant_key=first_tenant(database), priority=9)
    theirs = make_job(database, TEXTS, per_chunk=1, tenant_key=other)
    worker = make_worker(database, "w1")
    order = [found.job_key for found in (take(database, worker) for _ in range(4)) if found]
    assert order.count(mine) == 2
    assert order.count(theirs) == 2


def test_tenants_take_turns_on_a_single_worker(database: Database) -> None:
    other = database.transact(
        lambda connection: connection.execute(insert(tenants).values(name="other").returning(tenants.c.key)).scalar_one()
    )
    large = make_job(database, TEXTS, per_chunk=1, priority=9)
    order = [work_off_one(database, "w1"), work_off_one(database, "w2")]
    small = make_job(database, TEXTS[:2], per_chunk=1, tenant_key=other)
    tick(database)
    order += [work_off_one(database, f"w{number}") for number in range(3, 7)]
    assert order == [large, large, large, small, large, small]


def work_off_one(database: Database, worker: str) -> int:
    claim = claimed(database, worker)
    end(database, claim)
    tick(database)
    return claim.job_key


def test_paused_too_new_and_too_large_jobs_are_left_alone(database: Database) -> None:
    make_job(database, TEXTS, paused=True)
    make_job(database, TEXTS, spec_version=99)
    make_job(database, TEXTS, min_device_bytes=10**13)
    worker = make_worker(database, "w1")
    assert take(database, worker) is None
    assert take(database, make_worker(database, "big", device_bytes=10**14)) is not None


def test_chunk_that_rests_is_not_claimed(database: Database) -> None:
    job = make_job(database, TEXTS)
    database.transact(lambda connection: connection.exec_driver_sql("UPDATE chunks SET run_at = 1e12"))
    assert take(database, make_worker(database, "w1")) is None
    assert job_row(database, job)["state"] == "queued"


def test_bells_ring_only_for_work_that_an_idle_live_worker_fits(database: Database) -> None:
    def bells() -> dict[str, int]:
        with database.read() as connection:
            return bells_to_ring(connection, within_s=30)

    make_job(database, TEXTS, per_chunk=4)
    assert bells() == {}
    first = make_worker(database, "w1")
    second = make_worker(database, "w2")
    assert bells() == {"summarize": 2}
    take(database, first)
    assert bells() == {"summarize": 2}
    take(database, second)
    assert bells() == {}


@pytest.mark.parametrize("change", [{"paused": True}, {"state": "cancelling"}, {"state": "failed"}], ids=str)
def test_job_that_changed_between_the_look_and_the_claim_is_left_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    job = make_job(database, TEXTS)
    worker = make_worker(database, "w1")
    looked = [see_before(database, worker, change)]
    monkeypatch.setattr(claim_rows, "candidates", lambda *asked: looked.pop() if looked else candidates(*asked))

    assert take(database, worker) is None
    assert looked == []
    (chunk,) = chunk_rows_of(database, job)
    assert (chunk["state"], chunk["epoch"], chunk["owner"], chunk["lease_until"]) == ("queued", 0, None, None)


def test_claim_looks_anew_when_a_job_has_changed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_job(database, TEXTS)
    worker = make_worker(database, "w1")
    looked = [see_before(database, worker, {"paused": True})]
    second = make_job(database, TEXTS)
    monkeypatch.setattr(claim_rows, "candidates", lambda *asked: looked.pop() if looked else candidates(*asked))

    found = take(database, worker)

    assert found is not None
    assert found.job_key == second != first


def see_before(database: Database, claimant: Claimant, change: dict[str, object]) -> Sequence[Row[Any]]:
    """Return the candidates as they were before all jobs changed so."""
    with database.read() as connection:
        found = candidates(connection, claimant)
    database.transact(lambda connection: connection.execute(update(jobs).values(**change)))
    return found


def test_no_bell_rings_for_a_paused_job(database: Database) -> None:
    make_job(database, TEXTS, paused=True)
    make_worker(database, "w1")
    with database.read() as connection:
        assert bells_to_ring(connection, within_s=30) == {}

"""Chunks claimed ahead: what is reserved, what becomes of it, and that its loss costs nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from gistmill import control
from gistmill.db import ahead, crashes
from gistmill.db import chunks as chunk_rows
from gistmill.db.check import check
from gistmill.db.chunks import Budgets
from gistmill.db.claim import Claim, Claimant
from gistmill.db.clock import db_now
from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs, tenants, workers
from gistmill.errors import ChunkFailed, LeaseLost
from tests.support.finetune import add_model
from tests.support.hands import commit, end, pending, work
from tests.support.jobs import chunk_rows_of, expire_leases, first_tenant, job_row, make_job, make_worker, take

TEXTS = [f"dialogue number {number}" for number in range(8)]
BUDGETS = Budgets(retry_base_s=0.0)
LIVE_S = 30.0


def reserve(database: Database, claimant: Claimant, running: Claim, *, lease_s: float = 30.0) -> Claim | None:
    ask = partial(ahead.claim_ahead, claimant=claimant, running=running, lease_s=lease_s, live_within_s=LIVE_S)
    return database.transact(ask)


def begin(database: Database, claim: Claim) -> bool:
    return database.transact(partial(ahead.begin, claim=claim, lease_s=30.0))


def chunk_of(database: Database, claim: Claim) -> Any:
    with database.read() as connection:
        return connection.execute(select(chunks).where(chunks.c.key == claim.chunk_key)).one()


def costs(database: Database, claim: Claim) -> tuple[str, int, int, int]:
    chunk = chunk_of(database, claim)
    return chunk.state, chunk.epoch, chunk.failures, chunk.crashes


@pytest.fixture
def claimant(database: Database) -> Claimant:
    return make_worker(database, "ada")


@pytest.fixture
def job(database: Database) -> int:
    return make_job(database, TEXTS, per_chunk=2)


@pytest.fixture
def running(database: Database, claimant: Claimant, job: int) -> Claim:
    found = take(database, claimant)
    assert found is not None
    return found


@pytest.fixture
def reserved(database: Database, claimant: Claimant, running: Claim) -> Claim:
    found = reserve(database, claimant, running)
    assert found is not None
    return found


def test_chunk_claimed_ahead_has_owner_lease_and_epoch_but_does_not_run(
    database: Database, job: int, running: Claim, reserved: Claim
) -> None:
    first, second, *others = chunk_rows_of(database, job)
    assert (first["state"], second["state"], {chunk["state"] for chunk in others}) == ("running", "reserved", {"queued"})
    assert (second["owner"], second["epoch"], reserved.epoch, reserved.first_rank) == ("ada", 1, 1, 2)
    assert second["lease_until"] > first["started_at"] + 29
    with database.read() as connection:
        assert connection.scalar(select(workers.c.chunk_key)) == running.chunk_key
    assert check(database) == []


def test_reserved_chunk_runs_when_its_turn_comes(database: Database, job: int, running: Claim, reserved: Claim) -> None:
    end(database, running)
    database.transact(lambda connection: connection.execute(update(chunks).values(lease_until=db_now() + 1)))
    assert begin(database, reserved)
    chunk = chunk_of(database, reserved)
    assert (chunk.state, chunk.owner, chunk.epoch) == ("running", "ada", reserved.epoch)
    assert 29 < chunk.lease_until - chunk.started_at < 31
    with database.read() as connection:
        worker = connection.execute(select(workers)).one()
    assert (worker.state, worker.chunk_key) == ("busy", reserved.chunk_key)
    end(database, reserved)
    work(database)
    assert (job_row(database, job)["state"], job_row(database, job)["succeeded"]) == ("completed", 8)
    assert {chunk["epoch"] for chunk in chunk_rows_of(database, job)} == {1}


def test_nothing_is_written_under_a_chunk_that_is_only_reserved(database: Database, reserved: Claim) -> None:
    units = pending(database, reserved)
    for write in (
        lambda: commit(database, reserved, units),
        lambda: database.transact(partial(chunk_rows.finish, claim=reserved)),
        lambda: database.transact(partial(chunk_rows.release, claim=reserved)),
        lambda: database.transact(partial(chunk_rows.close, claim=reserved)),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert costs(database, reserved) == ("reserved", 1, 0, 0)


def test_another_worker_takes_no_reserved_chunk(database: Database, reserved: Claim) -> None:
    bob = make_worker(database, "bob")
    taken = [found.chunk_key for found in (take(database, bob) for _ in range(4)) if found]
    assert len(taken) == 2
    assert reserved.chunk_key not in taken


@pytest.mark.parametrize(("live", "is_reserved"), [(1, True), (2, True), (3, False), (4, False)])
def test_nothing_is_claimed_ahead_unless_more_chunks_wait_than_workers_live(
    database: Database, claimant: Claimant, running: Claim, live: int, *, is_reserved: bool
) -> None:
    for number in range(live - 1):
        make_worker(database, f"worker {number}")
    make_worker(database, "dead")
    make_worker(database, "scorer", kinds=("evaluate",))
    gone = update(workers).where(workers.c.id == "dead").values(seen_at=db_now() - 60)
    database.transact(lambda connection: connection.execute(gone))
    assert (reserve(database, claimant, running) is not None) == is_reserved


def test_chunks_that_rest_are_paused_or_do_not_fit_do_not_wait(
    database: Database, claimant: Claimant, job: int, running: Claim
) -> None:
    make_job(database, TEXTS, per_chunk=1, paused=True)
    make_job(database, TEXTS, per_chunk=1, min_device_bytes=10**13)
    rests = update(chunks).where(chunks.c.job_key == job, chunks.c.ordinal > 1).values(run_at=db_now() + 60)
    database.transact(lambda connection: connection.execute(rests))
    assert reserve(database, claimant, running) is None


@pytest.mark.parametrize("crashed", ["running", "next"])
def test_chunk_that_has_crashed_runs_alone(
    database: Database, claimant: Claimant, job: int, running: Claim, crashed: str
) -> None:
    if crashed == "running":
        running = replace(running, crashes=1)
    else:
        once = update(chunks).where(chunks.c.job_key == job, chunks.c.ordinal == 1).values(crashes=1)
        database.transact(lambda connection: connection.execute(once))
    assert reserve(database, claimant, running) is None
    assert [chunk["epoch"] for chunk in chunk_rows_of(database, job)] == [1, 0, 0, 0]


@pytest.mark.parametrize("unlike", [{"model_digest": "b" * 64}, {"spec": {"precision": "int8"}}], ids=str)
def test_only_a_chunk_for_the_same_model_and_precision_is_claimed_ahead(
    database: Database, claimant: Claimant, running: Claim, unlike: dict[str, Any]
) -> None:
    make_job(database, TEXTS, per_chunk=2, priority=9, **unlike)
    assert reserve(database, claimant, running) is None


def test_chunk_of_another_job_on_the_same_model_is_claimed_ahead_when_it_comes_first(
    database: Database, claimant: Claimant, running: Claim
) -> None:
    urgent = make_job(database, TEXTS, per_chunk=4, priority=9)
    found = reserve(database, claimant, running)
    assert found is not None
    assert found.job_key == urgent


@pytest.mark.parametrize(("base", "is_alike"), [("1" * 64, True), ("4" * 64, False)], ids=["same", "other"])
def test_adapters_are_alike_when_their_base_is_the_same(database: Database, base: str, *, is_alike: bool) -> None:
    one, other = (
        add_model(database, name, digest=digest * 64, kind="adapter", base_digest=of)
        for name, digest, of in (("one", "2", "1" * 64), ("other", "3", base))
    )
    claimant = make_worker(database, "bob")
    make_job(database, TEXTS, model_key=one.key, model_digest="5" * 64)
    make_job(database, TEXTS, per_chunk=2, model_key=other.key, model_digest="6" * 64)
    running = take(database, claimant)
    assert running is not None
    assert (reserve(database, claimant, running) is not None) == is_alike


def test_chunk_of_a_tenant_that_has_less_goes_first_and_not_the_own_job(
    database: Database, claimant: Claimant, running: Claim
) -> None:
    add = insert(tenants).values(name="other").returning(tenants.c.key)
    other = database.transact(lambda connection: connection.execute(add).scalar_one())
    theirs = make_job(database, TEXTS[:1], tenant_key=other)
    found = reserve(database, claimant, running)
    assert found is not None
    assert found.job_key == theirs


def test_lease_of_a_reserved_chunk_is_renewed_like_that_of_a_running_one(database: Database, reserved: Claim) -> None:
    renewed = partial(chunk_rows.renew, claim=reserved, lease_s=1000.0)
    before = chunk_of(database, reserved).lease_until
    assert database.transact(renewed)
    assert chunk_of(database, reserved).lease_until > before + 900
    database.transact(partial(ahead.give_back, claim=reserved))
    assert not database.transact(renewed)


def test_reserved_chunk_is_given_back_at_no_cost(database: Database, claimant: Claimant, reserved: Claim) -> None:
    database.transact(partial(ahead.give_back, claim=reserved))
    assert costs(database, reserved) == ("queued", 1, 0, 0)
    again = take(database, claimant)
    assert again is not None
    assert (again.chunk_key, again.epoch) == (reserved.chunk_key, 2)
    database.transact(partial(ahead.give_back, claim=reserved))
    assert not begin(database, reserved)
    assert costs(database, reserved) == ("running", 2, 0, 0)


@pytest.mark.parametrize("loss", ["lease", "death", "doubt"])
def test_loss_of_a_reserved_chunk_costs_nothing_and_the_running_one_pays(
    database: Database, job: int, running: Claim, reserved: Claim, loss: str
) -> None:
    if loss == "lease":
        expire_leases(database)
        assert database.transact(partial(crashes.reap, budgets=BUDGETS)) == 2
    elif loss == "death":
        assert database.transact(partial(crashes.bury, worker="ada", budgets=BUDGETS)) == 2
    else:
        assert database.transact(partial(chunk_rows.release_owned, worker="ada")) == 2
    assert costs(database, reserved) == ("queued", 1, 0, 0)
    # The running one was split, which is what a crash does; the reserved one never ran.
    assert len(chunk_rows_of(database, job)) == (4 if loss == "doubt" else 5)
    assert not begin(database, reserved)
    work(database)
    assert job_row(database, job)["succeeded"] == 8
    assert check(database) == []


def test_death_with_a_reserved_chunk_of_one_dialogue_is_no_crash_of_it(database: Database, claimant: Claimant) -> None:
    job = make_job(database, TEXTS, per_chunk=1)
    running = take(database, claimant)
    assert running is not None
    found = reserve(database, claimant, running)
    assert found is not None
    database.transact(partial(crashes.bury, worker="ada", budgets=BUDGETS))
    assert [chunk["crashes"] for chunk in chunk_rows_of(database, job)] == [1, 0, 0, 0, 0, 0, 0, 0]


def test_cancel_closes_a_reserved_chunk_at_once(database: Database, job: int, running: Claim, reserved: Claim) -> None:
    control.cancel(database, first_tenant(database), job_row(database, job)["id"])
    chunk = chunk_of(database, reserved)
    assert (chunk.state, chunk.outcome, chunk.owner, chunk.lease_until) == ("done", "cancelled", None, None)
    assert not begin(database, reserved)
    assert job_row(database, job)["chunks_left"] == 1
    database.transact(partial(chunk_rows.close, claim=running))
    row = job_row(database, job)
    assert (row["state"], row["not_run"]) == ("cancelled", 8)
    assert check(database) == []


def test_reserved_chunk_of_a_job_that_was_paused_is_given_back_when_its_turn_comes(
    database: Database, job: int, running: Claim, reserved: Claim
) -> None:
    control.pause(database, first_tenant(database), job_row(database, job)["id"])
    assert not begin(database, reserved)
    assert costs(database, reserved) == ("queued", 1, 0, 0)


def test_reserved_chunk_of_a_job_that_has_failed_is_closed_when_its_turn_comes(
    database: Database, job: int, running: Claim, reserved: Claim
) -> None:
    database.transact(partial(chunk_rows.fail_job, claim=running, error=ChunkFailed("x")))
    assert not begin(database, reserved)
    assert chunk_of(database, reserved).state == "done"
    database.transact(partial(chunk_rows.close_ended, job_key=job))
    assert job_row(database, job)["chunks_left"] == 0
    assert check(database) == []


def test_chunk_that_was_closed_and_taken_up_again_is_not_begun_under_its_old_epoch(
    database: Database, job: int, running: Claim, reserved: Claim
) -> None:
    job_id = job_row(database, job)["id"]
    control.cancel(database, first_tenant(database), job_id)
    database.transact(partial(chunk_rows.close, claim=running))
    control.retry(database, first_tenant(database), job_id)
    assert not begin(database, reserved)
    work(database)
    assert job_row(database, job)["succeeded"] == 8
    assert {chunk["epoch"] for chunk in chunk_rows_of(database, job)} == {1, 2}


def test_job_that_changed_between_the_look_and_the_claim_ahead_is_left_alone(
    database: Database, claimant: Claimant, job: int, running: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ahead.candidates

    def look_and_change(connection: Any, asking: Claimant) -> Any:
        found = real(connection, asking)
        connection.execute(update(jobs).values(paused=True))
        return found

    monkeypatch.setattr(ahead, "candidates", look_and_change)
    assert reserve(database, claimant, running) is None
    assert chunk_rows_of(database, job)[1]["epoch"] == 0

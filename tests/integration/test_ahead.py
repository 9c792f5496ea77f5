"""Chunks claimed ahead: what is reserved, what becomes of it, and that its loss costs nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, update

from gistmill import control
from gistmill.db import ahead, crashes
from gistmill.db import chunks as chunk_rows
from gistmill.db.check import check
from gistmill.db.chunks import Budgets
from gistmill.db.claim import Claim, Claimant, candidates
from gistmill.db.clock import db_now
from gistmill.db.pending import Unit
from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs, tenants, workers
from gistmill.errors import ChunkFailed, LeaseLost, StoreUnavailable
from gistmill.queue import Bells
from tests.support.bench import FAST, Bench, Patient, work_until_completed
from tests.support.finetune import add_model
from tests.support.hands import commit, end, pending, work
from tests.support.jobs import (
    chunk_rows_of,
    expire_leases,
    first_tenant,
    has_reserved_chunk,
    job_row,
    make_job,
    make_worker,
    take,
    tick,
)
from tests.support.servers import wait_until
from workers.engine.base import Outcome
from workers.engine.fake import FakeEngine
from workers.handlers import outlook, pages, summarize
from workers.heartbeat import Watch

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


@pytest.fixture(autouse=True)
def asking_at_any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let chunks of very little work be worth it, as they are in these tests."""
    monkeypatch.setattr(outlook, "LEAST_S", 0.0)


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


def leave_one_waiting(database: Database, job: int) -> None:
    """Let the chunks of a job rest, save the first two, of which one runs."""
    rests = update(chunks).where(chunks.c.job_key == job, chunks.c.ordinal > 1).values(run_at=db_now() + 60)
    database.transact(lambda connection: connection.execute(rests))


def test_last_chunk_is_claimed_ahead_by_the_only_worker(
    database: Database, claimant: Claimant, job: int, running: Claim
) -> None:
    leave_one_waiting(database, job)
    reserved = reserve(database, claimant, running)
    assert reserved is not None
    assert chunk_of(database, reserved).ordinal == 1


def test_last_chunk_is_left_to_whoever_is_free_first(database: Database, claimant: Claimant, job: int, running: Claim) -> None:
    make_worker(database, "other")
    leave_one_waiting(database, job)
    assert reserve(database, claimant, running) is None


def test_chunks_that_rest_are_paused_or_do_not_fit_do_not_wait(
    database: Database, claimant: Claimant, job: int, running: Claim
) -> None:
    make_job(database, TEXTS, per_chunk=1, paused=True)
    make_job(database, TEXTS, per_chunk=1, min_device_bytes=10**13)
    make_worker(database, "other")
    leave_one_waiting(database, job)
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


@pytest.mark.parametrize("unlike", [{"model_digest": "b" * 64}, {"spec": {"precision": "int8"}}], ids=["model", "precision"])
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


@pytest.fixture
def other_tenant(database: Database) -> int:
    add = insert(tenants).values(name="other").returning(tenants.c.key)
    return database.transact(lambda connection: int(connection.execute(add).scalar_one()))


def test_chunk_of_a_tenant_that_has_less_goes_first_and_not_the_own_job(
    database: Database, claimant: Claimant, running: Claim, other_tenant: int
) -> None:
    theirs = make_job(database, TEXTS[:1], tenant_key=other_tenant)
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


def test_reservation_that_another_worker_has_made_since_is_not_begun(
    database: Database, running: Claim, reserved: Claim
) -> None:
    database.transact(partial(ahead.give_back, claim=reserved))
    found = reserve(database, replace(make_worker(database, "bob")), replace(running, worker="bob"))
    assert found is not None
    assert (found.chunk_key, found.epoch) == (reserved.chunk_key, 2)
    assert not begin(database, reserved)
    database.transact(partial(ahead.give_back, claim=reserved))
    assert costs(database, found) == ("reserved", 2, 0, 0)


def test_reserved_chunk_counts_for_the_share_of_its_tenant(database: Database, reserved: Claim, other_tenant: int) -> None:
    theirs = make_job(database, TEXTS, per_chunk=1, tenant_key=other_tenant)
    bob = make_worker(database, "bob")
    # Two of the other tenant's are held by ada, of whom the second does not run.
    order = [found.job_key for found in (take(database, bob) for _ in range(2)) if found]
    assert order == [theirs, theirs]


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
    with database.read() as connection:
        looked = [candidates(connection, claimant)]
    database.transact(lambda connection: connection.execute(update(jobs).values(paused=True)))
    monkeypatch.setattr(ahead, "_others_find_work", lambda *_: True)
    monkeypatch.setattr(ahead, "candidates", lambda *asked: looked.pop() if looked else candidates(*asked))

    assert reserve(database, claimant, running) is None
    assert looked == []
    assert chunk_rows_of(database, job)[1]["epoch"] == 0


# What a worker makes of it.


@pytest.fixture
def looking(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A worker that claims ahead, with small pages."""
    monkeypatch.setattr(pages, "PAGE_ROWS", 4)
    monkeypatch.setattr(FakeEngine, "page_rows", 4)
    bench.handler.successor = bench.runner.ahead
    set_lease(bench, 15.0)
    return bench


def set_lease(bench: Bench, lease_s: float) -> None:
    settings = FAST.model_copy(update={"lease_s": lease_s})
    bench.runner.settings = bench.runner.ahead.settings = bench.heartbeat.settings = settings


MANY = [f"dialogue number {number:02}" for number in range(16)]


def test_first_page_of_the_next_chunk_is_read_before_the_running_one_ends(looking: Bench) -> None:
    read: list[str] = []
    read_before_batch: list[int] = []

    class Noting(FakeEngine):
        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            read.extend((threading.current_thread().name[:6],) * len(texts))
            return super()._encode(texts, limit)

        def _forward(self, *args: Any) -> list[Outcome] | None:
            # The second batch is the last of its chunk.
            wanted = {1: 8, 3: 12, 5: 16}.get(len(read_before_batch), 0)
            wait_until(lambda: len(read) >= wanted, what="the first page of the next chunk")
            read_before_batch.append(len(read))
            return super()._forward(*args)

    looking.engine = lambda: Noting(max_rows=2)
    job = make_job(looking.database, MANY, per_chunk=4)
    looking.runner.work()
    assert read_before_batch == [4, 8, 8, 12, 12, 16, 16, 16]
    assert read[4:] == ["reader"] * 12
    assert job_row(looking.database, job)["succeeded"] == 16
    assert [chunk["epoch"] for chunk in chunk_rows_of(looking.database, job)] == [1, 1, 1, 1]


def work_in_a_thread(bench: Bench) -> threading.Thread:
    thread = threading.Thread(target=bench.runner.work)
    thread.start()
    return thread


def held(database: Database, job: int) -> list[tuple[str, int]]:
    return [(chunk["state"], chunk["epoch"]) for chunk in chunk_rows_of(database, job)]


def wait_for_reservation(bench: Bench, job: int) -> None:
    wait_until(lambda: ("reserved", 1) in held(bench.database, job), what="a reserved chunk")


def test_drain_gives_the_reserved_chunk_back_with_the_running_one(looking: Bench) -> None:
    looking.engine = lambda: FakeEngine(seconds_per_row=0.2, max_rows=1)
    job = make_job(looking.database, MANY, per_chunk=4)
    worker = work_in_a_thread(looking)
    wait_for_reservation(looking, job)
    looking.drain.set()
    worker.join(5)
    assert held(looking.database, job) == [("queued", 1), ("queued", 1), ("queued", 0), ("queued", 0)]
    assert {(chunk["failures"], chunk["crashes"]) for chunk in chunk_rows_of(looking.database, job)} == {(0, 0)}


def test_pause_gives_the_reserved_chunk_back_and_a_cancel_closes_it(looking: Bench) -> None:
    looking.engine = lambda: FakeEngine(seconds_per_row=0.2, max_rows=1)
    job = make_job(looking.database, MANY, per_chunk=4)
    job_id = job_row(looking.database, job)["id"]
    worker = work_in_a_thread(looking)
    wait_for_reservation(looking, job)
    control.pause(looking.database, first_tenant(looking.database), job_id)
    worker.join(5)
    assert [state for state, _ in held(looking.database, job)] == ["queued"] * 4
    control.resume(looking.database, first_tenant(looking.database), job_id)
    worker = work_in_a_thread(looking)
    wait_until(lambda: has_reserved_chunk(looking.database, job), what="a reserved chunk")
    control.cancel(looking.database, first_tenant(looking.database), job_id)
    worker.join(5)
    row = job_row(looking.database, job)
    assert (row["state"], row["succeeded"] + row["not_run"]) == ("cancelled", 16)
    assert check(looking.database) == []


def test_reserved_chunk_outlives_its_lease_while_the_running_one_is_worked_on(looking: Bench) -> None:
    def outlast_the_lease(should_stop: Callable[[], bool]) -> None:
        slept.append(True)
        until = time.monotonic() + 1.5 * looking.runner.settings.lease_s
        wait_until(lambda: should_stop() or time.monotonic() > until, what="the end of the first lease")

    slept: list[bool] = []
    set_lease(looking, 3.0)
    looking.engine = lambda: Patient(looking.database, job, outlast_the_lease)
    job = make_job(looking.database, MANY, per_chunk=4)
    looking.runner.work()
    assert slept
    assert {epoch for _, epoch in held(looking.database, job)} == {1}


def test_lost_reservation_is_found_when_its_turn_comes_and_its_pages_are_dropped(
    looking: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = looking.runner.ahead.take_up
    stolen: list[int] = []

    def take_up() -> Claim | None:
        claim = looking.runner.ahead._reserved
        if claim is not None and not stolen:
            stolen.append(claim.chunk_key)
            looking.database.transact(partial(ahead.give_back, claim=claim))
            other = take(looking.database, make_worker(looking.database, "other", kinds=("summarize",)))
            assert other is not None
            end(looking.database, other)
        return real()

    monkeypatch.setattr(looking.runner.ahead, "take_up", take_up)
    looking.engine = lambda: Patient(looking.database, job)
    job = make_job(looking.database, MANY, per_chunk=4)
    looking.runner.work()
    assert stolen == [chunk_rows_of(looking.database, job)[1]["key"]]
    assert held(looking.database, job)[:2] == [("done", 1), ("done", 2)]
    assert {chunk["failures"] for chunk in chunk_rows_of(looking.database, job)} == {0}
    row = job_row(looking.database, job)
    assert (row["state"], row["succeeded"]) == ("completed", 16)
    assert check(looking.database) == []


@pytest.mark.parametrize("lost", ["claim_ahead", "begin"])
def test_lost_answer_to_a_reservation_or_its_begin_is_settled_before_the_next_claim(
    looking: Bench, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    real, step = looking.database.transact, getattr(ahead, lost)
    # The heart beats in a thread of its own.
    mine = threading.local()
    unanswered: list[object] = []

    def noting(*asked: Any, **named: Any) -> object:
        mine.made = step(*asked, **named)
        return mine.made

    def lossy(work: Callable[..., object]) -> object:
        mine.made = None
        answer = real(work)
        if mine.made and not unanswered:
            unanswered.append(answer)
            raise StoreUnavailable("the answer to COMMIT was lost")
        return answer

    monkeypatch.setattr(ahead, lost, noting)
    monkeypatch.setattr(looking.database, "transact", lossy)
    monkeypatch.setattr(summarize, "SHORT_S", 60.0)
    looking.engine = lambda: Patient(looking.database, job)
    job = make_job(looking.database, MANY, per_chunk=4)
    looking.runner.work()
    assert unanswered
    rows = chunk_rows_of(looking.database, job)
    # The second chunk begins with the third one reserved behind it.
    assert [chunk["epoch"] for chunk in rows] == [1, 2, 2 if lost == "begin" else 1, 1]
    assert {(chunk["failures"], chunk["crashes"]) for chunk in rows} == {(0, 0)}
    assert job_row(looking.database, job)["generated"] == 16
    assert check(looking.database) == []


def test_worker_that_loses_its_running_chunk_gives_the_reserved_one_back(looking: Bench) -> None:
    def lose(_: object) -> None:
        lost.append(True)
        assert looking.heartbeat._watch is not None
        looking.heartbeat._watch.stop(LeaseLost())

    lost: list[bool] = []
    looking.engine = lambda: Patient(looking.database, job, lose)
    job = make_job(looking.database, MANY, per_chunk=4)
    looking.runner.work()
    assert lost
    rows = chunk_rows_of(looking.database, job)
    assert [(chunk["epoch"], chunk["crashes"]) for chunk in rows[:2]] == [(2, 0), (2, 0)]
    assert job_row(looking.database, job)["succeeded"] == 16


def test_chunk_that_fails_leaves_the_reserved_one_to_its_turn(looking: Bench) -> None:
    def fail(_: object) -> None:
        raise KeyError("a bug")

    looking.engine = lambda: Patient(looking.database, job, fail)
    job = make_job(looking.database, MANY, per_chunk=4)
    work_until_completed(looking, job)
    rows = chunk_rows_of(looking.database, job)
    assert [(chunk["epoch"], chunk["failures"]) for chunk in rows[:2]] == [(2, 1), (1, 0)]
    assert job_row(looking.database, job)["succeeded"] == 16


@pytest.mark.parametrize(("seconds_per_row", "is_asked"), [(0.1, True), (0.4, False), (0.001, False)])
def test_next_chunk_is_asked_for_only_when_little_work_is_left(
    looking: Bench, monkeypatch: pytest.MonkeyPatch, seconds_per_row: float, *, is_asked: bool
) -> None:
    monkeypatch.setattr(outlook, "AHEAD_S", 0.3)
    monkeypatch.setattr(outlook, "LEAST_S", 0.25)
    looking.engine = lambda: FakeEngine(max_rows=1, seconds_per_row=seconds_per_row)
    job = make_job(looking.database, MANY, per_chunk=4)
    claim = take(looking.database, looking.runner.claimant)
    assert claim is not None
    looking.handler.run(claim, Watch(claim, write_until=float("inf"), drain=threading.Event()))
    # Of the slow one even the last row is more than that; the fast one is through before it could ask.
    assert (("reserved", 1) in held(looking.database, job)) == is_asked


def test_bell_is_passed_on_when_a_chunk_is_claimed_ahead(looking: Bench, redis_url: str) -> None:
    # Nobody else may ring.
    looking.heartbeat.stop()
    looking.engine = lambda: Patient(looking.database, job)
    job = make_job(looking.database, MANY, per_chunk=2)
    claim = take(looking.database, looking.runner.claimant)
    assert claim is not None
    make_worker(looking.database, "idle")
    bells = Bells(redis_url, "test:")
    assert bells.waiting("summarize") == 0
    looking.handler.run(claim, Watch(claim, write_until=float("inf"), drain=threading.Event()))
    assert ("reserved", 1) in held(looking.database, job)
    assert bells.waiting("summarize") == 1
    bells.close()


def test_pages_of_the_running_chunk_are_read_before_the_next_chunk_is_asked_for(looking: Bench) -> None:
    asked: list[bool] = []

    class Noting(Patient):
        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            asked.append(("reserved", 1) in held(looking.database, job))
            return super()._encode(texts, limit)

    looking.engine = lambda: Noting(looking.database, job)
    job = make_job(looking.database, [f"dialogue number {number:02}" for number in range(48)], per_chunk=12)
    claim = take(looking.database, looking.runner.claimant)
    assert claim is not None
    looking.handler.run(claim, Watch(claim, write_until=float("inf"), drain=threading.Event()))
    wait_until(lambda: len(asked) == 4, what="the first page of the next chunk")
    # Three pages of its own, and behind them the first one of the next chunk.
    assert asked == [False, False, False, True]


# Chunks that are over too soon to claim the next one beside them.


@pytest.fixture
def hasty(looking: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A worker that never claims ahead while a chunk runs."""
    monkeypatch.setattr(outlook, "LEAST_S", 60.0)
    monkeypatch.setattr(summarize, "SHORT_S", 60.0)
    return looking


def note_begins(bench: Bench, monkeypatch: pytest.MonkeyPatch, note: Callable[[Claim], None]) -> None:
    """Let this be called when a chunk has been claimed and is about to run."""
    real = bench.runner.run

    def run(chunk: Claim, *, requested_at: float) -> None:
        note(chunk)
        real(chunk, requested_at=requested_at)

    monkeypatch.setattr(bench.runner, "run", run)


def note_states(bench: Bench, monkeypatch: pytest.MonkeyPatch, job: int) -> list[list[str]]:
    noted: list[list[str]] = []
    note_begins(bench, monkeypatch, lambda _: noted.append([state for state, _ in held(bench.database, job)]))
    return noted


def test_short_chunk_begins_with_the_next_one_reserved_behind_it(hasty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(hasty.database, MANY, per_chunk=4)
    noted = note_states(hasty, monkeypatch, job)
    hasty.runner.work()
    assert noted == [
        # Of the first nothing is known yet.
        ["running", "queued", "queued", "queued"],
        ["done", "running", "reserved", "queued"],
        # The last one as well: there is no other worker that could run it sooner.
        ["done", "done", "running", "reserved"],
        ["done", "done", "done", "running"],
    ]
    assert {epoch for _, epoch in held(hasty.database, job)} == {1}
    assert job_row(hasty.database, job)["succeeded"] == 16
    assert check(hasty.database) == []


def test_nothing_is_reserved_behind_a_chunk_that_may_last(hasty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summarize, "SHORT_S", 0.0)
    job = make_job(hasty.database, MANY, per_chunk=4)
    noted = note_states(hasty, monkeypatch, job)
    hasty.runner.work()
    assert len(noted) == 4
    assert {state for states in noted for state in states} == {"queued", "running", "done"}


def test_chunks_of_one_job_tell_nothing_about_those_of_another(hasty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    noted: list[list[str]] = []

    def note(_: Claim) -> None:
        if made:
            noted.append([state for state, _ in held(hasty.database, made[0])])
        else:
            made.append(make_job(hasty.database, TEXTS, per_chunk=2, priority=9))

    make_job(hasty.database, MANY, per_chunk=2)
    note_begins(hasty, monkeypatch, note)
    hasty.runner.work()
    assert noted[:2] == [["running", "queued", "queued", "queued"], ["done", "running", "reserved", "queued"]]


def test_short_chunk_does_not_begin_with_one_of_another_job_behind_it(
    hasty: Bench, monkeypatch: pytest.MonkeyPatch, other_tenant: int
) -> None:
    theirs: list[int] = []
    noted: list[tuple[str, list[str]]] = []

    def note(_: Claim) -> None:
        noted.append((held(hasty.database, mine)[2][0], [state for job in theirs for state, _ in held(hasty.database, job)]))
        if len(noted) == 2:
            theirs.append(make_job(hasty.database, TEXTS, per_chunk=2, tenant_key=other_tenant))
            tick(hasty.database)

    mine = make_job(hasty.database, MANY, per_chunk=2)
    note_begins(hasty, monkeypatch, note)
    hasty.runner.work()
    # Theirs come first, since their tenant has nothing, but the third of ours had been reserved by then.
    assert noted[1:4] == [("reserved", []), ("running", ["queued"] * 4), ("done", ["running", *["queued"] * 3])]


def test_nothing_is_reserved_behind_the_successor_of_a_chunk_that_failed(hasty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailsOnce(FakeEngine):
        def _forward(self, *args: Any) -> list[Outcome] | None:
            if len(noted) == 2 and not failed:
                failed.append(True)
                raise KeyError("a bug")
            return super()._forward(*args)

    failed: list[bool] = []
    hasty.engine = lambda: FailsOnce(max_rows=1)
    job = make_job(hasty.database, MANY, per_chunk=2)
    noted = note_states(hasty, monkeypatch, job)
    hasty.runner.work()
    assert [states[:4] for states in noted[1:3]] == [
        ["done", "running", "reserved", "queued"],
        ["done", "queued", "running", "queued"],
    ]


def record_behind_the_reader(bench: Bench, monkeypatch: pytest.MonkeyPatch, first_looks: Sequence[object]) -> None:
    """Write down what a chunk of four has only when its successor, if one is reserved, was looked at too.

    With an engine that takes no time it may be over before the reader's thread begins, which then has nothing to do any more.
    """

    def wait(name: str, *, claim: Claim, **_: object) -> None:
        if name == "record.begun" and bench.runner.ahead.is_held:
            wait_until(lambda: len(first_looks) >= claim.first_rank // 4 + 2, what="a look at the next chunk")

    monkeypatch.setattr("workers.handlers.recording.point", wait)


def test_first_page_behind_a_short_chunk_is_read_while_it_runs(hasty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Noting(FakeEngine):
        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            assert len(texts) == 4
            read.append(threading.current_thread().name[:6])
            return super()._encode(texts, limit)

    hasty.engine = lambda: Noting(max_rows=2)
    job = make_job(hasty.database, MANY, per_chunk=4)
    record_behind_the_reader(hasty, monkeypatch, read)
    hasty.runner.work()
    assert read == ["MainTh", "MainTh", "reader", "reader"]
    assert job_row(hasty.database, job)["succeeded"] == 16


def test_first_page_behind_a_short_chunk_of_summaries_that_exist_is_looked_up_while_it_runs(
    hasty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pages.load_pending
    looked: list[tuple[str, int]] = []

    def load_pending(connection: Connection, claim: Claim, **asked: Any) -> list[Unit]:
        looked.append((threading.current_thread().name[:6], claim.first_rank))
        return real(connection, claim, **asked)

    make_job(hasty.database, MANY, per_chunk=4)
    hasty.runner.work()
    monkeypatch.setattr(pages, "load_pending", load_pending)
    record_behind_the_reader(hasty, monkeypatch, looked)
    again = make_job(hasty.database, MANY, per_chunk=4)
    hasty.runner.work()
    assert looked == [("MainTh", 0), ("MainTh", 4), ("reader", 8), ("reader", 12)]
    row = job_row(hasty.database, again)
    assert (row["state"], row["shared"], row["generated"]) == ("completed", 16, 0)


def test_chunk_reserved_behind_a_short_one_has_a_lease_of_five_seconds(hasty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    leases: list[float] = []

    def note(_: Claim) -> None:
        found = chunk_rows_of(hasty.database, job)
        leases.extend(row["lease_until"] - row["started_at"] for row in found if row["state"] == "reserved")

    job = make_job(hasty.database, MANY, per_chunk=4)
    note_begins(hasty, monkeypatch, note)
    hasty.runner.work()
    assert [round(lease, 1) for lease in leases] == [5.0, 5.0]


def test_chunk_reserved_behind_one_that_was_to_be_short_is_let_go_when_that_lasts(
    hasty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lasting(FakeEngine):
        def _forward(self, *args: Any) -> list[Outcome] | None:
            if held(hasty.database, job)[2][0] == "reserved" and not lasted:
                lasted.append(True)
                wait_until(is_no_longer_renewed, what="a renewal of the running chunk alone")
                assert hasty.database.transact(end_reservation) == 1
            return super()._forward(*args)

    def is_no_longer_renewed() -> bool:
        running, reserved = chunk_rows_of(hasty.database, job)[1:3]
        renewed_after_s = running["lease_until"] - running["started_at"] - hasty.runner.settings.lease_s
        return bool(renewed_after_s > expected_s and reserved["lease_until"] < running["lease_until"])

    def end_reservation(connection: Connection) -> int:
        connection.execute(update(chunks).where(chunks.c.state == "reserved").values(lease_until=db_now() - 1))
        return crashes.reap(connection, budgets=BUDGETS)

    expected_s = 0.6
    lasted: list[bool] = []
    monkeypatch.setattr("workers.ahead.EXPECTED_S", expected_s)
    hasty.engine = lambda: Lasting(max_rows=1)
    job = make_job(hasty.database, MANY, per_chunk=4)
    hasty.runner.work()
    assert lasted
    rows = chunk_rows_of(hasty.database, job)
    assert [(chunk["epoch"], chunk["crashes"]) for chunk in rows] == [(1, 0), (1, 0), (2, 0), (1, 0)]
    assert job_row(hasty.database, job)["succeeded"] == 16


@pytest.mark.parametrize("is_anybody_idle", [True, False])
def test_bell_is_passed_on_when_a_short_chunk_begins_and_somebody_is_idle(
    hasty: Bench, monkeypatch: pytest.MonkeyPatch, *, is_anybody_idle: bool
) -> None:
    events: list[str] = []
    monkeypatch.setattr("workers.runner.pass_the_bell_on", lambda *_: events.append("bell"))
    note_begins(hasty, monkeypatch, lambda chunk: events.append("taken up" if chunk is hasty.runner._taken_up else "claimed"))
    if is_anybody_idle:
        make_worker(hasty.database, "idle")
    make_job(hasty.database, MANY, per_chunk=2)
    hasty.runner.work()
    assert events.count("taken up") > 2
    assert events.pop() == "bell", "an empty claim passes it on"
    for what, follows in zip(events, [*events[1:], "end"], strict=True):
        if what != "bell":
            assert (follows == "bell") == (what == "claimed" or is_anybody_idle)

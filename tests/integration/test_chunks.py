"""The life of a chunk after its claim, and the fence around it."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

import pytest
from sqlalchemy import Connection, event, func, insert, select

from gistmill.control import Missing, cancel, retry
from gistmill.db import chunks as chunk_rows
from gistmill.db import crashes, retrying
from gistmill.db.check import check
from gistmill.db.chunks import Budgets
from gistmill.db.claim import Claim
from gistmill.db.clock import db_now
from gistmill.db.results import Lost, find_generations, record
from gistmill.db.session import Database
from gistmill.db.tables import generations, recipes, results, tenants
from gistmill.errors import (
    DeviceOutOfMemory,
    GistmillError,
    InputTooLong,
    JobEnded,
    JobIsOver,
    JobNotOver,
    LeaseLost,
    StoreUnavailable,
    UnknownJob,
)
from gistmill.specs import SummarizeSpec
from gistmill.submit import submit_job
from tests.support.hands import claimed, made, pending
from tests.support.invariants import assert_ends_are_counted
from tests.support.jobs import chunk_rows_of, expire_leases, first_tenant, job_row, make_dataset, make_job
from tests.support.servers import wait_until

TEXTS = [f"dialogue number {number}" for number in range(6)]
BUDGETS = Budgets(max_failures=3, max_crashes=3, retry_base_s=0.0)


@dataclass(frozen=True)
class AnyModel:
    """A model version that has no row."""

    key: int | None = None
    digest: str = "b" * 64


def write_all(database: Database, claim: Claim) -> None:
    units = pending(database, claim)
    database.transact(lambda connection: record(connection, claim, made=[made(unit) for unit in units]))


def stored_summaries(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(generations)).scalar_one())


def test_last_chunk_ends_the_job_and_counts_equal_rows(database: Database) -> None:
    job = make_job(database, [*TEXTS, *TEXTS[:2]], per_chunk=3)
    for name in ("w1", "w2"):
        claim = claimed(database, name)
        write_all(database, claim)
        database.transact(lambda connection, claim=claim: chunk_rows.finish(connection, claim))
    row = job_row(database, job)
    assert (row["state"], row["succeeded"], row["generated"], row["shared"], row["not_run"]) == ("completed", 8, 6, 2, 0)
    assert row["arrival"] == 2
    assert check(database) == []


def test_last_two_chunks_that_finish_at_once_end_the_job_once(database: Database) -> None:
    for _ in range(5):
        job = make_job(database, TEXTS, per_chunk=3)
        claims = [claimed(database, f"{job}-{number}") for number in range(2)]
        for claim in claims:
            write_all(database, claim)
        barrier = threading.Barrier(2)

        def finish(claim: Claim, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            database.transact(lambda connection: chunk_rows.finish(connection, claim))

        threads = [threading.Thread(target=finish, args=(claim,)) for claim in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        row = job_row(database, job)
        assert (row["state"], row["chunks_left"]) == ("completed", 0)


def test_chunk_of_which_sql_lost_an_end_is_given_back_and_looked_at_again(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = pending(database, claim)
    # The rest was answered too, but went with the disk of a server from which another one took over.
    database.transact(lambda connection: record(connection, claim, made=[made(unit) for unit in units[:4]]))
    database.transact(lambda connection: chunk_rows.finish(connection, claim, ended=6))
    [chunk] = chunk_rows_of(database, job)
    assert (chunk["state"], chunk["owner"], chunk["failures"], chunk["crashes"]) == ("queued", None, 0, 0)
    again = claimed(database, "w2")
    assert len(pending(database, again)) == 2
    write_all(database, again)
    database.transact(lambda connection: chunk_rows.finish(connection, again, ended=2))
    row = job_row(database, job)
    assert (row["state"], row["succeeded"], row["not_run"]) == ("completed", 6, 0)
    assert_ends_are_counted(database)


@pytest.mark.usefixtures("few_are_many")
def test_ends_are_counted_as_they_are_really_written(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = pending(database, claim)
    database.transact(lambda connection: record(connection, claim, made=[made(unit) for unit in units[:4]]))
    # As after a lost answer: four of these have their end already.
    database.transact(lambda connection: record(connection, claim, made=[made(unit) for unit in units]))
    assert [chunk["ended"] for chunk in chunk_rows_of(database, job)] == [6]
    database.transact(lambda connection: chunk_rows.release(connection, claim))
    claimed(database, "w2")
    assert [chunk["ended"] for chunk in chunk_rows_of(database, job)] == [0]
    assert_ends_are_counted(database)


def test_ends_of_a_transaction_that_was_undone_are_not_counted(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = pending(database, claim)

    def write_and_lose(connection: Connection) -> None:
        record(connection, claim, made=[made(unit) for unit in units])
        raise StoreUnavailable("The connection broke before COMMIT.")

    with pytest.raises(StoreUnavailable):
        database.transact(write_and_lose)
    database.transact(lambda connection: chunk_rows.finish(connection, claim, ended=6))
    assert [(chunk["state"], chunk["ended"]) for chunk in chunk_rows_of(database, job)] == [("queued", 0)]


def test_zombie_writes_nothing_after_its_lease_was_reaped(database: Database) -> None:
    job = make_job(database, TEXTS)
    zombie = claimed(database, "zombie")
    units = pending(database, zombie)
    expire_leases(database)
    assert database.transact(lambda connection: crashes.reap(connection, BUDGETS)) == 1
    heir = claimed(database, "heir")
    assert heir.epoch == zombie.epoch + 1
    for write in (
        lambda connection: record(connection, zombie, made=[made(unit) for unit in units]),
        lambda connection: chunk_rows.finish(connection, zombie),
        lambda connection: chunk_rows.finish(connection, zombie, ended=0),
        lambda connection: chunk_rows.finish(connection, zombie, ended=6),
        lambda connection: chunk_rows.release(connection, zombie),
        lambda connection: chunk_rows.fail(connection, zombie, GistmillError("x"), BUDGETS),
        lambda connection: chunk_rows.fail_job(connection, zombie, GistmillError("x")),
        lambda connection: chunk_rows.close(connection, zombie),
    ):
        with pytest.raises(LeaseLost):
            database.transact(write)
    assert not database.transact(lambda connection: chunk_rows.renew(connection, zombie, lease_s=30))
    assert stored_summaries(database) == 0
    assert job_row(database, job)["succeeded"] == 0
    assert database.transact(lambda connection: chunk_rows.renew(connection, heir, lease_s=30))


def test_lease_that_was_renewed_is_not_reaped(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    expire_leases(database)
    database.transact(lambda connection: chunk_rows.renew(connection, claim, lease_s=30))
    assert database.transact(lambda connection: crashes.reap(connection, BUDGETS)) == 0
    assert chunk_rows_of(database, job)[0]["epoch"] == 1


def test_graceful_release_costs_neither_budget(database: Database) -> None:
    job = make_job(database, TEXTS)
    for number in range(5):
        claim = claimed(database, f"w{number}")
        database.transact(lambda connection, claim=claim: chunk_rows.release(connection, claim))
    chunk = chunk_rows_of(database, job)[0]
    assert (chunk["state"], chunk["epoch"], chunk["failures"], chunk["crashes"]) == ("queued", 5, 0, 0)


def test_failures_are_retried_and_then_written_to_the_remaining_items(database: Database) -> None:
    job = make_job(database, TEXTS)
    for number in range(3):
        claim = claimed(database, f"w{number}")
        database.transact(lambda connection, claim=claim: chunk_rows.fail(connection, claim, GistmillError("boom"), BUDGETS))
    row = job_row(database, job)
    assert (row["state"], row["failed"]) == ("completed", 6)
    with database.read() as connection:
        message = connection.execute(select(results.c.error_message)).scalars().first()
    assert message is not None
    assert "boom" in message
    assert check(database) == []


def test_bad_item_fails_alone(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    good, bad = pending(database, claim)[:2]
    lost = [Lost(bad, InputTooLong())]
    database.transact(lambda connection: record(connection, claim, made=[made(good)], lost=lost))
    row = job_row(database, job)
    assert (row["succeeded"], row["failed"]) == (1, 1)
    assert {unit.dialogue_key for unit in pending(database, claim)}.isdisjoint({good.dialogue_key, bad.dialogue_key})


@pytest.mark.usefixtures("few_are_many")
def test_equal_work_is_stored_once_and_both_jobs_point_at_it(database: Database) -> None:
    first, second = make_job(database, TEXTS), make_job(database, TEXTS)
    claims = [claimed(database, "w1"), claimed(database, "w2")]
    for claim in claims:
        write_all(database, claim)
    assert stored_summaries(database) == 6
    assert (job_row(database, first)["generated"], job_row(database, first)["shared"]) == (6, 0)
    assert (job_row(database, second)["generated"], job_row(database, second)["shared"]) == (0, 6)
    assert check(database) == []


@pytest.mark.usefixtures("few_are_many")
def test_two_workers_that_insert_the_same_generations_at_once_do_not_deadlock(database: Database) -> None:
    keys = [make_job(database, TEXTS) for _ in range(4)]
    claims = [claimed(database, f"w{number}") for number in range(4)]
    threads = [threading.Thread(target=write_all, args=(database, claim)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored_summaries(database) == 6
    assert sum(job_row(database, key)["generated"] for key in keys) == 6
    assert sum(job_row(database, key)["succeeded"] for key in keys) == 24


def test_truncated_generation_is_not_shared_with_a_job_that_wants_none(database: Database) -> None:
    make_job(database, TEXTS[:1])
    claim = claimed(database, "w1")
    units = pending(database, claim)
    database.transact(lambda connection: record(connection, claim, made=[made(units[0], truncated=True)]))
    with database.read() as connection:
        assert find_generations(connection, claim, units, with_truncated=False) == []
        assert len(find_generations(connection, claim, units, with_truncated=True)) == 1


def test_cancel_closes_queued_chunks_and_the_worker_closes_its_own(database: Database) -> None:
    job = make_job(database, TEXTS, per_chunk=2)
    claim = claimed(database, "w1")
    write_all(database, claim)
    tenant = first_tenant(database)
    cancel(database, tenant, job_row(database, job)["id"])
    assert job_row(database, job)["state"] == "cancelling"
    with database.read() as connection:
        wish = chunk_rows.read_wish(connection, claim)
    assert (wish.is_owned, wish.job_state) == (True, "cancelling")
    database.transact(lambda connection: chunk_rows.close(connection, claim))
    row = job_row(database, job)
    assert (row["state"], row["succeeded"], row["not_run"], row["chunks_left"]) == ("cancelled", 2, 4, 0)
    assert check(database) == []
    cancel(database, tenant, row["id"])  # A second cancel changes nothing.


def test_chunk_released_under_a_cancelled_job_is_closed_and_not_queued(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    cancel(database, first_tenant(database), job_row(database, job)["id"])
    database.transact(lambda connection: chunk_rows.release(connection, claim))
    assert job_row(database, job)["state"] == "cancelled"


def test_nothing_is_recorded_under_a_job_that_failed(database: Database) -> None:
    job = make_job(database, TEXTS, per_chunk=3)
    first, second = claimed(database, "w1"), claimed(database, "w2")
    units = pending(database, second)
    database.transact(lambda connection: chunk_rows.fail_job(connection, first, GistmillError("unreadable")))
    with pytest.raises(JobEnded):
        database.transact(lambda connection: record(connection, second, made=[made(unit) for unit in units]))
    database.transact(lambda connection: chunk_rows.close(connection, second))
    row = job_row(database, job)
    assert (row["state"], row["not_run"], row["chunks_left"]) == ("failed", 6, 0)
    assert row["error"]["message"] == "unreadable"
    assert stored_summaries(database) == 0


def test_cancel_of_an_unknown_or_ended_job_says_so(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    write_all(database, claim)
    database.transact(lambda connection: chunk_rows.finish(connection, claim))
    tenant = first_tenant(database)
    with pytest.raises(JobIsOver):
        cancel(database, tenant, job_row(database, job)["id"])
    with pytest.raises(UnknownJob):
        cancel(database, tenant, "job_none")


def test_worker_in_doubt_gives_back_what_carries_its_uuid(database: Database) -> None:
    job = make_job(database, TEXTS, per_chunk=3)
    claimed(database, "w1")
    claimed(database, "w2")
    assert database.transact(lambda connection: chunk_rows.release_owned(connection, "w1")) == 1
    assert [chunk["state"] for chunk in chunk_rows_of(database, job)] == ["queued", "running"]
    assert [chunk["crashes"] for chunk in chunk_rows_of(database, job)] == [0, 0]


def test_later_attempt_replaces_an_error_and_counts_it_once(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = pending(database, claim)
    lost = [Lost(unit, InputTooLong()) for unit in units]
    database.transact(lambda connection: record(connection, claim, lost=lost))
    again = Claim(**{**claim.__dict__, "attempt": 2})
    assert len(pending(database, again)) == 6
    database.transact(lambda connection: record(connection, again, made=[made(unit) for unit in units]))
    row = job_row(database, job)
    assert (row["succeeded"], row["failed"]) == (6, 0)
    assert pending(database, again) == []


def test_result_names_its_chunk_its_epoch_and_when_it_replaced_an_error_a_new_arrival(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = pending(database, claim)
    database.transact(lambda connection: record(connection, claim, lost=[Lost(units[0], InputTooLong())]))
    database.transact(lambda connection: record(connection, claim, made=[made(unit) for unit in units[1:]]))
    again = Claim(**{**claim.__dict__, "attempt": 2})
    database.transact(lambda connection: record(connection, again, made=[made(units[0])]))
    with database.read() as connection:
        stored = connection.execute(select(results).where(results.c.job_key == job)).all()
    assert {(row.chunk_key, row.epoch) for row in stored} == {(claim.chunk_key, claim.epoch)}
    assert {row.arrival for row in stored if row.row_number in units[0].rows} == {3}


def test_owner_of_a_chunk_that_was_taken_back_writes_nothing_before_it_is_claimed(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = pending(database, claim)
    expire_leases(database)
    assert database.transact(lambda connection: crashes.reap(connection, BUDGETS)) == 1
    with pytest.raises(LeaseLost):
        database.transact(lambda connection: record(connection, claim, made=[made(unit) for unit in units]))
    assert not database.transact(lambda connection: chunk_rows.renew(connection, claim, lease_s=30))
    assert stored_summaries(database) == job_row(database, job)["succeeded"] == 0


@pytest.mark.usefixtures("few_are_many")
def test_first_end_of_an_item_in_an_attempt_stands(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = pending(database, claim)
    database.transact(lambda connection: record(connection, claim, lost=[Lost(unit, InputTooLong()) for unit in units]))
    again = database.transact(lambda connection: record(connection, claim, made=[made(unit) for unit in units]))
    assert (again.succeeded, again.failed) == (0, 0)
    assert (job_row(database, job)["succeeded"], job_row(database, job)["failed"]) == (0, 6)
    assert check(database) == []


@pytest.mark.usefixtures("few_are_many")
def test_summary_is_never_replaced(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = pending(database, claim)
    write_all(database, claim)
    later = Claim(**{**claim.__dict__, "attempt": 2})
    database.transact(lambda connection: record(connection, later, lost=[Lost(unit, InputTooLong()) for unit in units]))
    assert (job_row(database, job)["succeeded"], job_row(database, job)["failed"]) == (6, 0)
    assert check(database) == []


def test_items_that_fail_again_with_their_chunk_count_once(database: Database) -> None:
    job = make_job(database, TEXTS)
    for attempt in (1, 2):
        claim = claimed(database, f"w{attempt}")
        last = Budgets(max_failures=1)
        database.transact(
            lambda connection, claim=claim, last=last: chunk_rows.fail(connection, claim, GistmillError("boom"), last)
        )
        assert (job_row(database, job)["state"], job_row(database, job)["failed"]) == ("completed", 6)
        assert check(database) == []
        retry(database, first_tenant(database), job_row(database, job)["id"])


def test_retry_keeps_the_epochs_of_its_chunks(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    database.transact(lambda connection: chunk_rows.fail(connection, claim, GistmillError("boom"), Budgets(max_failures=1)))
    retry(database, first_tenant(database), job_row(database, job)["id"])
    assert claimed(database, "w2").epoch == claim.epoch + 1


def test_lease_follows_the_clock_of_the_database_whatever_the_host_believes(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(database, TEXTS)

    def left_s() -> float:
        lease_until: float = chunk_rows_of(database, job)[0]["lease_until"]
        with database.read() as connection:
            return lease_until - connection.execute(select(db_now())).scalar_one()

    monkeypatch.setattr("time.time", lambda: 1.0)
    claim = claimed(database, "w1")
    assert 0 < left_s() <= 30
    assert database.transact(lambda connection: chunk_rows.renew(connection, claim, lease_s=300))
    assert 200 < left_s() <= 300


def test_time_of_the_database_goes_on_within_a_transaction(database: Database) -> None:
    with database.read() as connection:
        first = connection.execute(select(db_now())).scalar_one()
        wait_until(lambda: connection.execute(select(db_now())).scalar_one() > first, timeout_s=5)


def test_being_claimed_often_uses_up_neither_budget(database: Database) -> None:
    job = make_job(database, TEXTS[:1])
    for number in range(5):
        claim = claimed(database, f"w{number}")
        database.transact(lambda connection, claim=claim: chunk_rows.release(connection, claim))
    failing = claimed(database, "failing")
    database.transact(lambda connection: chunk_rows.fail(connection, failing, GistmillError("x"), BUDGETS))
    claimed(database, "dying")
    database.transact(lambda connection: crashes.bury(connection, "dying", BUDGETS))
    (chunk,) = chunk_rows_of(database, job)
    assert (chunk["state"], chunk["epoch"], chunk["failures"], chunk["crashes"]) == ("queued", 7, 1, 1)


def test_error_of_one_job_leaves_the_item_pending_in_another(database: Database) -> None:
    make_job(database, TEXTS)
    second = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    lost = [Lost(unit, InputTooLong()) for unit in pending(database, claim)]
    database.transact(lambda connection: record(connection, claim, lost=lost))
    other = claimed(database, "w2")
    assert other.job_key == second
    assert len(pending(database, other)) == 6


def test_recipes_of_two_tenants_are_two(database: Database) -> None:
    mine = first_tenant(database)
    theirs = database.transact(
        lambda connection: connection.execute(insert(tenants).values(name="other").returning(tenants.c.key)).scalar_one()
    )
    for tenant in (mine, theirs, theirs):
        make_dataset(database, TEXTS, tenant_key=tenant)
        spec = SummarizeSpec(dataset="test", model="tiny")
        submit_job(database, tenant, spec, resolve_model=lambda _name: AnyModel())  # type: ignore[arg-type]
    with database.read() as connection:
        owners = connection.execute(select(recipes.c.tenant_key).order_by(recipes.c.key)).scalars().all()
    assert list(owners) == [mine, theirs]


def test_micro_batch_writes_in_one_order(database: Database) -> None:
    make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = pending(database, claim)
    written: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if found := re.match(r'\s*(?:INSERT INTO|UPDATE) "?(\w+)', statement):
            written.append(found[1])

    event.listen(database.engine, "before_cursor_execute", note)
    lost = [Lost(units[0], InputTooLong())]
    database.transact(lambda connection: record(connection, claim, made=[made(unit) for unit in units[1:]], lost=lost))
    assert written == ["chunks", "generations", "jobs", "results", "jobs"]


def test_generations_are_inserted_in_the_order_of_their_keys(database: Database) -> None:
    make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = sorted(pending(database, claim), key=lambda unit: -unit.dialogue_key)
    database.transact(lambda connection: record(connection, claim, made=[made(unit) for unit in units]))
    with database.read() as connection:
        stored = connection.execute(select(generations.c.dialogue_key).order_by(generations.c.key)).scalars().all()
    assert list(stored) == sorted(unit.dialogue_key for unit in units)


def test_retry_of_some_codes_leaves_other_errors_of_the_same_chunk(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    units = pending(database, claim)
    lost = [Lost(units[0], InputTooLong()), Lost(units[1], DeviceOutOfMemory())]
    database.transact(lambda connection: record(connection, claim, made=[made(unit) for unit in units[2:]], lost=lost))
    database.transact(lambda connection: chunk_rows.finish(connection, claim))
    assert retry(database, first_tenant(database), job_row(database, job)["id"], Missing(retryable=True)) == 1
    assert pending(database, claimed(database, "w2")) == [units[1]]


def test_retry_that_was_overtaken_is_refused(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    once = Budgets(max_failures=1)
    database.transact(lambda connection: chunk_rows.fail(connection, claim, GistmillError("boom"), once))
    with database.read() as connection:
        ended = retrying.get_ended(connection, first_tenant(database), job_row(database, job)["id"])
        keys = retrying.find_chunks(connection, ended, None)
    database.transact(lambda connection: retrying.reopen(connection, ended, keys, None))
    with pytest.raises(JobNotOver):
        database.transact(lambda connection: retrying.reopen(connection, ended, keys, None))
    assert (job_row(database, job)["attempt"], job_row(database, job)["chunks_left"]) == (2, 1)

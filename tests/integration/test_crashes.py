"""Chunks whose workers died: split until the dialogue that kills them stands alone."""

from __future__ import annotations

import math

from sqlalchemy import select

from gistmill.control import Missing, retry
from gistmill.db import chunks as chunk_rows
from gistmill.db import crashes
from gistmill.db.check import check
from gistmill.db.chunks import Budgets
from gistmill.db.pending import load_pending
from gistmill.db.results import Lost, record
from gistmill.db.session import Database
from gistmill.db.tables import dataset_rows, dialogues, results
from gistmill.errors import DeviceOutOfMemory
from tests.support.hands import claimed, made, pending
from tests.support.jobs import chunk_rows_of, expire_leases, first_tenant, job_row, make_job

TEXTS = [f"dialogue number {number:03}" for number in range(60)]
BUDGETS = Budgets(max_failures=3, max_crashes=3, retry_base_s=0.0)


def bury(database: Database, worker: str) -> None:
    database.transact(lambda connection: crashes.bury(connection, worker, BUDGETS))


def work_until_the_end(database: Database, job: int, poison: str, *, batch: int = 8) -> int:
    """Claim and work like workers that die of the poisoned dialogue; return how many died."""
    deaths = 0
    while job_row(database, job)["state"] not in ("completed", "failed"):
        worker = f"worker-{deaths}-{job_row(database, job)['succeeded']}-{len(chunk_rows_of(database, job))}"
        claim = claimed(database, worker)
        units = pending(database, claim)
        for start in range(0, len(units), batch):
            part = units[start : start + batch]
            if any(poison in unit.text for unit in part):
                deaths += 1
                bury(database, worker)
                break
            database.transact(
                lambda connection, part=part, claim=claim: record(connection, claim, made=[made(u) for u in part])
            )
        else:
            database.transact(lambda connection, claim=claim: chunk_rows.finish(connection, claim))
        assert check(database) == []
    return deaths


def test_crash_splits_the_unfinished_dialogues_in_two_halves_without_crashes(database: Database) -> None:
    job = make_job(database, TEXTS[:7])
    claim = claimed(database, "w1")
    bury(database, "w1")
    first, second = chunk_rows_of(database, job)
    assert (first["first_rank"], first["last_rank"], first["dialogues"]) == (0, 2, 3)
    assert (second["first_rank"], second["last_rank"], second["dialogues"]) == (3, 6, 4)
    assert {(chunk["state"], chunk["crashes"]) for chunk in (first, second)} == {("queued", 0)}
    assert first["epoch"] == claim.epoch
    row = job_row(database, job)
    assert (row["chunks"], row["chunks_left"]) == (2, 2)
    assert check(database) == []


def test_only_the_unfinished_dialogues_are_split(database: Database) -> None:
    job = make_job(database, TEXTS[:6])
    claim = claimed(database, "w1")
    done = [made(unit) for unit in pending(database, claim)[:4]]
    database.transact(lambda connection: record(connection, claim, made=done))
    bury(database, "w1")
    assert len(chunk_rows_of(database, job)) == 1
    claimed(database, "w2")
    bury(database, "w2")
    first, second = chunk_rows_of(database, job)
    assert (first["last_rank"], first["dialogues"]) == (4, 1)
    assert (second["first_rank"], second["dialogues"]) == (5, 1)


def test_dialogue_that_failed_between_the_two_halves_is_retried(database: Database) -> None:
    job = make_job(database, TEXTS[:6])
    claim = claimed(database, "w1")
    lost = [Lost(unit, DeviceOutOfMemory("x")) for unit in pending(database, claim)[2:4]]
    database.transact(lambda connection: record(connection, claim, lost=lost))
    bury(database, "w1")
    claimed(database, "w2")
    bury(database, "w2")
    assert [(chunk["first_rank"], chunk["last_rank"]) for chunk in chunk_rows_of(database, job)] == [(0, 1), (2, 5)]
    assert work_until_the_end(database, job, "deadly") == 0
    assert job_row(database, job)["failed"] == 2
    assert retry(database, first_tenant(database), job_row(database, job)["id"], Missing()) == 2
    assert work_until_the_end(database, job, "deadly") == 0
    row = job_row(database, job)
    assert (row["state"], row["succeeded"], row["failed"]) == ("completed", 6, 0)


def test_lost_epoch_with_progress_is_no_crash(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database, "w1")
    unit = pending(database, claim)[0]
    database.transact(lambda connection: record(connection, claim, made=[made(unit)]))
    bury(database, "w1")
    (chunk,) = chunk_rows_of(database, job)
    assert (chunk["state"], chunk["crashes"]) == ("queued", 0)


def test_expired_lease_splits_like_a_reported_death(database: Database) -> None:
    job = make_job(database, TEXTS)
    claimed(database, "w1")
    expire_leases(database)
    assert database.transact(lambda connection: crashes.reap(connection, BUDGETS)) == 1
    assert len(chunk_rows_of(database, job)) == 2


def test_poisoned_dialogue_is_isolated_and_fails_alone_after_three_crashes(database: Database) -> None:
    job = make_job(database, [*TEXTS, "deadly dialogue 010", "deadly dialogue 010"])
    deaths = work_until_the_end(database, job, "deadly")
    row = job_row(database, job)
    assert (row["state"], row["succeeded"], row["failed"]) == ("completed", 60, 2)
    # One death may follow progress in the same epoch at each size; each size is halved once; three are for the dialogue alone.
    assert deaths <= 2 * math.ceil(math.log2(61)) + 3
    with database.read() as connection:
        failed = (
            select(dialogues.c.text, results.c.error_code)
            .select_from(results)
            .join(dataset_rows, dataset_rows.c.row_number == results.c.row_number)
            .join(dialogues, dialogues.c.key == dataset_rows.c.dialogue_key)
            .where(results.c.error_code.is_not(None))
        )
        assert set(connection.execute(failed)) == {("deadly dialogue 010", "worker_crashed")}


def test_dialogue_alone_in_its_chunk_survives_two_crashes(database: Database) -> None:
    job = make_job(database, TEXTS[:1])
    for number in (1, 2):
        claimed(database, f"w{number}")
        bury(database, f"w{number}")
        (chunk,) = chunk_rows_of(database, job)
        assert (chunk["state"], chunk["crashes"]) == ("queued", number)
    claimed(database, "w3")
    bury(database, "w3")
    assert (job_row(database, job)["state"], job_row(database, job)["failed"]) == ("completed", 1)


def test_crash_under_a_cancelled_job_closes_the_chunk_and_splits_nothing(database: Database) -> None:
    job = make_job(database, TEXTS)
    claimed(database, "w1")
    database.transact(lambda connection: connection.exec_driver_sql("UPDATE jobs SET state = 'cancelling'"))
    bury(database, "w1")
    (chunk,) = chunk_rows_of(database, job)
    assert (chunk["state"], chunk["outcome"]) == ("done", "cancelled")
    row = job_row(database, job)
    assert (row["state"], row["not_run"]) == ("cancelled", 60)


def test_dialogue_that_failed_behind_the_last_unfinished_one_is_retried(database: Database) -> None:
    job = make_job(database, TEXTS[:6])
    claim = claimed(database, "w1")
    lost = [Lost(unit, DeviceOutOfMemory("x")) for unit in pending(database, claim)[5:]]
    database.transact(lambda connection: record(connection, claim, lost=lost))
    bury(database, "w1")
    claimed(database, "w2")
    bury(database, "w2")
    assert [chunk["last_rank"] for chunk in chunk_rows_of(database, job)] == [1, 5]
    assert work_until_the_end(database, job, "deadly") == 0
    assert retry(database, first_tenant(database), job_row(database, job)["id"], Missing()) == 1
    assert work_until_the_end(database, job, "deadly") == 0
    assert job_row(database, job)["succeeded"] == 6


def test_progress_forgets_earlier_crashes(database: Database) -> None:
    # One dialogue in several rows, each drawn anew: the only chunk that cannot be split and can still progress.
    job = make_job(database, [TEXTS[0]] * 3, spec={"generation": {"do_sample": True}})
    for number in (1, 2):
        claimed(database, f"w{number}")
        bury(database, f"w{number}")
    claim = claimed(database, "w3")
    with database.read() as connection:
        first = load_pending(connection, claim, limit=1000, is_sampling=True)[0]
    database.transact(lambda connection: record(connection, claim, made=[made(first)]))
    bury(database, "w3")
    claimed(database, "w4")
    bury(database, "w4")
    (chunk,) = chunk_rows_of(database, job)
    assert (chunk["state"], chunk["crashes"]) == ("queued", 1)


def test_reaper_asks_again_when_its_rows_have_come(database: Database) -> None:
    job = make_job(database, TEXTS)
    claimed(database, "w1")
    expire_leases(database)
    assert database.transact(lambda connection: crashes.reap(connection, BUDGETS, may_reap=lambda: False)) == 0
    assert chunk_rows_of(database, job)[0]["owner"] == "w1"


def test_death_of_a_worker_leaves_the_chunks_of_others(database: Database) -> None:
    job = make_job(database, TEXTS[:2], per_chunk=1)
    claimed(database, "w1")
    claimed(database, "w2")
    bury(database, "w1")
    assert [chunk["owner"] for chunk in chunk_rows_of(database, job)] == [None, "w2"]


def test_crash_costs_no_failure(database: Database) -> None:
    job = make_job(database, TEXTS[:1])
    for number in range(2):
        claimed(database, f"w{number}")
        bury(database, f"w{number}")
    chunk = chunk_rows_of(database, job)[0]
    assert (chunk["crashes"], chunk["failures"]) == (2, 0)

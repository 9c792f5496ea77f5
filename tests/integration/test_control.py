"""Pause, resume, cancel and retry: on one job, on a selection, and against claims and each other."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, update

from gistmill import control
from gistmill.control import JobSelection, Missing
from gistmill.control.retry import retryable_codes
from gistmill.db import chunks as chunk_rows
from gistmill.db import crashes, models
from gistmill.db.check import check
from gistmill.db.claim import Claim
from gistmill.db.results import Lost, Made, record
from gistmill.db.session import Database
from gistmill.db.tables import jobs, results
from gistmill.errors import (
    DeviceOutOfMemory,
    InputTooLong,
    InvalidSelection,
    InvalidSpec,
    ItemError,
    JobIsOver,
    JobNotOver,
    LeaseLost,
    NothingToRetry,
    UnknownJob,
)
from gistmill.submit import submit_retry
from tests.support.hands import Fails, claimed, end, made, nothing_fails, pending
from tests.support.jobs import chunk_rows_of, first_tenant, job_row, make_job, make_worker, take

TEXTS = [f"dialogue number {number:02}" for number in range(12)]


def id_of(database: Database, job: int) -> str:
    return str(job_row(database, job)["id"])


def run(database: Database, fails: Fails = nothing_fails) -> list[str]:
    """Work off everything that can be claimed; return the texts that were worked on."""
    worked: list[str] = []
    while (claim := take(database, make_worker(database, str(uuid.uuid4())))) is not None:
        worked += [unit.text for unit in pending(database, claim)]
        end(database, claim, fails)
    return worked


def two_errors(text: str) -> ItemError | None:
    return {"03": InputTooLong(), "07": DeviceOutOfMemory()}.get(text[-2:])


def codes_of(database: Database, job: int) -> list[str]:
    with database.read() as connection:
        query = select(results.c.error_code).where(results.c.job_key == job, results.c.error_code.is_not(None))
        return sorted(connection.execute(query).scalars())


def test_paused_job_hands_out_nothing_and_resume_rings_for_it(database: Database) -> None:
    job = make_job(database, TEXTS)
    tenant, job_id = first_tenant(database), id_of(database, job)
    control.pause(database, tenant, job_id)
    assert take(database, make_worker(database, "w1")) is None
    rung: list[str] = []
    control.resume(database, tenant, job_id, ring=rung.append)
    assert rung == ["summarize"]
    assert take(database, make_worker(database, "w2")) is not None


def test_pause_is_a_wish_that_the_owner_of_a_chunk_reads(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database)
    control.pause(database, first_tenant(database), id_of(database, job))
    wish = database.transact(lambda connection: chunk_rows.read_wish(connection, claim))
    assert (wish.is_owned, wish.job_state, wish.is_paused) == (True, "running", True)


def test_job_whose_chunks_are_all_done_ends_although_paused(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = claimed(database)
    control.pause(database, first_tenant(database), id_of(database, job))
    units = [made(unit) for unit in pending(database, claim)]
    database.transact(lambda connection: record(connection, claim, made=units))
    database.transact(lambda connection: chunk_rows.finish(connection, claim))
    assert job_row(database, job)["state"] == "completed"


def test_resume_ends_a_job_that_has_no_chunk_left(database: Database) -> None:
    job = make_job(database, TEXTS[:1], paused=True, chunks_left=0, state="running")
    control.resume(database, first_tenant(database), id_of(database, job))
    assert job_row(database, job)["state"] == "completed"


def test_ended_job_can_be_neither_paused_nor_resumed(database: Database) -> None:
    job = make_job(database, TEXTS)
    tenant, job_id = first_tenant(database), id_of(database, job)
    control.cancel(database, tenant, job_id)
    for steer in (control.pause, control.resume):
        with pytest.raises(JobIsOver, match="cancelled"):
            steer(database, tenant, job_id)
        with pytest.raises(UnknownJob):
            steer(database, tenant, "job_none")


def test_retry_redoes_only_the_failed_items(database: Database) -> None:
    job = make_job(database, TEXTS, per_chunk=3)
    tenant, job_id = first_tenant(database), id_of(database, job)
    run(database, two_errors)
    assert (job_row(database, job)["succeeded"], job_row(database, job)["failed"]) == (10, 2)
    assert control.retry(database, tenant, job_id) == 2
    row = job_row(database, job)
    assert (row["state"], row["attempt"], row["failed"], row["finished_at"]) == ("queued", 2, 2, None)
    assert row["chunks_left"] == sum(chunk["state"] == "queued" for chunk in chunk_rows_of(database, job)) <= 2
    assert sorted(run(database)) == ["dialogue number 03", "dialogue number 07"]
    row = job_row(database, job)
    assert (row["state"], row["succeeded"], row["failed"]) == ("completed", 12, 0)
    assert check(database) == []
    with pytest.raises(NothingToRetry):
        control.retry(database, tenant, job_id)


def test_retry_of_retryable_items_leaves_the_others_with_their_error(database: Database) -> None:
    job = make_job(database, TEXTS, per_chunk=4)
    tenant, job_id = first_tenant(database), id_of(database, job)
    run(database, two_errors)
    assert "out_of_memory" in retryable_codes()
    assert "input_too_long" not in retryable_codes()
    assert control.retry(database, tenant, job_id, Missing(retryable=True)) == 1
    assert run(database) == ["dialogue number 07"]
    assert codes_of(database, job) == ["input_too_long"]
    assert (job_row(database, job)["succeeded"], job_row(database, job)["failed"]) == (11, 1)
    with pytest.raises(NothingToRetry, match="--set"):
        control.retry(database, tenant, job_id, Missing(retryable=True))
    assert control.retry(database, tenant, job_id) == 1
    assert run(database) == ["dialogue number 03"]
    assert check(database) == []


def test_item_that_fails_again_counts_once(database: Database) -> None:
    job = make_job(database, TEXTS, per_chunk=4)
    tenant, job_id = first_tenant(database), id_of(database, job)
    for _ in range(3):
        run(database, two_errors)
        assert (job_row(database, job)["succeeded"], job_row(database, job)["failed"]) == (10, 2)
        assert check(database) == []
        control.retry(database, tenant, job_id)


def test_retry_of_a_cancelled_job_runs_what_was_never_run(database: Database) -> None:
    job = make_job(database, TEXTS, per_chunk=4)
    tenant, job_id = first_tenant(database), id_of(database, job)
    claim = claimed(database)
    first = [made(unit) for unit in pending(database, claim)[:2]]
    database.transact(lambda connection: record(connection, claim, made=first))
    control.cancel(database, tenant, job_id)
    with pytest.raises(JobNotOver, match="cancelling"):
        control.retry(database, tenant, job_id)
    database.transact(lambda connection: chunk_rows.close(connection, claim))
    assert (job_row(database, job)["state"], job_row(database, job)["not_run"]) == ("cancelled", 10)
    with pytest.raises(NothingToRetry, match="never run"):
        control.retry(database, tenant, job_id, Missing(failed=True))
    assert control.retry(database, tenant, job_id) == 10
    assert job_row(database, job)["not_run"] == 0
    assert len(run(database)) == 10
    assert (job_row(database, job)["state"], job_row(database, job)["succeeded"]) == ("completed", 12)
    assert check(database) == []


def test_retry_finds_failed_items_of_a_chunk_that_was_split_since(database: Database) -> None:
    job = make_job(database, TEXTS)
    tenant, job_id = first_tenant(database), id_of(database, job)
    claim = claimed(database)
    units = pending(database, claim)
    # The last item fails under the chunk's first epoch; then the worker dies twice, and another chunk takes the upper half.
    lost = [Lost(units[-2], DeviceOutOfMemory())]
    database.transact(lambda connection: record(connection, claim, lost=lost))
    database.transact(lambda connection: crashes.bury(connection, claim.worker, chunk_rows.Budgets()))
    again = claimed(database)
    database.transact(lambda connection: crashes.bury(connection, again.worker, chunk_rows.Budgets()))
    assert len(chunk_rows_of(database, job)) == 2
    run(database)
    assert control.retry(database, tenant, job_id) == 1
    assert run(database) == [units[-2].text]
    assert (job_row(database, job)["succeeded"], job_row(database, job)["failed"]) == (12, 0)


def test_two_retries_at_once_make_one_attempt(database: Database) -> None:
    job = make_job(database, TEXTS, per_chunk=2)
    tenant, job_id = first_tenant(database), id_of(database, job)
    run(database, two_errors)
    outcomes = race(*[lambda: control.retry(database, tenant, job_id) for _ in range(4)])
    assert sorted(map(str, outcomes)).count("2") == 1
    assert job_row(database, job)["attempt"] == 2
    assert check(database) == []


def race(*steps: Callable[[], Any]) -> list[Any]:
    """Run these at the same moment; return what each returned, or the kind of error."""
    barrier = threading.Barrier(len(steps))
    outcomes: list[Any] = [None] * len(steps)

    def go(number: int, step: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            outcomes[number] = step()
        except (JobIsOver, JobNotOver, NothingToRetry, LeaseLost) as error:
            outcomes[number] = type(error).__name__

    threads = [threading.Thread(target=go, args=pair) for pair in enumerate(steps)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@pytest.mark.parametrize("action", ["cancel", "pause"])
def test_control_at_the_moment_of_a_claim_leaves_no_chunk_behind(database: Database, action: str) -> None:
    steer = {"cancel": control.cancel, "pause": control.pause}[action]
    tenant = first_tenant(database)
    for number in range(8):
        job = make_job(database, TEXTS[:2])
        job_id = id_of(database, job)
        worker = make_worker(database, f"racer-{action}-{number}")
        claim = race(lambda job_id=job_id: steer(database, tenant, job_id), lambda worker=worker: take(database, worker))[1]
        if claim is not None:
            end = chunk_rows.close if action == "cancel" else chunk_rows.release
            database.transact(lambda connection, claim=claim, end=end: end(connection, claim))
        if action == "pause":
            control.cancel(database, tenant, job_id)
        row = job_row(database, job)
        assert (row["state"], row["not_run"], row["chunks_left"]) == ("cancelled", 2, 0)
    assert check(database) == []


def test_cancel_at_the_moment_of_the_last_finish_ends_the_job_once(database: Database) -> None:
    tenant = first_tenant(database)
    for _ in range(8):
        job = make_job(database, TEXTS[:2])
        job_id, claim = id_of(database, job), claimed(database)
        units = [made(unit) for unit in pending(database, claim)]

        def work(claim: Claim = claim, units: list[Made] = units) -> None:
            database.transact(lambda connection: record(connection, claim, made=units))
            database.transact(lambda connection: chunk_rows.finish(connection, claim))

        race(lambda job_id=job_id: control.cancel(database, tenant, job_id), work)
        row = job_row(database, job)
        assert (row["state"] in ("completed", "cancelled"), row["succeeded"], row["chunks_left"]) == (True, 2, 0)
    assert check(database) == []


def test_retry_with_changes_makes_a_new_job_over_the_failed_rows(database: Database) -> None:
    job = make_job(database, TEXTS, per_chunk=4)
    tenant, job_id = first_tenant(database), id_of(database, job)
    run(database, two_errors)
    manifest = {"architecture": "T5ForConditionalGeneration", "parameters": 1, "dtype": "float32"}
    models.register(database, tenant, manifest, name="fake", digest="a" * 64, weight_bytes=1, source="a test")
    changes = {"max_input_tokens": 4096, "generation.max_new_tokens": 64}
    new_id, is_new = submit_retry(database, tenant, job_id, changes, idempotency_key="k")
    assert is_new
    assert submit_retry(database, tenant, job_id, changes, idempotency_key="k") == (new_id, False)
    with database.read() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == new_id)).one()
    assert (row._mapping["items"], row.retry_of_key) == (2, job)
    assert (row.spec["max_input_tokens"], row.spec["generation"]["max_new_tokens"]) == (4096, 64)
    assert sorted(run(database)) == ["dialogue number 03", "dialogue number 07"]
    assert job_row(database, row.key)["succeeded"] == 2
    assert job_row(database, job)["failed"] == 2
    assert check(database) == []


@pytest.mark.parametrize(
    "changes",
    [{"dataset": "other"}, {"nosuch": 1}, {"max_input_tokens": "many"}, {"generation.nosuch": 1}, {"select": "[0:1]"}],
)
def test_change_that_does_not_fit_is_refused(database: Database, changes: dict[str, Any]) -> None:
    make_job(database, TEXTS[:4])
    run(database, two_errors)
    with database.read() as connection:
        job_id = connection.execute(select(jobs.c.id)).scalar_one()
    with pytest.raises(InvalidSpec):
        submit_retry(database, first_tenant(database), job_id, changes)


def test_selection_by_label_and_state_steers_only_those_jobs(database: Database) -> None:
    support = [make_job(database, TEXTS[:1], labels={"team": "support"}) for _ in range(3)]
    sales = make_job(database, TEXTS[:1], labels={"team": "sales"})
    tenant = first_tenant(database)
    selection = JobSelection(("label.team=support",), "queued")
    matched, newest = control.count(database, tenant, "cancel", selection)
    assert (matched, newest) == (3, id_of(database, support[-1]))
    late = make_job(database, TEXTS[:1], labels={"team": "support"})
    done = control.steer(database, tenant, "cancel", JobSelection(("label.team=support",), "queued", newest))
    assert (done.changed, done.refused) == (3, ())
    assert {job_row(database, job)["state"] for job in support} == {"cancelled"}
    assert {job_row(database, job)["state"] for job in (sales, late)} == {"queued"}


def test_every_action_counts_only_jobs_that_it_would_change(database: Database) -> None:
    tenant = first_tenant(database)
    running = make_job(database, TEXTS[:1], labels={"a": "b"})
    failed = make_job(database, TEXTS[:1], labels={"a": "b"}, state="failed", chunks_left=0, not_run=1)
    everything = JobSelection(("label.a=b",))

    def counts() -> list[int]:
        return [control.count(database, tenant, action, everything)[0] for action in ("cancel", "pause", "resume", "retry")]

    assert counts() == [1, 1, 0, 1]
    assert control.steer(database, tenant, "pause", everything).changed == 1
    assert counts() == [1, 0, 1, 1]
    assert job_row(database, running)["paused"]
    database.transact(lambda c: c.execute(update(jobs).where(jobs.c.key == failed).values(chunks_left=1)))
    done = control.steer(database, tenant, "retry", everything)
    assert (done.changed, [refusal.code for refusal in done.refused]) == (0, ["job_not_over"])


@pytest.mark.parametrize("where", ["label.team", "=x", "nosuch=1", "label.=x", "owner=me"])
def test_condition_that_cannot_be_read_is_refused(sqlite_only: Database, where: str) -> None:
    with pytest.raises(InvalidSelection):
        control.count(sqlite_only, first_tenant(sqlite_only), "cancel", JobSelection((where,)))


def test_empty_selection_is_refused(sqlite_only: Database) -> None:
    with pytest.raises(InvalidSelection, match="Nothing is selected"):
        control.steer(sqlite_only, first_tenant(sqlite_only), "cancel", JobSelection())
    with pytest.raises(InvalidSelection, match="no job state"):
        control.count(sqlite_only, first_tenant(sqlite_only), "cancel", JobSelection(state="sleeping"))

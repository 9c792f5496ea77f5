"""Jobs, items, datasets and workers are read back in pages, each within its tenant."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from gistmill.db.clock import db_now
from gistmill.db.session import Database
from gistmill.db.tables import jobs, results, workers
from gistmill.db.workers import Registration, register
from gistmill.errors import InvalidInput, UnknownDataset, UnknownJob
from gistmill.readback import (
    get_dataset,
    get_job,
    iterate_errors,
    iterate_results,
    list_datasets,
    list_jobs,
    list_workers,
)
from gistmill.readback import items as item_pages
from tests.support.rows import write_history

WORKER = Registration("w1", "host", 7, "cpu", "a CPU", 8 * 1024**3, "fake", ("summarize",), 1)


def add_worker(database: Database, registration: Registration = WORKER) -> None:
    database.transact(lambda connection: register(connection, registration))


def set_job(database: Database, **values: object) -> None:
    database.transact(lambda connection: connection.execute(update(jobs).values(**values)))


def test_job_tells_its_counts_model_and_speed(database: Database) -> None:
    history = write_history(database, items=6, failed=frozenset({0}))
    job = get_job(database, history.tenant_key, history.job_id)
    assert (job.state, job.dataset, job.model, job.prompt) == ("completed", "calls", "tiny@1", "instruction")
    assert (job.counts.items, job.counts.distinct, job.counts.succeeded, job.counts.failed) == (6, 6, 5, 1)
    assert job.dialogues_per_s == 2.0
    assert job.labels == {"team": "support"}
    assert job.waits_for is None


def test_unknown_job_and_a_job_of_another_tenant_are_the_same(database: Database) -> None:
    write_history(database)
    theirs = write_history(database, tenant="other")
    for job_id in ("job_nosuch", theirs.job_id):
        with pytest.raises(UnknownJob, match="gistmill jobs list"):
            get_job(database, 1, job_id)
        with pytest.raises(UnknownJob):
            list(iterate_results(database, 1, job_id))
        with pytest.raises(UnknownJob):
            list(iterate_errors(database, 1, job_id))


def test_jobs_are_listed_newest_first_in_pages(database: Database) -> None:
    histories = [write_history(database, items=1, name=f"set-{number}") for number in range(5)]
    write_history(database, items=1, tenant="other")
    first = list_jobs(database, 1, limit=2)
    second = list_jobs(database, 1, limit=2, after=first.next)
    third = list_jobs(database, 1, limit=2, after=second.next)
    assert [job.id for page in (first, second, third) for job in page.data] == [h.job_id for h in reversed(histories)]
    assert (first.has_more, third.has_more, third.next) == (True, False, None)
    assert list_jobs(database, 1, state="running").data == []
    with pytest.raises(InvalidInput, match="There are: waiting, queued"):
        list_jobs(database, 1, state="asleep")


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_results_come_in_input_order_or_by_arrival(database: Database, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr(item_pages, "PAGE", page)
    history = write_history(database, items=7, failed=frozenset({3}))
    in_order = list(iterate_results(database, 1, history.job_id))
    assert [result.row for result in in_order] == [0, 1, 2, 4, 5, 6]
    assert (in_order[0].id, in_order[0].summary, in_order[0].cursor) == ("call-0", "Secret 0 of 1.", "r:0")
    by_arrival = list(iterate_results(database, 1, history.job_id, order="arrival"))
    assert [result.row for result in by_arrival] == [5, 6, 4, 1, 2, 0]
    assert by_arrival[0].cursor == "a:1:5"
    assert [error.row for error in iterate_errors(database, 1, history.job_id)] == [3]


def test_reader_goes_on_behind_any_cursor(database: Database) -> None:
    history = write_history(database, items=7)
    for order in ("input", "arrival"):
        everything = list(iterate_results(database, 1, history.job_id, order=order))
        for position, result in enumerate(everything):
            rest = list(iterate_results(database, 1, history.job_id, after=result.cursor))
            assert rest == everything[position + 1 :]
        assert list(iterate_results(database, 1, history.job_id, order=order, limit=3)) == everything[:3]
        assert list(iterate_results(database, 1, history.job_id, order=order, limit=0)) == []


def test_running_job_is_read_by_arrival(database: Database) -> None:
    history = write_history(database, items=4, state="running")
    assert [result.row for result in iterate_results(database, 1, history.job_id)] == [2, 3, 0, 1]


def test_pages_hold_no_transaction_open_between_them(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_pages, "PAGE", 2)
    history = write_history(database, items=6)
    reading = iterate_results(database, 1, history.job_id, order="input")
    assert next(reading).row == 0
    database.transact(lambda connection: connection.execute(update(results).values(shared=True)))
    assert [result.shared for result in reading] == [False, True, True, True, True]


@pytest.mark.parametrize("cursor", ["", "x", "a:1", "r:", "r:-1", "r:1:2", "a:1:x", "r:" + "9" * 40, "r:٣"])
def test_broken_cursor_is_refused(sqlite_only: Database, cursor: str) -> None:
    history = write_history(sqlite_only)
    with pytest.raises(InvalidInput, match="not a cursor"):
        list(iterate_results(sqlite_only, 1, history.job_id, after=cursor))


def test_queued_job_says_what_it_waits_for(database: Database) -> None:
    history = write_history(database, state="queued")

    def reason() -> str | None:
        return get_job(database, 1, history.job_id).waits_for

    assert "no worker is running" in str(reason())
    add_worker(database)
    assert reason() is None
    set_job(database, min_device_bytes=80 * 1024**3)
    assert reason() == "no running worker has a device with 80.0 GiB of memory"
    set_job(database, min_device_bytes=0, spec_version=2)
    assert "older version" in str(reason())
    set_job(database, spec_version=1, kind="evaluate")
    assert reason() == "no running worker takes evaluate jobs"
    set_job(database, kind="summarize", paused=True)
    assert reason() == "it is paused"


def test_dataset_is_found_by_id_and_by_name(database: Database) -> None:
    first, second = (write_history(database, items=1, name="calls") for _ in range(2))
    assert get_dataset(database, 1, first.dataset_id).id == first.dataset_id
    assert get_dataset(database, 1, "calls").id == second.dataset_id
    with pytest.raises(UnknownDataset, match="Did you mean 'calls'"):
        get_dataset(database, 1, "cals")
    assert [dataset.id for dataset in list_datasets(database, 1, limit=1).data] == [second.dataset_id]


def test_worker_that_was_not_seen_for_long_is_gone(database: Database) -> None:
    add_worker(database)
    (worker,) = list_workers(database, 1).data
    assert (worker.state, worker.kinds, worker.device) == ("idle", ["summarize"], "cpu")
    database.transact(lambda connection: connection.execute(update(workers).values(seen_at=db_now() - 100)))
    (worker,) = list_workers(database, 1, gone_after_s=90).data
    assert worker.state == "gone"


def test_worker_names_its_job_to_the_job_s_own_tenant_only(database: Database) -> None:
    mine = write_history(database, state="running")
    write_history(database, tenant="other")
    add_worker(database)
    database.transact(lambda connection: connection.execute(update(workers).values(chunk_key=1, state="busy")))
    assert [(w.job, w.model) for w in list_workers(database, 1).data] == [(mine.job_id, "tiny@1")]
    assert [(w.job, w.model) for w in list_workers(database, 2).data] == [(None, None)]

"""An evaluation's last chunk: queued when all others are done, again after a retry, and the job completes only with it."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, select, update

from gistmill import control
from gistmill.db import chunks as chunk_rows
from gistmill.db import crashes
from gistmill.db.check import check
from gistmill.db.chunks import Budgets
from gistmill.db.claim import Claim
from gistmill.db.clock import db_now
from gistmill.db.session import Database
from gistmill.db.tables import evaluation_cases, evaluations, scores
from gistmill.errors import GistmillError
from gistmill.settings import WorkerSettings
from gistmill.sweep import Sweeper
from tests.support.graphs import TEXTS, NoBells, complete, id_of, make_evaluation, states
from tests.support.jobs import chunk_rows_of, first_tenant, job_row, make_job, make_worker, take

BUDGETS = Budgets(retry_base_s=0.0)


def claim(database: Database, worker: str) -> Claim:
    found = take(database, make_worker(database, worker, kinds=("evaluate",)))
    assert found is not None
    return found


def finish(database: Database, held: Claim) -> None:
    database.transact(lambda connection: chunk_rows.finish(connection, held))


def score_all(database: Database, job: int, worker: str = "w") -> None:
    """Do every chunk that has ranks."""
    for chunk in [chunk for chunk in chunk_rows_of(database, job) if chunk["first_rank"] >= 0 and chunk["state"] == "queued"]:
        finish(database, claim(database, f"{worker}{chunk['ordinal']}-{chunk['epoch']}"))


def aggregate(database: Database, held: Claim) -> None:
    """Do the last chunk."""
    assert (held.first_rank, held.last_rank, held.dialogues) == (-1, -1, 0)
    done = update(evaluations).where(evaluations.c.job_key == held.job_key).values(aggregated_at=db_now())
    database.transact(lambda connection: connection.execute(done))
    finish(database, held)


def shape(database: Database, job: int) -> list[tuple[int, int, str]]:
    return [(chunk["ordinal"], chunk["first_rank"], chunk["state"]) for chunk in chunk_rows_of(database, job)]


def test_last_chunk_is_queued_when_all_others_are_done_and_the_job_completes_with_it(database: Database) -> None:
    job = make_evaluation(database)
    finish(database, claim(database, "w1"))
    assert shape(database, job) == [(0, 0, "done"), (1, 2, "queued")]
    finish(database, claim(database, "w2"))
    assert shape(database, job) == [(0, 0, "done"), (1, 2, "done"), (2, -1, "queued")]
    row = job_row(database, job)
    assert (row["state"], row["chunks"], row["chunks_left"], row["items"]) == ("running", 3, 1, 0)
    assert check(database) == []
    aggregate(database, claim(database, "w3"))
    row = job_row(database, job)
    assert (row["state"], row["chunks_left"], row["not_run"]) == ("completed", 0, 0)
    assert check(database) == []


def test_evaluation_without_chunks_is_aggregated_when_its_needs_have_completed(database: Database) -> None:
    need = make_job(database, TEXTS)
    job = make_evaluation(database, need, texts=())
    assert complete(database, need) == {"evaluate"}
    assert shape(database, job) == [(0, -1, "queued")]
    aggregate(database, claim(database, "w"))
    assert states(database, job) == ["completed"]


def test_evaluation_that_is_written_without_chunks_and_needs_gets_its_last_chunk_from_the_sweep(database: Database) -> None:
    job = make_evaluation(database, texts=())
    Sweeper(database, NoBells(), WorkerSettings()).sweep()
    assert shape(database, job) == [(0, -1, "queued")]


def test_retry_after_a_failed_aggregation_runs_every_chunk_again_and_aggregates_once_more(database: Database) -> None:
    job = make_evaluation(database)
    score_all(database, job)
    failing = claim(database, "failing")
    database.transact(lambda connection: chunk_rows.fail_job(connection, failing, GistmillError("no memory")))
    assert states(database, job) == ["failed"]
    control.retry(database, first_tenant(database), id_of(database, job))
    assert shape(database, job) == [(0, 0, "queued"), (1, 2, "queued"), (2, -1, "done")]
    row = job_row(database, job)
    assert (row["state"], row["chunks"], row["chunks_left"]) == ("queued", 3, 2)
    score_all(database, job, "again")
    assert shape(database, job) == [(0, 0, "done"), (1, 2, "done"), (2, -1, "queued")]
    last = claim(database, "last")
    assert last.epoch == failing.epoch + 1
    aggregate(database, last)
    assert states(database, job) == ["completed"]
    assert check(database) == []


def test_retry_forgets_an_aggregate_that_was_written_before_the_job_was_lost(database: Database) -> None:
    job = make_evaluation(database)
    score_all(database, job)
    held = claim(database, "w")
    done = update(evaluations).values(aggregated_at=db_now())
    database.transact(lambda connection: connection.execute(done))
    database.transact(lambda connection: chunk_rows.fail_job(connection, held, GistmillError("x")))
    control.retry(database, first_tenant(database), id_of(database, job))
    with database.read() as connection:
        assert connection.execute(select(evaluations.c.aggregated_at)).scalar_one() is None
    score_all(database, job, "again")
    assert shape(database, job)[-1] == (2, -1, "queued")


def test_cancelled_evaluation_gets_no_last_chunk(database: Database) -> None:
    job = make_evaluation(database)
    held = claim(database, "w")
    control.cancel(database, first_tenant(database), id_of(database, job))
    database.transact(lambda connection: chunk_rows.close(connection, held))
    assert (states(database, job), len(shape(database, job))) == (["cancelled"], 2)
    assert check(database) == []


@pytest.mark.parametrize("is_last", [False, True])
def test_chunk_of_an_evaluation_is_never_split_and_fails_its_job_after_three_crashes(
    database: Database, *, is_last: bool
) -> None:
    job = make_evaluation(database)
    if is_last:
        score_all(database, job)
    count = len(shape(database, job))
    for number in range(3):
        assert states(database, job) != ["failed"]
        held = claim(database, f"dying{number}")
        database.transact(lambda connection, held=held: crashes.bury(connection, held.worker, BUDGETS))
    row = job_row(database, job)
    assert (row["state"], row["error"]["code"], row["chunks"]) == ("failed", "worker_crashed", count)
    Sweeper(database, NoBells(), WorkerSettings()).sweep()
    assert job_row(database, job)["chunks_left"] == 0
    assert check(database) == []


def test_evaluation_that_failed_with_its_need_is_scored_when_that_was_retried(database: Database) -> None:
    need = make_job(database, TEXTS)
    job = make_evaluation(database, need)
    control.cancel(database, first_tenant(database), id_of(database, need))
    assert states(database, job) == ["failed"]
    control.retry(database, first_tenant(database), id_of(database, need))
    complete(database, need)
    score_all(database, job)
    aggregate(database, claim(database, "last"))
    assert states(database, job) == ["completed"]
    assert check(database) == []


def test_check_finds_scores_and_cases_that_name_nothing(database: Database) -> None:
    case = {"row_number": 0, "outcome": "scored", "missing": [], "empty": [], "chunk_key": 1, "epoch": 1}
    extra = {"differing": False, "created_at": db_now()} if "differing" in evaluation_cases.c else {}
    database.transact(
        lambda connection: connection.execute(insert(evaluation_cases).values(job_key=7, dialogue_key=8, **case, **extra))
    )
    score = insert(scores).values(job_key=7, dialogue_key=8, row_number=0, system=0, measure="rouge1", fmeasure=1.0)
    database.transact(lambda connection: connection.execute(score))
    assert check(database) == [
        "evaluation_cases.job_key: 1 rows name nothing in jobs",
        "evaluation_cases.dialogue_key: 1 rows name nothing in dialogues",
        "scores.job_key: 1 rows name nothing in jobs",
        "scores.dialogue_key: 1 rows name nothing in dialogues",
    ]

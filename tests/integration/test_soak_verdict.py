"""The soak's verdict finds what is broken: each rule is broken once by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from gistmill.db import chunks as chunk_rows
from gistmill.db import results as result_rows
from gistmill.db.claim import Claim
from gistmill.db.pending import load_pending
from gistmill.db.results import Made
from gistmill.db.session import Database
from gistmill.db.tables import chunks, generations, jobs, results
from tests.soak import verdict
from tests.support.jobs import job_row, make_job, make_worker, take
from tests.support.ledger import Ledger

TEXTS = [f"row {number}" for number in range(4)]


@pytest.fixture
def stage(sqlite_only: Database, tmp_path: Path) -> Any:
    """What the verdict reads of a stage on which one job was accepted and done."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    made = SimpleNamespace(database=sqlite_only, cancelled=set(), fleet=SimpleNamespace(ledger=ledger))
    made.job = make_job(sqlite_only, TEXTS, labels={"soak": "one"})
    claimant = make_worker(sqlite_only, "a")
    made.claim = take(sqlite_only, claimant)
    ledger.note("claim.committed", {"claim": made.claim})
    finish(sqlite_only, made.claim)
    made.accepted = {"one": {job_row(sqlite_only, made.job)["id"]}}
    return made


def finish(database: Database, claim: Claim) -> None:
    with database.read() as connection:
        units = load_pending(connection, claim, limit=100, is_sampling=False)
    ends = [Made(unit, "s", "stop", 1, 1, False, "fake", "cpu", "none") for unit in units]
    database.transact(lambda connection: result_rows.record(connection, claim, made=ends))
    database.transact(lambda connection: chunk_rows.finish(connection, claim))


def change(stage: Any, statement: Any) -> None:
    stage.database.transact(lambda connection: connection.execute(statement))


def find(stage: Any) -> list[str]:
    return verdict.find_broken(stage, stage.accepted)


def test_healthy_history_is_not_blamed(stage: Any) -> None:
    assert find(stage) == []


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (update(jobs).values(state="cancelled"), "was cancelled unasked"),
        (update(jobs).values(state="failed"), "is failed"),
        (update(jobs).values(succeeded=3), "is not 4"),
        (update(jobs).values(labels={"soak": "another"}), "but SQL has []"),
        (delete(results).where(results.c.row_number == 2), "has no end"),
        (update(results).values(generation_key=None, error_code="worker_crashed"), "ended with worker_crashed"),
        (update(chunks).values(state="queued"), "open chunks under ended jobs"),
        (update(chunks).values(epoch=0), "was granted at epoch 1, but is at 0"),
        (update(results).values(epoch=2), "of an epoch that was never granted"),
        (update(results).values(generation_key=select(generations.c.key).limit(1).scalar_subquery()), "another dialogue's"),
    ],
)
def test_broken_rule_is_found(stage: Any, statement: Any, words: str) -> None:
    change(stage, statement)
    assert any(words in line for line in find(stage))


def test_submission_that_made_two_jobs_is_found(stage: Any) -> None:
    second = make_job(stage.database, TEXTS, labels={"soak": "one"})
    stage.accepted["one"].add(job_row(stage.database, second)["id"])
    assert "one submission made 2 jobs: one" in find(stage)


def test_write_behind_a_later_grant_is_found(stage: Any) -> None:
    # The ledger tells of a second grant before the first one's results are dated.
    stage.fleet.ledger.note("claim.committed", {"claim": replaced(stage.claim, epoch=2)})
    change(stage, update(chunks).values(epoch=2))
    assert find(stage) == []
    change(stage, update(results).values(created_at=results.c.created_at + 60))
    assert any("written under epoch 1" in line for line in find(stage))


def replaced(claim: Claim, *, epoch: int) -> Claim:
    return Claim(**vars(claim) | {"epoch": epoch})

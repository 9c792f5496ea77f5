"""Evaluations whose scoring worker dies, stands still or loses answers: the same rows as without, to the last bit."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gistmill import control
from gistmill.db.check import check
from gistmill.db.session import Database
from gistmill.db.tables import chunks, evaluation_cases, scores
from gistmill.specs import parse_evaluate_spec
from gistmill.submit import submit_job, submit_rescore
from tests.support.evaluations import Lab
from tests.support.faults import hang_at, kill_at, lose_reply_at
from tests.support.fleet import Fleet, WorkerProcess
from tests.support.jobs import chunk_rows_of
from tests.support.servers import wait_until
from workers.handlers.evaluate import PAGE_CASES

# Three pages of one chunk, and the last chunk.
CASES = 2 * PAGE_CASES + 50
WORDS = ["Ann", "Ben", "asks", "for", "the", "report", "and", "sends", "it", "back", "tomorrow"]
# A worker starts on a machine that runs other tests.
SCORED_S = 60.0

pytestmark = pytest.mark.timeout(180)


@dataclass
class Scoring:
    """A file of summaries that was evaluated once without faults, and a fleet to evaluate it again."""

    lab: Lab
    fleet: Fleet
    undisturbed: str
    job_id: str

    def start(self, *blows: Any, **environment: str) -> WorkerProcess:
        """Start a worker that scores and nothing else, and meets these blows."""
        return self.fleet.start(seconds_per_row=0.0, drill=blows, kinds=("evaluate",), **environment)

    def wait_for_end(self) -> None:
        """Wait until the evaluation has ended."""
        ended = ("completed", "failed", "cancelled")
        wait_until(lambda: self.lab.view(self.job_id).state in ended, timeout_s=SCORED_S, what="its end")

    def wait_for_blow(self) -> None:
        """Wait until a blow has fallen."""
        wait_until(lambda: bool(self.fleet.ledger.blows()), timeout_s=SCORED_S, what="the blow")

    def assert_same(self) -> None:
        """Make sure that every row of scores, means and comparisons is as without faults, and each case has one outcome."""
        view = self.lab.view(self.job_id)
        assert (view.state, view.ended, view.counts) == ("completed", CASES, {"scored": CASES - 1, "no_reference": 1})
        assert self.lab.figures(self.job_id) == self.lab.figures(self.undisturbed)
        assert self.lab.outcomes(self.job_id) == self.lab.outcomes(self.undisturbed)
        assert check(self.lab.database) == []
        with self.lab.database.read() as connection:
            later = select(evaluation_cases.c.epoch).join(chunks, chunks.c.key == evaluation_cases.c.chunk_key)
            assert connection.execute(later.where(evaluation_cases.c.epoch > chunks.c.epoch)).all() == []


@pytest.fixture
def scoring(database: Database, fleet: Fleet, tmp_path: Path) -> Scoring:
    """The same summaries, scored once and to be scored again."""
    chance = random.Random(5)
    rows = [
        {name: " ".join(chance.choices(WORDS, k=9)) for name in ("gold", "a", "b")} | ({"gold": ""} if number == 7 else {})
        for number in range(CASES)
    ]
    lab = Lab(database, tmp_path)
    data = lab.load_predictions(rows, "a", "b")
    named = {"dataset": data.id, "predictions": data.id, "columns": ["a", "b"], "resamples": 200}
    first, _ = submit_job(database, lab.tenant, parse_evaluate_spec(named))
    lab.work()
    again, _ = submit_rescore(database, lab.tenant, [first], {})
    return Scoring(lab, fleet, first, again)


@pytest.mark.parametrize(
    ("point", "nth"),
    [("scores.begun", 2), ("scores.committed", 2), ("aggregate.begun", 1), ("aggregate.committed", 1)],
)
def test_scoring_worker_killed_before_or_after_a_commit_loses_and_doubles_nothing(
    scoring: Scoring, point: str, nth: int
) -> None:
    assert scoring.start(kill_at(point, nth=nth)).wait(SCORED_S) == -signal.SIGKILL
    scoring.start()
    scoring.wait_for_end()
    scoring.assert_same()


def test_evaluation_killed_twice_on_the_way_ends_with_the_same_rows(scoring: Scoring) -> None:
    assert scoring.start(kill_at("scores.committed", nth=1)).wait(SCORED_S) == -signal.SIGKILL
    assert 0 < scoring.lab.view(scoring.job_id).ended < CASES
    assert scoring.start(kill_at("scores.begun", nth=2)).wait(SCORED_S) == -signal.SIGKILL
    assert scoring.lab.view(scoring.job_id).state == "running"
    scoring.start(GISTMILL_WORKER__LEASE_S="10")
    scoring.wait_for_end()
    scoring.assert_same()
    assert [chunk["epoch"] for chunk in chunk_rows_of(scoring.lab.database, scoring.lab.key_of(scoring.job_id))] == [3, 1]


@pytest.mark.parametrize("point", ["scores.committed", "aggregate.committed"])
def test_commit_whose_reply_is_lost_is_found_and_not_repeated(scoring: Scoring, point: str) -> None:
    scoring.start(lose_reply_at(point))
    scoring.wait_for_end()
    assert scoring.fleet.ledger.blows() == {"lose_reply": 1}
    scoring.assert_same()


@pytest.mark.parametrize(("point", "nth"), [("scores.begun", 2), ("aggregate.begun", 1)])
def test_scoring_zombie_past_its_lease_writes_nothing(scoring: Scoring, point: str, nth: int) -> None:
    # Not SIGSTOP: it may fall while the heart writes, and nobody could write to SQLite then.
    zombie = scoring.start(hang_at(point, 5.0, nth=nth), GISTMILL_WORKER__METRIC_STALL_S="0.5")
    scoring.wait_for_blow()
    scoring.start()
    scoring.wait_for_end()
    wait_until(lambda: "lease_lost" in zombie.log.read_text(), timeout_s=30, what="the zombie noticing")
    scoring.assert_same()


def test_evaluation_cancelled_while_it_is_scored_ends_within_five_seconds(scoring: Scoring) -> None:
    scoring.start(hang_at("scores.committed", 2.0))
    scoring.wait_for_blow()
    control.cancel(scoring.lab.database, scoring.lab.tenant, scoring.job_id)
    wait_until(lambda: scoring.lab.view(scoring.job_id).state == "cancelled", timeout_s=5, what="the end of the evaluation")
    assert scoring.lab.view(scoring.job_id).ended == PAGE_CASES
    assert check(scoring.lab.database) == []
    control.retry(scoring.lab.database, scoring.lab.tenant, scoring.job_id)
    scoring.wait_for_end()
    scoring.assert_same()


def test_paused_evaluation_stands_still_and_goes_on_where_it_was(scoring: Scoring) -> None:
    scoring.start(hang_at("scores.committed", 3.0))
    scoring.wait_for_blow()
    control.pause(scoring.lab.database, scoring.lab.tenant, scoring.job_id)
    queued = lambda: chunk_rows_of(scoring.lab.database, scoring.lab.key_of(scoring.job_id))[0]["state"] == "queued"  # noqa: E731
    wait_until(queued, timeout_s=10, what="the chunk given back")
    assert len(scoring.lab.rows(scores, scoring.job_id)) == (PAGE_CASES - 1) * 2 * 4
    control.resume(scoring.lab.database, scoring.lab.tenant, scoring.job_id)
    scoring.wait_for_end()
    scoring.assert_same()


def test_scoring_worker_never_imports_torch(scoring: Scoring) -> None:
    worker = scoring.start()
    scoring.wait_for_end()
    mapped = Path(f"/proc/{worker.process.pid}/maps").read_text()
    assert "rouge_score_rs" in mapped
    assert "libtorch" not in mapped
    assert worker.is_alive

"""`gistmill db check` counts the cases of evaluations again, and looks for scores without a case and cases without scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import delete, update

from gistmill.db.check import check
from gistmill.db.session import Database
from gistmill.db.tables import evaluation_cases, evaluations, scores
from tests.support.evaluations import Lab, dialogues, first_words


@pytest.fixture
def lab(database: Database, tmp_path: Path) -> Lab:
    """An evaluation of three cases, one of which has no reference."""
    made = Lab(database, tmp_path)
    made.add("one", first_words)
    rows = dialogues(3)
    del rows[2]["summary"]
    made.evaluate(made.load(rows).id, "one")
    assert check(database) == []
    return made


def test_count_of_ended_cases_that_differs_from_the_rows_is_named(lab: Lab) -> None:
    lab.database.transact(lambda connection: connection.execute(update(evaluations).values(ended=2)))
    (line,) = check(lab.database)
    assert "ended is 2, but the rows make 3" in line


def test_case_that_is_scored_without_scores_is_counted(lab: Lab) -> None:
    lab.database.transact(lambda connection: connection.execute(delete(scores).where(scores.c.row_number == 0)))
    assert check(lab.database) == ["evaluation_cases: 1 cases are scored and have no scores"]


def test_scores_of_a_case_that_was_left_out_are_counted(lab: Lab) -> None:
    out = update(evaluation_cases).where(evaluation_cases.c.row_number == 1).values(outcome="failed")
    lab.database.transact(lambda connection: connection.execute(out))
    assert check(lab.database) == ["evaluation_cases: 4 scores belong to no case that is scored"]

"""How much PostgreSQL reads for a page of an evaluation whose rows its statistics do not know. Counted in rows, not seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from gistmill.db import cases as case_rows
from gistmill.db import evaluations
from gistmill.db.session import Database
from gistmill.db.tables import metadata
from gistmill.readback import CaseQuery, read_cases
from gistmill.readback.cases import rank_cases
from gistmill.specs import parse_evaluate_spec
from gistmill.submit import submit_job, submit_rescore
from tests.integration.test_plans import LOOKS_PER_ROW, rows_read
from tests.support.evaluations import Lab
from tests.support.jobs import make_worker, take

OLD_ROWS = 3_000
PAGE = 300


@pytest.fixture
def lab(database: Database, tmp_path: Path) -> Lab:
    """A database with an evaluation of a larger file that the statistics know."""
    if database.is_sqlite:
        pytest.skip("SQLite plans without such statistics")
    made = Lab(database, tmp_path)
    evaluate(made, OLD_ROWS, "old")
    with database.write() as connection:
        for table in metadata.tables:
            connection.exec_driver_sql(f"ANALYZE {table}")
    return made


def evaluate(lab: Lab, count: int, word: str) -> str:
    """Score a file of so many rows; return the job's id."""
    data = lab.load_predictions([{"gold": f"{word} {number}", "a": f"{word} {number}"} for number in range(count)], "a")
    spec = {"dataset": data.id, "predictions": data.id, "columns": ["a"], "resamples": 100}
    job_id, _ = submit_job(lab.database, lab.tenant, parse_evaluate_spec(spec))
    lab.work()
    return job_id


def test_page_that_is_to_be_scored_looks_each_row_up_by_its_key(lab: Lab) -> None:
    job_id, _ = submit_rescore(lab.database, lab.tenant, [evaluate(lab, 2 * PAGE, "new")], {})
    claim = take(lab.database, make_worker(lab.database, "w", kinds=("evaluate",)))
    assert claim is not None

    def read() -> None:
        with lab.database.read() as connection:
            found = case_rows.load_pending(connection, claim, evaluations.load(connection, claim.job_key), limit=PAGE)
        assert len(found) == PAGE

    # The chunk is looked through at once.
    assert rows_read(lab.database, read) < 2 * PAGE * LOOKS_PER_ROW
    lab.score(claim)
    assert len(lab.outcomes(job_id)) == 2 * PAGE

    def read_again() -> None:
        with lab.database.read() as connection:
            assert case_rows.load_pending(connection, claim, evaluations.load(connection, claim.job_key), limit=PAGE) == []

    assert rows_read(lab.database, read_again) < 2 * PAGE * LOOKS_PER_ROW


@pytest.mark.parametrize("after", [None, f"c:{PAGE}"])
def test_page_of_cases_looks_each_up_by_its_key(lab: Lab, after: str | None) -> None:
    job_id = evaluate(lab, 2 * PAGE, "new")

    def read() -> None:
        assert len(read_cases(lab.database, lab.tenant, job_id, CaseQuery(), after=after, limit=PAGE)) == PAGE

    # Beside the case, its row, its text and its id: four measures, read, sorted and grouped.
    assert rows_read(lab.database, read) < 3 * PAGE * LOOKS_PER_ROW


def test_ranking_walks_once_through_the_scores(lab: Lab) -> None:
    job_id = evaluate(lab, 2 * PAGE, "new")
    query = CaseQuery("worst")

    def read() -> None:
        assert len(rank_cases(lab.database, lab.tenant, job_id, query).keys) == 2 * PAGE

    assert rows_read(lab.database, read) < 2 * PAGE * LOOKS_PER_ROW

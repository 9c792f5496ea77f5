"""`check` recounts every counter of every job."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, update

from gistmill.admin import main
from gistmill.db.check import check
from gistmill.db.session import Database
from gistmill.db.tables import dataset_rows, generations, job_rows, jobs
from tests.support.rows import write_history

COUNTERS = ("succeeded", "failed", "generated", "shared", "truncated", "cut_off", "chunks", "chunks_left", "items")


def test_counters_that_agree_give_no_difference(database: Database) -> None:
    write_history(database, failed=frozenset({1, 4}))
    write_history(database, name="other")
    assert check(database) == []


def test_each_wrong_counter_is_named(database: Database) -> None:
    history = write_history(database)
    for counter in (*COUNTERS, "distinct_dialogues", "not_run"):
        for step in (1, -1):
            with database.write() as connection:
                connection.execute(update(jobs).values({counter: jobs.c[counter] + step}))
            differences = check(database)
            assert bool(differences) == (step == 1), counter
            assert all(line.startswith(f"{history.job_id}: ") for line in differences)


def test_rows_that_name_nothing_are_counted(database: Database) -> None:
    write_history(database, failed=frozenset({1}))
    with database.write() as connection:
        connection.execute(update(generations).values(key=generations.c.key + 100))
        connection.execute(update(dataset_rows).values(dialogue_key=dataset_rows.c.dialogue_key + 100))
    differences = check(database)
    assert "results.generation_key: 5 rows name nothing in generations" in differences
    assert "dataset_rows.dialogue_key: 6 rows name nothing in dialogues" in differences


def test_rows_are_counted_by_range_and_by_list(database: Database) -> None:
    history = write_history(database, items=7, state="queued")
    with database.write() as connection:
        connection.execute(update(jobs).values(row_start=1, row_stop=7, row_step=2, items=3, distinct_dialogues=3))
    assert check(database) == []
    with database.write() as connection:
        connection.execute(update(jobs).values(row_step=0, items=2, distinct_dialogues=2))
        connection.execute(insert(job_rows), [{"job_key": history.job_key, "row_number": row} for row in (0, 6)])
    assert check(database) == []


def test_command_exits_with_1_on_differences(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_history(database)
    monkeypatch.setenv("GISTMILL_DATABASE__URL", database_url)
    # Logging stays as it is: it would go on writing to the standard error of this test.
    monkeypatch.setattr("gistmill.admin.configure", lambda settings: None)
    assert main(["upgrade"]) == 0
    assert main(["check"]) == 0
    with database.write() as connection:
        connection.execute(update(jobs).values(generated=99))
    assert main(["check"]) == 1
    assert "generated is 99, but the rows make 6" in capsys.readouterr().out

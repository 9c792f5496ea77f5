"""Steering an evaluation steers the summarize jobs that it has submitted, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from gistmill import control
from gistmill.db.session import Database
from gistmill.db.tables import evaluation_systems, jobs
from gistmill.readback import get_job
from tests.support.evaluations import Lab, dialogues, echo, first_words


@pytest.fixture
def lab(database: Database, tmp_path: Path) -> Lab:
    """A database with two models."""
    made = Lab(database, tmp_path)
    made.add("one", first_words)
    made.add("two", echo)
    return made


def sources(lab: Lab, job_id: str) -> list[str]:
    """Return the ids of the jobs whose summaries are compared."""
    query = select(jobs.c.id).join(evaluation_systems, evaluation_systems.c.summaries_key == jobs.c.key)
    with lab.database.read() as connection:
        mine = query.where(evaluation_systems.c.job_key == lab.key_of(job_id)).order_by(evaluation_systems.c.number)
        return list(connection.execute(mine).scalars())


def states(lab: Lab, *job_ids: str) -> list[str]:
    return [get_job(lab.database, lab.tenant, job_id).state for job_id in job_ids]


def test_cancelled_evaluation_cancels_the_summaries_that_only_it_needs(lab: Lab) -> None:
    data = lab.load(dialogues(4)).id
    evaluation = lab.submit(data, "one", "two")
    made = sources(lab, evaluation)
    other = lab.submit(data, f"kept=job:{made[1]}")

    control.cancel(lab.database, lab.tenant, evaluation)

    assert states(lab, evaluation, *made, other) == ["cancelled", "cancelled", "queued", "waiting"]
    lab.work()
    assert states(lab, evaluation, *made, other) == ["cancelled", "cancelled", "completed", "completed"]


def test_summaries_of_another_owner_outlive_the_evaluation(lab: Lab) -> None:
    data = lab.load(dialogues(4)).id
    made = sources(lab, lab.submit(data, "one"))
    guest = lab.submit(data, f"one=job:{made[0]}")
    control.cancel(lab.database, lab.tenant, guest)
    assert states(lab, guest, made[0]) == ["cancelled", "queued"]


def test_retry_of_an_evaluation_takes_up_the_summaries_that_were_lost(lab: Lab) -> None:
    evaluation = lab.submit(lab.load(dialogues(4)).id, "one", "two")
    made = sources(lab, evaluation)
    control.cancel(lab.database, lab.tenant, made[0])
    assert states(lab, evaluation, *made) == ["failed", "cancelled", "queued"]
    lab.work()

    control.retry(lab.database, lab.tenant, evaluation)

    assert states(lab, evaluation, *made) == ["waiting", "queued", "completed"]
    lab.work()
    assert (states(lab, evaluation), lab.view(evaluation).counts) == (["completed"], {"scored": 4})


def test_pause_of_an_evaluation_rests_its_summaries(lab: Lab) -> None:
    evaluation = lab.submit(lab.load(dialogues(4)).id, "one", "two")
    control.pause(lab.database, lab.tenant, evaluation)
    lab.work()
    assert states(lab, *sources(lab, evaluation)) == ["queued", "queued"]

    control.resume(lab.database, lab.tenant, evaluation)
    lab.work()
    assert states(lab, evaluation) == ["completed"]


def test_evaluations_are_no_experiments(lab: Lab) -> None:
    evaluation = lab.submit(lab.load(dialogues(2)).id, "one")
    assert len(sources(lab, evaluation)) == 1
    with lab.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM v_experiments").scalar_one() == 0

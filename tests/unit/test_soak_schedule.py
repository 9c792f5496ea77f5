"""The soak's schedule: the seed alone decides it, and no class of fault is left out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.soak.classes import CLASSES, classes_of
from tests.soak.schedule import make_plan, required_times, write_plan


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_equal_seeds_give_equal_schedules(database: str) -> None:
    assert make_plan(7, minutes=10, database=database) == make_plan(7, minutes=10, database=database)


def test_other_seeds_give_other_faults_and_other_jobs() -> None:
    one, other = make_plan(7, minutes=2, database="sqlite"), make_plan(8, minutes=2, database="sqlite")
    assert one.faults != other.faults
    assert one.jobs != other.jobs


@pytest.mark.parametrize(("minutes", "times"), [(1, 1), (2, 1), (10, 5), (25, 12)])
def test_longer_storms_must_meet_each_class_more_often(minutes: float, times: int) -> None:
    assert required_times(minutes) == times


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("minutes", [2, 10])
def test_every_class_is_scheduled_more_often_than_it_must_be_met(database: str, minutes: float) -> None:
    plan = make_plan(3, minutes=minutes, database=database)
    scheduled = Counter(fault.name for fault in plan.faults)
    assert set(scheduled) == {kind.name for kind in classes_of(database)}
    assert min(scheduled.values()) > plan.required
    assert all(0 < fault.at_s < minutes * 60 for fault in plan.faults)


def test_each_class_has_a_name_of_its_own_and_says_how_it_is_done() -> None:
    assert len({kind.name for kind in CLASSES}) == len(CLASSES)
    assert all(kind.how for kind in CLASSES)


def test_written_schedule_tells_every_fault_and_job(tmp_path: Path) -> None:
    plan = make_plan(5, minutes=2, database="sqlite")
    write_plan(plan, tmp_path / "schedule.json")
    body = json.loads((tmp_path / "schedule.json").read_text())
    assert [fault["number"] for fault in body["faults"]] == [fault.number for fault in plan.faults]
    assert [job["name"] for job in body["jobs"]] == [job.name for job in plan.jobs]
    assert body["seed"] == 5

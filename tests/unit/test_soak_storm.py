"""The storm: a class that was not met often enough is tried again, and not for ever."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from tests.soak import storm as storms
from tests.soak.classes import BY_NAME, FaultClass
from tests.soak.plan import Fault, Met, Plan
from tests.soak.stage import Stage
from tests.soak.storm import TRIES, Storm, count_met
from tests.support.servers import wait_until


class FakeStage:
    """What a lane needs of a stage: time, which stands still here, and its end."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def wait(self, _seconds: float) -> None:
        """Do not wait."""


def make_storm(monkeypatch: pytest.MonkeyPatch, misses: int, said: list[str]) -> Storm:
    monkeypatch.setattr(storms, "REST_S", 0.001)
    stage: Any = FakeStage()
    tried: list[Fault] = []

    def strike(_stage: Stage, fault: Fault) -> Met | None:
        tried.append(fault)
        if len(tried) >= 1000:
            stage.over.set()
        return Met(0.0, 0.0) if len(tried) > misses else None

    monkeypatch.setitem(BY_NAME, "elusive", FaultClass("elusive", "its lane", strike, "itself"))
    faults = tuple(Fault(number, "elusive", "its lane", 0.0, 0, {}) for number in range(2))
    plan = Plan(seed=1, minutes=2, database="sqlite", faults=faults, jobs=(), required=2, classes=("elusive",))
    intake: Any = None
    return Storm(stage, plan, intake, said.append)


def test_class_that_its_lane_still_owes_is_tried_until_it_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    storm = make_storm(monkeypatch, misses=TRIES * 2 + 3, said=said)
    storm._run_lane("its lane")
    assert count_met(storm.told, "elusive") == 2
    assert sum("(missed)" in line for line in said) == len(said) - 2 == 3


def test_class_that_was_met_often_enough_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    make_storm(monkeypatch, misses=0, said=said)._run_lane("its lane")
    assert len(said) == 2


def test_class_that_cannot_be_met_is_given_up_at_the_end_of_the_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    storm = make_storm(monkeypatch, misses=10_000, said=[])
    storm._run_lane("its lane")
    assert storm.stage.over.is_set()
    assert count_met(storm.told, "elusive") == 0


def test_class_that_cannot_be_met_keeps_no_other_of_its_lane_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    storm = make_storm(monkeypatch, misses=TRIES * 2 + 3, said=[])
    monkeypatch.setitem(BY_NAME, "impossible", FaultClass("impossible", "its lane", lambda *_: None, "itself"))
    impossible = Fault(2, "impossible", "its lane", 0.0, 0, {})
    storm.plan = replace(storm.plan, faults=(impossible, *storm.plan.faults))
    lane = threading.Thread(target=storm._run_lane, args=["its lane"])
    lane.start()
    try:
        wait_until(lambda: count_met(storm.told, "elusive") == 2, what="the class that can be met")
    finally:
        storm.stage.over.set()
        lane.join()
    assert count_met(storm.told, "elusive") == 2
    assert count_met(storm.told, "impossible") == 0

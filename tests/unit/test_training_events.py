"""What passes between a training child and its parent."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from workers.training.events import (
    Checkpointed,
    Evaluated,
    Event,
    Failed,
    Finished,
    Halted,
    Started,
    Stepped,
    Working,
    from_json,
    to_json,
)
from workers.training.journal import Journal
from workers.training.orders import Outbox
from workers.training.plan import StopMetric, TrainingPlan
from workers.training.pulse import Pulse

EVENTS: list[Event] = [
    Started(3_538_944, 251_116_800, 1557, 12, 8, 2),
    Stepped(13, 0.1, 2.5, 1e-3, 0.7, 88.25, 2**33),
    Evaluated(13, 0.1, 2.25, 0.5, 0.25, 0.4, 0.4),
    Evaluated(14, 0.1, None, None, None, None, None),
    Working(),
    Checkpointed(13, "/a/checkpoint-000000013", "ab" * 32),
    Finished(1557, "/a/result"),
    Halted(13, "/a/checkpoint-000000013"),
    Failed("out_of_memory", "No \u201croom\u201d.\nNone."),
]
FIELDS = {
    "base_dir": "/m",
    "method": "lora",
    "learning_rate": 1e-3,
    "seed": 1,
    "train_file": "/t",
    "checkpoint_every": 10,
    "work_dir": "/w",
}


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_from_its_line(event: Event) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event


@pytest.mark.parametrize("line", ["", "{}", '{"event": "Melted"}', '{"event": "Finished", "step": 1}'])
def test_a_line_that_holds_no_event_is_refused(line: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        from_json(line)


def test_the_outbox_writes_whole_lines() -> None:
    out, into = os.pipe()
    outbox = Outbox(into)
    for event in EVENTS:
        outbox.send(event)
    os.close(into)
    with os.fdopen(out) as lines:
        assert [from_json(line) for line in lines] == EVENTS


def test_a_plan_comes_back_from_its_json() -> None:
    plan = TrainingPlan.model_validate(FIELDS | {"resume_dirs": ["/b", "/a"]})
    assert TrainingPlan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"targets": []},
        {"learning_rate": 0},
        {"learning_rate": "nan"},
        {"dropout": 1},
        {"colour": "red"},
        {"device": "cuda:1"},
        {"early_stop_patience": 2},
    ],
    ids=str,
)
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingPlan.model_validate(FIELDS | changes)


def test_the_parents_side_imports_no_torch() -> None:
    program = "import sys, workers.training.child, workers.training.orders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def scored(step: int, *, loss: float, rouge: float) -> Evaluated:
    """Return an evaluation."""
    return Evaluated(step, 0.0, loss, rouge, rouge, rouge, rouge)


@pytest.mark.parametrize(("metric", "best"), [("loss", 3), ("rougeL", 2), ("rouge1", 2)])
def test_the_best_evaluation_is_the_first_of_the_best(metric: StopMetric, best: int) -> None:
    journal = Journal(lambda event: None, metric=metric, patience=None)
    assert journal.best() is None
    journal.replay([scored(1, loss=3, rouge=0.1), scored(2, loss=2, rouge=0.5), scored(3, loss=1, rouge=0.5)])
    found = journal.best()
    assert found is not None
    assert found.step == best
    assert not journal.is_exhausted()


def test_a_run_stops_after_as_many_evaluations_without_a_better_one_as_the_patience() -> None:
    sent: list[Event] = []
    journal = Journal(sent.append, metric="loss", patience=2)
    verdicts = []
    for step, loss in enumerate([3.0, 2.0, 2.5, 1.0, 1.0, 1.5], start=1):
        journal.record(Stepped(step, 0, loss, 0, 0, 0, 0))
        journal.record(scored(step, loss=loss, rouge=0))
        verdicts.append(journal.is_exhausted())
    assert verdicts == [False] * 5 + [True]
    assert sent == journal.points


def test_a_pulse_is_sent_once_in_five_seconds_of_progress() -> None:
    sent: list[Event] = []
    times = iter([0.0, 1.0, 4.9, 5.0, 5.1, 9.9, 30.0, 30.1])
    pulse = Pulse(sent.append, lambda: len(sent) == 2, clock=lambda: next(times))
    assert [(pulse.should_stop(), len(sent)) for _ in range(7)] == [
        (False, 0),
        (False, 0),
        (False, 1),
        (False, 1),
        (False, 1),
        (True, 2),
        (True, 2),
    ]
    assert sent == [Working(), Working()]

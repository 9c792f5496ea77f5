"""How long a run is, and after which steps it evaluates and writes a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from workers.training.plan import TrainingPlan


@dataclass(frozen=True)
class Schedule:
    """How long a run is, in optimizer steps."""

    steps_per_epoch: int
    total_steps: int

    @classmethod
    def of(cls, plan: TrainingPlan, *, rows: int, effective_batch: int) -> Schedule:
        """Return the schedule for so many rows."""
        steps_per_epoch = math.ceil(rows / effective_batch)
        return cls(steps_per_epoch, plan.max_steps or max(1, math.ceil(plan.epochs * steps_per_epoch)))


class Timetable(TrainerCallback):
    """Says after which steps to evaluate and to write a checkpoint.

    transformers' own strategies were rejected: it evaluates at the end of an epoch after it has written the checkpoint of that
    step, so that a run that is killed in between never makes the evaluation.
    """

    def __init__(self, plan: TrainingPlan, schedule: Schedule, should_stop: Callable[[], bool]) -> None:
        self._plan = plan
        self._schedule = schedule
        self._should_stop = should_stop
        self._evaluates = plan.validation_file is not None

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """Decide for the step that has just been made."""
        step, is_last = state.global_step, state.global_step == self._schedule.total_steps
        every = self._plan.evaluate_every or self._schedule.steps_per_epoch
        control.should_evaluate = self._evaluates and (is_last or step % every == 0)
        control.should_save = step % self._plan.checkpoint_every == 0 or self._should_stop()
        return control

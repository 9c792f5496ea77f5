"""The curve of a running training on its way into SQL: points wait for others, never longer than a second."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from gistmill.db import training as training_rows
from gistmill.db.claim import Claim
from gistmill.db.session import Database
from gistmill.db.training import Point
from workers.training.events import Evaluated, Event, Started, Stepped

FLUSH_S = 1.0
MOST_POINTS = 1_000


class Curve:
    """Buffers points and writes them under the epoch of the claim."""

    def __init__(self, database: Database, claim: Claim) -> None:
        self._database = database
        self._claim = claim
        self._points: list[Point] = []
        self._state: dict[str, Any] = {}
        self._flushed_at = time.monotonic()

    @property
    def state(self) -> dict[str, Any]:
        """What the job shows of the run: parameters, steps, the last losses."""
        return self._state

    def add(self, event: Event) -> None:
        """Take what an event says of the run; write when it is time.

        Raises:
            LeaseLost: the chunk is no longer this claim's.
        """
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Stepped):
            self._points.append(_step(event))
            self._state |= {"step": event.step, "epoch": event.epoch, "loss": event.loss, "samples_per_s": event.samples_per_s}
            self._state |= {"learning_rate": event.learning_rate, "memory_bytes": event.memory_bytes}
        elif isinstance(event, Evaluated):
            self._points.append(_evaluation(event))
            self._state |= {"eval_loss": event.loss, "rouge_l": event.rougeL}
        if time.monotonic() - self._flushed_at >= FLUSH_S or len(self._points) >= MOST_POINTS:
            self.flush()

    def flush(self, *, is_saved: bool = False) -> None:
        """Write what waits; `is_saved` says that a checkpoint holds everything up to here.

        Raises:
            LeaseLost: the chunk is no longer this claim's; nothing was written.
        """
        points, self._points = self._points, []
        self._database.transact(
            partial(training_rows.record, claim=self._claim, points=points, training=self._state, is_saved=is_saved)
        )
        self._flushed_at = time.monotonic()

    def _start(self, event: Started) -> None:
        self._state |= {
            "trainable_parameters": event.trainable_parameters,
            "total_parameters": event.total_parameters,
            "total_steps": event.total_steps,
            "step": event.resumed_step,
            "batch_size": event.batch_size,
            "gradient_accumulation": event.gradient_accumulation,
        }


def _step(event: Stepped) -> Point:
    return Point(
        "train",
        event.step,
        event.epoch,
        loss=event.loss,
        learning_rate=event.learning_rate,
        gradient_norm=event.gradient_norm,
        samples_per_s=event.samples_per_s,
        memory_bytes=event.memory_bytes,
    )


def _evaluation(event: Evaluated) -> Point:
    return Point(
        "eval",
        event.step,
        event.epoch,
        loss=event.loss,
        rouge1=event.rouge1,
        rouge2=event.rouge2,
        rougel=event.rougeL,
        rougelsum=event.rougeLsum,
    )

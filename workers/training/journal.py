"""The curve of a run so far, and what follows from it: which evaluation was the best, and whether to stop early."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from workers.training.events import Evaluated, Event, Stepped
from workers.training.plan import StopMetric

Point = Stepped | Evaluated


class Journal:
    """Every step and evaluation of the run, those before a resume included; each is sent when it is recorded.

    Nothing else is remembered about early stopping: a resumed run decides as the uninterrupted one.
    """

    def __init__(self, send: Callable[[Event], None], *, metric: StopMetric, patience: int | None) -> None:
        self._send = send
        self._metric = metric
        self._patience = patience
        self.points: list[Point] = []

    def record(self, point: Point) -> None:
        """Add a point and send it."""
        self.points.append(point)
        self._send(point)

    def replay(self, points: Iterable[Point]) -> None:
        """Take over the curve of an earlier run, and send it again: what the parent heard of it may have been lost."""
        for point in points:
            self.record(point)

    def best(self) -> Evaluated | None:
        """Return the first of the best evaluations, or None without any."""
        evaluated = [point for point in self.points if isinstance(point, Evaluated)]
        return max(evaluated, key=self._merit, default=None)

    def is_exhausted(self) -> bool:
        """Say whether as many evaluations as the patience have passed without a better one."""
        best = self.best()
        if self._patience is None or best is None:
            return False
        since = sum(isinstance(point, Evaluated) and point.step > best.step for point in self.points)
        return since >= self._patience

    def _merit(self, point: Evaluated) -> float:
        value: float | None = getattr(point, self._metric)
        if value is None:
            return float("-inf")
        return -value if self._metric == "loss" else value

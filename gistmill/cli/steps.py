"""The steps of an experiment on standard error: a live table on a terminal, else a line for each change."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gistmill.cli.output import advise, say
from gistmill.progress import LINE_EVERY_S
from gistmill.views import ExperimentView, StepView

if TYPE_CHECKING:
    from rich.table import Table

UNITS = {"summarize": "items", "finetune": "steps", "evaluate": "cases"}
# The error of a job that failed with another one: that one is to be named instead.
FOLLOWED = "dependency_failed"


@contextmanager
def show_steps(*, live: bool) -> Iterator[Callable[[ExperimentView], None]]:
    """Give a function that shows the experiment it is called with; `live` draws over one table on a terminal."""
    if not (live and sys.stderr.isatty()):
        yield _Lines().show
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as table:
        yield lambda view: table.update(draw(view), refresh=True)


def draw(view: ExperimentView) -> Table:
    """Return the steps as a table for terminals."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("", "step", "state", "done"):
        table.add_column(name)
    for step in view.steps:
        table.add_row(str(step.number), step.name, step.state, progress(step))
    return table


def progress(step: StepView) -> str:
    """Return how far a step is, and what came of it."""
    of = "" if step.total is None else f" of {step.total}"
    counted = f"{step.done}{of} {UNITS.get(step.kind, '')}".rstrip()
    failed = f", {step.failed} failed" if step.failed else ""
    return f"{counted}{failed}{f', made {step.produced}' if step.produced else ''}"


def list_causes(view: ExperimentView) -> list[StepView]:
    """Return the steps to take up again: those that were cancelled, or failed by themselves and not with another job."""
    return [
        step
        for step in view.steps
        if step.state == "cancelled" or (step.state == "failed" and (step.error or {}).get("code") != FOLLOWED)
    ]


def say_why(view: ExperimentView) -> None:
    """Say which steps kept an experiment from completing, and how to take them up again, each or all of them."""
    causes = list_causes(view)
    # Of an experiment that was cancelled nearly all steps were, and nobody wants them one by one.
    for step in causes if view.state == "failed" else ():
        reason = f": {(step.error or {}).get('message', 'no reason is known')}" if step.state == "failed" else ""
        say(f"error: step {step.number}, {step.name}, {'failed' if step.state == 'failed' else 'was cancelled'}{reason}")
        advise(f"gistmill jobs retry {step.job}")
    if len(causes) != 1 or view.state == "cancelled":
        advise(f"gistmill jobs retry {view.id}")


class _Lines:
    def __init__(self) -> None:
        self._states: dict[int, str] = {}
        self._shown_at = 0.0

    def show(self, view: ExperimentView) -> None:
        is_time = time.monotonic() - self._shown_at >= LINE_EVERY_S
        for step in view.steps:
            is_new = self._states.get(step.number, "waiting") != step.state
            if is_new or (is_time and step.state == "running"):
                self._states[step.number] = step.state
                self._shown_at = time.monotonic()
                say(f"{step.number}/{len(view.steps)} {step.name}: {step.state}, {progress(step)}")

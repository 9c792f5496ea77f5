"""Progress on standard error: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gistmill.views import JobView

LINE_EVERY_S = 5.0


@contextmanager
def show_progress() -> Iterator[Callable[[JobView], None]]:
    """Give a function that shows the job it is called with."""
    if not sys.stderr.isatty():
        yield _Lines().show
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("queued", total=None)

        def show(job: JobView) -> None:
            done, total, _ = _counted(job)
            bar.update(task, description=describe(job), completed=done, total=total)

        yield show


def describe(job: JobView) -> str:
    """Return the state, and why nothing runs when that is known."""
    return f"{job.state} ({job.waits_for})" if job.waits_for else job.state


def _counted(job: JobView) -> tuple[int, int, str]:
    """Return how much is done, of how much, and what that is."""
    if job.evaluation is not None:
        return job.evaluation.get("ended", 0), job.evaluation.get("cases", 0), "cases"
    return job.counts.succeeded + job.counts.failed, job.counts.items, "items"


class _Lines:
    def __init__(self) -> None:
        self._shown_at = 0.0
        self._state = ""

    def show(self, job: JobView) -> None:
        now = time.monotonic()
        if job.state == self._state and now - self._shown_at < LINE_EVERY_S:
            return
        self._shown_at, self._state = now, job.state
        done, total, what = _counted(job)
        failed = f", {job.counts.failed} failed" if job.counts.items else ""
        sys.stderr.write(f"{job.id}: {describe(job)}, {done} of {total} {what}{failed}\n")
        sys.stderr.flush()

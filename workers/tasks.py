"""The Celery tasks: a bell wakes the worker, SQL tells it what to do."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from gistmill.faults import point
from gistmill.queue import TASK


def register(app: Celery, work: Callable[[], None]) -> None:
    """Make a bell call `work`. The bell's arguments are ignored: it may be forged, doubled or old."""

    def bell(*_args: object, **_kwargs: object) -> None:
        point("bell.popped")
        work()

    app.task(name=TASK, ignore_result=True)(bell)

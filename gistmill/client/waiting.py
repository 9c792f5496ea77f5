"""Waiting for what has ended in the end: asked again and again, the longer it runs the less often."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

from gistmill.states import JobState
from gistmill.views import ExperimentView, JobView

View = TypeVar("View", JobView, ExperimentView)

# A pause is this part of the time that has passed: on the host that also does the work, each question takes time from it.
PART = 0.05


def wait_for_end(
    refresh: Callable[[], View],
    what: str,
    *,
    timeout_s: float | None,
    on_change: Callable[[View], None] | None,
    shortest_s: float,
    longest_s: float,
) -> None:
    """Return when `refresh` gives a view whose state is final. Each view is handed to `on_change`.

    `shortest_s` and `longest_s` are the limits of a pause in seconds. `what` is what the error calls it.

    Raises:
        TimeoutError: it has not ended in `timeout_s` seconds.
    """
    began_at = time.monotonic()
    while True:
        view = refresh()
        if on_change is not None:
            on_change(view)
        if JobState(view.state).is_final:
            return
        passed_s = time.monotonic() - began_at
        left_s = math.inf if timeout_s is None else timeout_s - passed_s
        if left_s < 0:
            raise TimeoutError(f"The {what} {view.id} is {view.state} after {timeout_s} s; it runs on.")
        time.sleep(max(shortest_s, min(longest_s, passed_s * PART, left_s)))

"""Fault points: named moments at which a drill may hurt this process. Nothing in the product arms them.

A point that is off is one call and one comparison: 0.1 microseconds, three times in a micro-batch (`make bench-faults`).
Point names are `noun.moment`; docs/reliability.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable

Drill = Callable[[str, dict[str, object]], None]

_drill: Drill | None = None


def arm(drill: Drill) -> None:
    """Let this drill be called at every point with its name and facts, until the process ends."""
    global _drill
    _drill = drill


def point(name: str, **facts: object) -> None:
    """Stand for the moment `name`. An armed drill may log, wait, raise, or end the process."""
    if _drill is not None:
        _drill(name, facts)

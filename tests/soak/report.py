"""What a soak prints at its end, and the same as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import func, select

from gistmill.db.tables import jobs
from tests.soak.classes import BY_NAME
from tests.soak.plan import Plan
from tests.soak.stage import Stage
from tests.soak.storm import Storm, Told, count_met

WHAT = {"chunk": "the victim's chunk", "fleet": "the fleet", "itself": "what it hit"}


@dataclass(frozen=True)
class Line:
    """One class: how often it was scheduled and met, and how long recoveries took, in seconds."""

    name: str
    scheduled: int
    met: int
    recovered: str
    times_s: tuple[float, ...]

    @property
    def median_s(self) -> float | None:
        """The middle one of the recovery times."""
        return round(median(self.times_s), 2) if self.times_s else None

    @property
    def longest_s(self) -> float | None:
        """The longest recovery time."""
        return round(max(self.times_s), 2) if self.times_s else None


def recovery_s(stage: Stage, told: Told) -> float | None:
    """Return how long the fleet needed after a fault, or None when there was nothing to recover.

    From the blow, or from the end of a fault that lasted, until the next committed claim, micro-batch or ending: of the chunk
    that the victim held, by whoever; of any chunk where the whole fleet was hit, or the victim held none. A chunk that was not
    taken up again, because its job had been cancelled, does not count; one whose job has a low priority counts, however long
    it waits for its turn.
    """
    met = told.met
    if met is None or met.seconds is not None:
        return None if met is None else met.seconds
    if BY_NAME[told.fault.name].recovers == "itself":
        return None
    chunk = stage.trail.held_by(met.pid, at=met.at) if met.pid else 0
    step = stage.trail.next_step(met.ended_at, chunk=chunk)
    return None if step is None else step.at - met.ended_at


def make_lines(stage: Stage, plan: Plan, told: Sequence[Told]) -> list[Line]:
    """Return a line for each class of the plan."""
    scheduled = Counter(fault.name for fault in plan.faults)
    lines = []
    for name in plan.classes:
        mine = [one for one in told if one.fault.name == name]
        times = [seconds for one in mine if (seconds := recovery_s(stage, one)) is not None]
        lines.append(Line(name, scheduled[name], count_met(mine, name), WHAT[BY_NAME[name].recovers], tuple(times)))
    return lines


def find_unmet(lines: Sequence[Line], required: int) -> list[str]:
    """Return a line for each class that was met too rarely."""
    return [f"{line.name} was met {line.met} times instead of {required}" for line in lines if line.met < required]


def format_table(lines: Sequence[Line]) -> str:
    """Return the table that a person reads."""
    rows = [f"{'class':26} {'met':>5} {'recovered':20} {'median s':>9} {'longest s':>9}"]
    for line in lines:
        times = [f"{'-' if value is None else value:>9}" for value in (line.median_s, line.longest_s)]
        rows.append(f"{line.name:26} {line.met:>5} {line.recovered:20} {' '.join(times)}")
    return "\n".join(rows)


def count_jobs(stage: Stage) -> dict[str, Any]:
    """Return the jobs by state and the items that were done."""
    by_state = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    ends = select(*(func.sum(jobs.c[name]).label(name) for name in ("items", "succeeded", "failed", "not_run")))
    with stage.database.read() as connection:
        states = {row[0]: int(row[1]) for row in connection.execute(by_state)}
        return {"jobs": states} | {name: int(value or 0) for name, value in connection.execute(ends).one()._mapping.items()}


def write_json(path: Path, plan: Plan, storm: Storm, lines: Sequence[Line], counts: dict[str, Any], broken: list[str]) -> None:
    """Write the whole report."""
    body = {
        "seed": plan.seed,
        "minutes": plan.minutes,
        "database": plan.database,
        "required": plan.required,
        "asked_again": storm.intake.asked_again,
        "most_bells": storm.most_bells,
        "classes": [
            {"name": line.name, "how": BY_NAME[line.name].how, "scheduled": line.scheduled, "met": line.met}
            | {"recovered": line.recovered, "median_s": line.median_s, "longest_s": line.longest_s}
            for line in lines
        ],
        "broken": broken,
    }
    path.write_text(json.dumps(body | counts, indent=1))

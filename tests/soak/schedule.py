"""From a seed to a plan. Nothing here looks at a clock or at what runs: equal seeds give equal plans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from math import ceil
from pathlib import Path
from random import Random

from tests.soak.classes import FaultClass, classes_of
from tests.soak.plan import Fault, Plan, PlannedJob
from tests.soak.stage import SEATS
from workers.engine.fake import POISON

# Workers need a moment to start, and the last faults of a storm a moment to be met.
WARM_UP_S = 4.0
TAIL_S = 15.0
# A poison needs a dozen crashes, each found out at the end of a lease.
POISON_TAIL_S = 45.0
# When a class has not been met often enough at the end, its lane may go on for so long.
OVERTIME_S = 45.0
ROWS_PER_S = 45
COMMON_DIALOGUES = 300


def required_times(minutes: float) -> int:
    """Return how often each class must be met: five times in ten minutes, and once at least."""
    return max(1, int(minutes // 2))


def make_plan(seed: int, *, minutes: float, database: str) -> Plan:
    """Draw the faults and the jobs of a soak. Some faults miss their victim, so more are drawn than must be met."""
    classes = classes_of(database)
    required = required_times(minutes)
    times = required + ceil(required * 0.4)
    lanes = sorted({kind.lane for kind in classes})
    numbers = count(1)
    drawn = [
        fault
        for lane in lanes
        # Each lane draws from a source of its own, so that a new class does not move the faults of the others.
        for fault in _draw_lane(Random(f"{seed}/{lane}"), [k for k in classes if k.lane == lane], times, minutes, numbers)
    ]
    faults = tuple(sorted(drawn, key=lambda fault: fault.at_s))
    jobs = tuple(_draw_jobs(Random(f"{seed}/intake"), minutes * 60 + OVERTIME_S))
    return Plan(seed, minutes, database, faults, jobs, required, tuple(kind.name for kind in classes))


def write_plan(plan: Plan, path: Path) -> None:
    """Write the plan as JSON."""
    path.write_text(json.dumps(asdict(plan), indent=1))


def _draw_lane(
    random: Random, classes: list[FaultClass], times: int, minutes: float, numbers: Iterator[int]
) -> Iterator[Fault]:
    # Round by round, so that even the start of a storm holds every class.
    order = [kind for _ in range(times) for kind in random.sample(classes, len(classes))]
    end_s = minutes * 60 - (POISON_TAIL_S if classes[0].lane == "poison" else TAIL_S)
    step_s = max(0.0, end_s - WARM_UP_S) / len(order)
    for place, kind in enumerate(order):
        at_s = WARM_UP_S + step_s * (place + 0.8 * random.random())
        drawn = {name: _draw(random, *bounds) for name, bounds in kind.draws.items()}
        yield Fault(next(numbers), kind.name, kind.lane, round(at_s, 2), random.randrange(SEATS), drawn)


def _draw(random: Random, low: float, high: float) -> float:
    if isinstance(low, int) and isinstance(high, int):
        return random.randint(low, high)
    return round(random.uniform(low, high), 2)


def _draw_jobs(random: Random, end_s: float) -> Iterator[PlannedJob]:
    at_s = 0.0
    for number in count(1):
        over_http, is_second = random.random() < 0.4, random.random() < 0.3
        way = "http" if over_http else "sql-b" if is_second else "sql-a"
        name = f"{way}-{number}"
        texts = tuple(_draw_text(random, name, row) for row in range(random.randint(20, 100)))
        yield PlannedJob(
            name=name,
            at_s=round(at_s, 2),
            over_http=over_http,
            is_second_tenant=way == "sql-b",
            texts=texts,
            per_chunk=random.choice((2, 8, 16, 40)),
            priority=random.choice((0, 0, 0, 10, -10)),
            seed=random.randrange(1000) if random.random() < 0.2 else None,
            asks_again=random.random() < 0.2,
        )
        at_s += len(texts) / ROWS_PER_S
        if at_s > end_s:
            return


def _draw_text(random: Random, job: str, row: int) -> str:
    """Return a dialogue: mostly new, at times one that the job or others have too, at times one that fails."""
    chance = random.random()
    if chance < 0.1:
        # Not the same for jobs that come over HTTP and for those written by hand: a dialogue written by hand is looked up
        # first and inserted then, and PostgreSQL would let the api insert it in between.
        return f"common dialogue {random.randrange(COMMON_DIALOGUES)} of many {job.partition('-')[0]} jobs"
    if chance < 0.15:
        return f"{job} says this again and again {random.randrange(3)}"
    if chance < 0.17:
        return f"{job} row {row} cannot be done {POISON}"
    return f"{job} row {row} says {' '.join(random.choices(('yes', 'no', 'perhaps', 'never'), k=random.randint(1, 12)))}"

"""The goals of a run, each with its figure and whether it is met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.generation.contestants import DIRECT, DIRECT_INT8, LOOP
from benchmarks.generation.figures import Result, ratio, ratio_range
from benchmarks.generation.plan import DISTINCT, ENGINE_CTRANSLATE2, INT8, THRICE


@dataclass(frozen=True)
class Goal:
    """A ratio of two contestants' speeds and the least that it shall be."""

    one: str
    other: str
    least: float


@dataclass(frozen=True)
class Verdict:
    """A goal, what was measured, and whether that meets it."""

    what: str
    figure: str
    is_met: bool


# Of the small shape on two CPU cores.
FULL = (
    Goal(DISTINCT.name, DIRECT.name, 0.95),
    Goal(DISTINCT.name, LOOP.name, 4.0),
    Goal(THRICE.name, DIRECT.name, 2.8),
    Goal(THRICE.name, LOOP.name, 12.0),
    Goal(INT8.name, DIRECT_INT8.name, 0.95),
)
# Wide enough for a busy machine: they fall short only when something has collapsed.
QUICK = (
    Goal(ENGINE_CTRANSLATE2.name, DIRECT.name, 0.6),
    Goal(ENGINE_CTRANSLATE2.name, LOOP.name, 1.5),
    Goal(DISTINCT.name, DIRECT.name, 0.35),
    Goal(DISTINCT.name, LOOP.name, 1.2),
    Goal(THRICE.name, DIRECT.name, 0.9),
)


def judge(goals: tuple[Goal, ...], results: Mapping[str, Result]) -> list[Verdict]:
    """Return the verdict on each goal; one of a contestant that did not run is not met, and says so."""
    return [_judge(goal, results) for goal in goals]


def _judge(goal: Goal, results: Mapping[str, Result]) -> Verdict:
    what = f"{goal.one}: at least {goal.least:g} times {goal.other}"
    missing = [name for name in (goal.one, goal.other) if name not in results]
    if missing:
        return Verdict(what, f"not measured: {missing[0]} is not offered", is_met=False)
    one, other = results[goal.one], results[goal.other]
    low, high = ratio_range(one, other)
    figure = ratio(one, other)
    return Verdict(what, f"{figure:.2f} ({low:.2f} to {high:.2f})", is_met=figure >= goal.least)

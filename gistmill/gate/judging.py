"""A gate is judged by the figures of a comparison."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from gistmill.errors import Conflict
from gistmill.gate.conditions import DIGITS, RELATIONS, Condition, Gate, Term, number, refuse
from gistmill.views import ComparisonView, MeanView, PairView


@dataclass(frozen=True)
class Verdict:
    """Whether a gate is met, and a sentence for each of its conditions."""

    is_met: bool
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class _Value:
    """A score or difference in points with its limits at the level asked for, or why there are none."""

    middle: float
    limits: tuple[float, float] | None
    why: str = ""


def evaluate(gate: Gate, view: ComparisonView) -> Verdict:
    """Judge a gate by the figures of a comparison that has completed.

    Raises:
        InvalidInput: the comparison has no such system or measure; the message names the nearest.
        Conflict: it has no figures yet, or will have none.
    """
    if view.state != "completed":
        raise Conflict(f"The evaluation {view.id} is {view.state}: a gate is judged by one that has completed.")
    judged = [_judge(condition, gate.text or str(gate), view) for condition in gate.conditions]
    return Verdict(all(is_met for is_met, _ in judged), tuple(sentence for _, sentence in judged))


def _judge(condition: Condition, text: str, view: ComparisonView) -> tuple[bool, str]:
    value = _find(condition, text, view)
    shown = f"{condition}: it is {_shown(value.middle, condition.points)} points"
    decisive = value.middle
    if condition.level is not None:
        if value.limits is None:
            return False, f"not met: {shown}, but {value.why}"
        is_above = condition.relation.startswith(">")
        decisive = value.limits[0 if is_above else 1]
        limits = ", ".join(_shown(limit, condition.points) for limit in value.limits)
        shown += f" [{limits}], of which the {'lower' if is_above else 'upper'} limit decides"
    is_met = RELATIONS[condition.relation](round(decisive, DIGITS), round(condition.points, DIGITS))
    return is_met, f"{'met' if is_met else 'not met'}: {shown}"


def _find(condition: Condition, text: str, view: ComparisonView) -> _Value:
    mean = _find_mean(condition.term, text, view)
    if condition.minus is None:
        return _limit(mean.fmeasure, mean, condition.level)
    other = _find_mean(condition.minus, text, view)
    wanted = {condition.term.system, condition.minus.system}
    pair = next((p for p in view.pairs if p.measure == condition.term.measure and {p.system, p.baseline} == wanted), None)
    if pair is None:
        return _Value(
            100 * (mean.fmeasure - other.fmeasure), None, "the two were not paired case by case, so no interval is known"
        )
    value = _limit(pair.delta, pair, condition.level)
    return value if pair.system == condition.term.system else _negate(value)


def _find_mean(term: Term, text: str, view: ComparisonView) -> MeanView:
    at = f"The gate cannot be judged at column {term.at + 1}: there is no"
    system = next((system for system in view.systems if system.name == term.system), None)
    if system is None:
        names = [system.name for system in view.systems]
        refuse(text, term.at, f"{at} system '{term.system}'. {_nearest(term.system, names)}")
    if term.measure not in system.scores:
        refuse(text, term.at, f"{at} measure '{term.measure}'. {_nearest(term.measure, view.measures)}")
    return system.scores[term.measure]


def _limit(score: float, found: MeanView | PairView, level: int | None) -> _Value:
    limits = found.levels.get(str(level))
    if limits is None and level == 95 and found.low is not None and found.high is not None:
        limits = (found.low, found.high)
    if limits is not None:
        return _Value(100 * score, (100 * limits[0], 100 * limits[1]))
    why = "one case alone has no interval" if found.cases == 1 else f"no interval is known at {level} %"
    return _Value(100 * score, None, why)


def _negate(value: _Value) -> _Value:
    limits = None if value.limits is None else (-value.limits[1], -value.limits[0])
    return _Value(-value.middle, limits, value.why)


def _nearest(name: str, names: Sequence[str]) -> str:
    begun = [other for other in names if other.startswith(name)]
    near = begun or difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"There are: {', '.join(names) or 'none'}.{hint}"


def _shown(points: float, border: float) -> str:
    """Return points with two digits, or with all of them where two would look like the border."""
    text = f"{points:.2f}"
    return text if float(text) != border else number(points)

"""A condition on a comparison, such as 'lora.rougeLsum - original.rougeLsum > 5 @95%', read and judged.

    gate       = condition { "and" condition }
    condition  = term [ " - " term ] ( ">" | ">=" | "<" | "<=" ) points [ "@" level "%" ]
    term       = system "." measure

Points go from 0 to 100. The measure stands behind the last dot, so that a system's name may have dots, and the minus of a
difference has spaces around it, so that a name may have hyphens. With a level (90, 95 or 99) the unfavourable limit of the
interval decides: the lower one for > and >=, the upper one for < and <=. Without it the mean does.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from gistmill.errors import Conflict, InvalidInput
from gistmill.views import ComparisonView, MeanView, PairView

LEVELS = (90, 95, 99)
RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
NUMBER = re.compile(r"[+-]?(\d{1,9}(\.\d{0,9})?|\.\d{1,9})(?![\w.])", re.ASCII)
LEVEL = re.compile(r"@\s*(\d{1,3})\s*%", re.ASCII)
AND = re.compile(r"and(?!\S)", re.IGNORECASE)
MINUS = re.compile(r"\s-\s")
NARROW_MINUS = re.compile(r"\s-|-\s")
END_OF_TERM = re.compile(r"\s-\s|[<>=]|$")
FORM = "Write SYSTEM.MEASURE [- SYSTEM.MEASURE] > POINTS [@95%]."
SHOWN = 160
# Beyond this digit points differ only by how floating point adds.
DIGITS = 9


@dataclass(frozen=True)
class Term:
    """A system's score on a measure; `at` is its place in the gate's text."""

    system: str
    measure: str
    at: int = field(default=0, compare=False)

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.system}.{self.measure}"


@dataclass(frozen=True)
class Condition:
    """A term, or the difference of two, and the points that it is compared with."""

    term: Term
    minus: Term | None
    relation: str
    points: float
    level: int | None = None

    def __str__(self) -> str:
        """Return it as it is written."""
        level = "" if self.level is None else f" @{self.level}%"
        return f"{self.name} {self.relation} {_number(self.points)}{level}"

    @property
    def name(self) -> str:
        """What is compared with the points."""
        return str(self.term) if self.minus is None else f"{self.term} - {self.minus}"


@dataclass(frozen=True)
class Gate:
    """Conditions that must all hold."""

    conditions: tuple[Condition, ...]
    text: str = field(default="", compare=False)

    def __str__(self) -> str:
        """Return it as it is written."""
        return " and ".join(map(str, self.conditions))


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


def parse(text: str) -> Gate:
    """Return the gate that a text says.

    Raises:
        InvalidInput: it does not parse; the message shows the text with a caret below the place.
    """
    reader = _Reader(text)
    conditions = [reader.read_condition()]
    while not reader.is_at_end():
        reader.read_and()
        conditions.append(reader.read_condition())
    return Gate(tuple(conditions), text)


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


class _Reader:
    """Reads a gate's text from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def is_at_end(self) -> bool:
        """True when nothing but spaces is left."""
        self.skip()
        return self.at == len(self.text)

    def skip(self) -> None:
        """Pass over spaces."""
        self.at += len(self.text[self.at :]) - len(self.text[self.at :].lstrip())

    def read_and(self) -> None:
        """Pass over the word between two conditions."""
        match = AND.match(self.text, self.at)
        if match is None:
            _refuse(self.text, self.at, "here the gate should end, or go on with 'and'")
        self.at = match.end()

    def read_condition(self) -> Condition:
        """Return the next condition."""
        term, minus = self.read_term(), None
        if MINUS.match(self.text, self.at):
            self.at += 3
            minus = self.read_term()
            self.check_difference(term, minus)
        return Condition(term, minus, self.read_relation(), self.read_points(), self.read_level())

    def read_term(self) -> Term:
        """Return the next term; the place is then behind it, on the spaces around a minus if there is one."""
        self.skip()
        start, end = self.at, END_OF_TERM.search(self.text, self.at)
        self.at = len(self.text) if end is None else end.start()
        written = self.text[start : self.at].rstrip()
        system, dot, measure = written.rpartition(".")
        if not dot or not system or not measure:
            _refuse(self.text, start, "a system and its measure, joined by a dot, are missing")
        if space := re.search(r"\s", measure):
            _refuse(self.text, start + len(system) + 1 + space.start(), "one of > >= < <= is missing")
        if minus := NARROW_MINUS.search(system):
            _refuse(self.text, start + minus.start(), "the minus of a difference has spaces on both sides")
        return Term(system, measure, start)

    def check_difference(self, term: Term, minus: Term) -> None:
        """Make sure that two terms can be paired."""
        if term.measure != minus.measure:
            _refuse(self.text, minus.at, f"a difference is of one measure, here {term.measure}")
        if term.system == minus.system:
            _refuse(self.text, minus.at, "a system is compared with itself")

    def read_relation(self) -> str:
        """Return the next relation."""
        self.skip()
        relation = next((sign for sign in (">=", "<=", ">", "<") if self.text.startswith(sign, self.at)), None)
        if relation is None:
            _refuse(self.text, self.at, "one of > >= < <= is missing")
        self.at += len(relation)
        return relation

    def read_points(self) -> float:
        """Return the next number."""
        self.skip()
        match = NUMBER.match(self.text, self.at)
        if match is None:
            _refuse(self.text, self.at, "a number of points, such as 5 or 0.5, is missing")
        self.at = match.end()
        return float(match.group())

    def read_level(self) -> int | None:
        """Return the level, or None where there is none."""
        self.skip()
        if not self.text.startswith("@", self.at):
            return None
        match = LEVEL.match(self.text, self.at)
        if match is None or int(match.group(1)) not in LEVELS:
            _refuse(self.text, self.at, "a level is one of @90% @95% @99%")
        self.at = match.end()
        return int(match.group(1))


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
    system = next((system for system in view.systems if system.name == term.system), None)
    if system is None:
        names = [system.name for system in view.systems]
        _refuse(text, term.at, f"there is no system '{term.system}'. {_nearest(term.system, names)}", parses=True)
    if term.measure not in system.scores:
        _refuse(text, term.at, f"there is no measure '{term.measure}'. {_nearest(term.measure, view.measures)}", parses=True)
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
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"There are: {', '.join(names) or 'none'}.{hint}"


def _number(points: float) -> str:
    """Return points as they are written; what `NUMBER` reads comes back equal."""
    text = f"{points:.{DIGITS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _shown(points: float, border: float) -> str:
    """Return points with two digits, or with all of them where two would look like the border."""
    text = f"{points:.2f}"
    return text if float(text) != border else _number(points)


def _refuse(text: str, at: int, why: str, *, parses: bool = False) -> NoReturn:
    """Raise an error that shows the text, or the part of it around the place, with a caret below."""
    start = max(0, at - SHOWN // 2)
    shown = "".join(character if character.isprintable() else " " for character in text[start : start + SHOWN])
    what, advice = ("cannot be judged", "") if parses else ("does not parse", f" {FORM}")
    message = f"The gate {what} at column {at + 1}: {why}{'' if why.endswith(('.', '?')) else '.'}{advice}"
    raise InvalidInput(f"{message}\n  {shown}\n  {' ' * (at - start)}^", column=at + 1)

"""The parts of a gate, how they are written, and how an error points into its text."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from gistmill.errors import InvalidInput

LEVELS = (90, 95, 99)
RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
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
        return f"{self.name} {self.relation} {number(self.points)}{level}"

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


def number(points: float) -> str:
    """Return points as they are written; what `NUMBER` reads comes back equal."""
    text = f"{points:.{DIGITS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def refuse(text: str, at: int, what: str) -> NoReturn:
    """Raise InvalidInput with what is wrong, and the text, or the part of it around the place, with a caret below."""
    start = max(0, at - SHOWN // 2)
    shown = "".join(character if character.isprintable() else " " for character in text[start : start + SHOWN])
    raise InvalidInput(f"{what}\n  {shown}\n  {' ' * (at - start)}^", column=at + 1)

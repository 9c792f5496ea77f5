"""A text becomes a gate, or an error that points at the place where it stops being one."""

from __future__ import annotations

import re
from typing import NoReturn

from gistmill.gate.conditions import LEVELS, Condition, Gate, Term, refuse

NUMBER = re.compile(r"[+-]?(\d{1,9}(\.\d{0,9})?|\.\d{1,9})(?![\w.])", re.ASCII)
LEVEL = re.compile(r"@\s*(\d{1,3})\s*%", re.ASCII)
AND = re.compile(r"and(?!\S)", re.IGNORECASE)
MINUS = re.compile(r"\s-\s")
NARROW_MINUS = re.compile(r"\s-|-\s")
END_OF_TERM = re.compile(r"\s-\s|[<>=]|$")
FORM = "Write SYSTEM.MEASURE [- SYSTEM.MEASURE] > POINTS [@95%]."


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


class _Reader:
    """Reads a gate's text from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def refuse(self, at: int, why: str) -> NoReturn:
        """Raise an error that points at a place."""
        refuse(self.text, at, f"The gate does not parse at column {at + 1}: {why}. {FORM}")

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
            self.refuse(self.at, "here the gate should end, or go on with 'and'")
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
            self.refuse(start, "a system and its measure, joined by a dot, are missing")
        if space := re.search(r"\s", measure):
            self.refuse(start + len(system) + 1 + space.start(), "one of > >= < <= is missing")
        if minus := NARROW_MINUS.search(system):
            self.refuse(start + minus.start(), "the minus of a difference has spaces on both sides")
        return Term(system, measure, start)

    def check_difference(self, term: Term, minus: Term) -> None:
        """Make sure that two terms can be paired."""
        if term.measure != minus.measure:
            self.refuse(minus.at, f"a difference is of one measure, here {term.measure}")
        if term.system == minus.system:
            self.refuse(minus.at, "a system is compared with itself")

    def read_relation(self) -> str:
        """Return the next relation."""
        self.skip()
        relation = next((sign for sign in (">=", "<=", ">", "<") if self.text.startswith(sign, self.at)), None)
        if relation is None:
            self.refuse(self.at, "one of > >= < <= is missing")
        self.at += len(relation)
        return relation

    def read_points(self) -> float:
        """Return the next number."""
        self.skip()
        match = NUMBER.match(self.text, self.at)
        if match is None:
            self.refuse(self.at, "a number of points, such as 5 or 0.5, is missing")
        self.at = match.end()
        return float(match.group())

    def read_level(self) -> int | None:
        """Return the level, or None where there is none."""
        self.skip()
        if not self.text.startswith("@", self.at):
            return None
        match = LEVEL.match(self.text, self.at)
        if match is None or int(match.group(1)) not in LEVELS:
            self.refuse(self.at, "a level is one of @90% @95% @99%")
        self.at = match.end()
        return int(match.group(1))

"""One grammar for rows: [0:10], [::100], [5:], [10,20,30]; and for datasets: name:split[0:10]."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

from gistmill.errors import InvalidSelection

REFERENCE = re.compile(r"(?P<name>[^:\[\]]+)(:(?P<split>[^:\[\]]+))?(?P<select>\[.*\])?", re.DOTALL)
HELP = "Write [0:10], [5:], [::100] or [10,20,30]; rows are counted from 0."
MOST_LISTED = 100_000
# More digits than any row number has; Python refuses to read numbers of thousands.
MOST_DIGITS = 18
SHOWN = 80


@dataclass(frozen=True)
class Selection:
    """Rows start to stop (outside) by step; or the listed `rows`, in rising order, and then step is 0."""

    start: int
    stop: int
    step: int
    rows: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """How many rows are chosen."""
        return len(self.rows) if self.rows is not None else len(range(self.start, self.stop, self.step))

    def __contains__(self, row: int) -> bool:
        """True when the row is chosen."""
        if self.rows is None:
            return row in range(self.start, self.stop, self.step)
        place = bisect_left(self.rows, row)
        return place < len(self.rows) and self.rows[place] == row


@dataclass(frozen=True)
class DatasetReference:
    """A dataset as users write it."""

    name: str
    split: str | None = None
    select: str | None = None


def parse_selection(text: str, total: int) -> Selection:
    """Return the rows that a selection chooses out of `total`; slices are cut at the end as Python does.

    Raises:
        InvalidSelection: it does not parse (the message says where), chooses nothing, or names a row that is not there.
    """
    begin = len(text) - len(text.lstrip())
    end = len(text.rstrip()) - 1
    if begin > end or text[begin] != "[":
        raise _unparsable(text, begin, "it must begin with '['")
    if end == begin or text[end] != "]":
        raise _unparsable(text, end + 1, "']' is missing")
    inner = text[begin + 1 : end]
    if ":" in inner:
        parts = _numbers(text, inner.split(":"), begin + 1)
        if len(parts) > 3:
            raise _unparsable(text, end, "a slice has at most start, stop and step")
        return _slice(text, parts, total)
    rows = [number for number in _numbers(text, inner.split(","), begin + 1) if number is not None]
    if len(rows) < inner.count(",") + 1:
        raise _unparsable(text, end, "a row number is missing")
    return _listed(text, sorted(rows), total)


def parse_dataset_reference(text: str) -> DatasetReference:
    """Return name, split and selection of `name:split[0:10]`.

    Raises:
        InvalidSelection: it does not parse.
    """
    match = REFERENCE.fullmatch(text.strip())
    if match is None:
        raise InvalidSelection(f"'{text[:SHOWN]}' is not a dataset reference: write name, name:split or name:split[0:10].")
    return DatasetReference(match["name"], match["split"], match["select"])


def _numbers(text: str, parts: list[str], begins_at: int) -> list[int | None]:
    """Return the number of each part, or None where it is blank. `begins_at` is the place of the first part in the text."""
    numbers: list[int | None] = []
    place = begins_at
    for part in parts:
        digits = part.strip()
        if digits and not (digits.isascii() and digits.isdigit()):
            wrong = re.search(r"[^0-9]", digits)
            offset = len(part) - len(part.lstrip()) + (wrong.start() if wrong else 0)
            why = "negative numbers are not taken" if text[place + offset] == "-" else "a whole number is expected"
            raise _unparsable(text, place + offset, why)
        if len(digits) > MOST_DIGITS:
            raise _unparsable(text, place, "the number is too large")
        numbers.append(int(digits) if digits else None)
        place += len(part) + 1
    return numbers


def _slice(text: str, parts: list[int | None], total: int) -> Selection:
    start, stop, step = (*parts, None)[:3]
    if step == 0:
        raise InvalidSelection(f"The selection '{text[:SHOWN]}' has a step of 0. {HELP}")
    # A step beyond the last row chooses the first row only, whatever its size.
    chosen = Selection(start or 0, total if stop is None else min(stop, total), min(step or 1, max(total, 1)))
    if chosen.count == 0:
        raise InvalidSelection(f"The selection '{text[:SHOWN]}' chooses none of the {total} rows.")
    return chosen


def _listed(text: str, rows: list[int], total: int) -> Selection:
    if len(rows) > MOST_LISTED:
        raise InvalidSelection(f"The selection lists {len(rows)} rows; at most {MOST_LISTED} can be listed. {HELP}")
    if rows[-1] >= total:
        held = f"has rows 0 to {total - 1}" if total else "is empty"
        raise InvalidSelection(f"The selection names row {rows[-1]}, but the dataset {held}.")
    twice = next((row for row, following in pairwise(rows) if row == following), None)
    if twice is not None:
        raise InvalidSelection(f"The selection '{text[:SHOWN]}' names row {twice} twice.")
    return Selection(0, total, 0, tuple(rows))


def _unparsable(text: str, place: int, why: str) -> InvalidSelection:
    shown = f" ('{text[place]}')" if place < len(text) else ""
    return InvalidSelection(f"The selection '{text[:SHOWN]}' does not parse at character {place + 1}{shown}: {why}. {HELP}")

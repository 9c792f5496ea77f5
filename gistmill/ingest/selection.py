"""One grammar for rows: [0:10], [::100], [5:], [10,20,30]; and for datasets: name:split[0:10]."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gistmill.errors import InvalidSelection

SLICE = re.compile(r"\[(?P<start>\d*):(?P<stop>\d*)(:(?P<step>\d*))?\]")
LISTED = re.compile(r"\[\d+(,\d+)*\]")
REFERENCE = re.compile(r"(?P<name>[^:\[\]]+)(:(?P<split>[^:\[\]]+))?(?P<select>\[.*\])?")
HELP = "Write [0:10], [5:], [::100] or [10,20,30]; rows are counted from 0."
MOST_LISTED = 100_000


@dataclass(frozen=True)
class Selection:
    """Rows start to stop (outside) by step; or the listed `rows`, and then step is 0."""

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
        return row in (range(self.start, self.stop, self.step) if self.rows is None else self.rows)


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
    compact = re.sub(r"\s+", "", text)
    if match := SLICE.fullmatch(compact):
        return _slice(text, match, total)
    if LISTED.fullmatch(compact):
        return _listed(text, [int(number) for number in compact[1:-1].split(",")], total)
    raise InvalidSelection(f"The selection '{text[:80]}' does not parse at {_place(compact)}. {HELP}")


def parse_dataset_reference(text: str) -> DatasetReference:
    """Return name, split and selection of `name:split[0:10]`.

    Raises:
        InvalidSelection: it does not parse.
    """
    match = REFERENCE.fullmatch(text.strip())
    if match is None:
        raise InvalidSelection(f"'{text[:80]}' is not a dataset reference: write name, name:split or name:split[0:10].")
    return DatasetReference(match["name"], match["split"], match["select"])


def _slice(text: str, match: re.Match[str], total: int) -> Selection:
    start = int(match["start"] or 0)
    stop = min(int(match["stop"]) if match["stop"] else total, total)
    step = int(match["step"] or 1)
    if step == 0:
        raise InvalidSelection(f"The selection '{text[:80]}' has a step of 0. {HELP}")
    selection = Selection(start, stop, step)
    if selection.count == 0:
        raise InvalidSelection(f"The selection '{text[:80]}' chooses none of the {total} rows.")
    return selection


def _listed(text: str, rows: list[int], total: int) -> Selection:
    if len(rows) > MOST_LISTED:
        raise InvalidSelection(f"The selection lists {len(rows)} rows; at most {MOST_LISTED} can be listed. {HELP}")
    missing = next((row for row in rows if row >= total), None)
    if missing is not None:
        raise InvalidSelection(f"The selection names row {missing}, but the dataset has rows 0 to {total - 1}.")
    if len(set(rows)) != len(rows):
        twice = next(row for position, row in enumerate(rows) if row in rows[:position])
        raise InvalidSelection(f"The selection '{text[:80]}' names row {twice} twice.")
    return Selection(0, total, 0, tuple(sorted(rows)))


def _place(text: str) -> str:
    """Return where the text stops being a selection, for people."""
    if not text.startswith("["):
        return "its beginning: it must begin with '['"
    if not text.endswith("]"):
        return "its end: ']' is missing"
    wrong = re.search(r"[^\d:,]", text[1:-1])
    return f"character {wrong.start() + 2} ('{wrong.group()}')" if wrong else "its numbers"

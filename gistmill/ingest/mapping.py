"""Which columns of a file mean what."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from gistmill.errors import InvalidDataset, InvalidSpec

MEANINGS = ("id", "dialogue", "references", "predictions")
LISTED = ("references", "predictions")
NUMBERED_SUMMARY = re.compile(r"summary([1-9][0-9]{0,3})")
NUMBERED = "summary1..n"
SHOWN_COLUMNS = 20


class Mapping(BaseModel):
    """The user's choice of columns; what is None is found by the usual names.

    `predictions` are columns of summaries made elsewhere. Where there are any, `dialogue` is the column that tells which rows
    are about the same dialogue, and without it no two are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = None
    dialogue: str | None = None
    references: tuple[str, ...] | None = None
    # None and not (): a field that is None leaves the digests of datasets as they were before there were predictions.
    predictions: tuple[str, ...] | None = None

    @property
    def chosen(self) -> tuple[str, ...]:
        """The columns that the user named."""
        lists = (*(self.references or ()), *(self.predictions or ()))
        return tuple(name for name in (self.id, self.dialogue, *lists) if name is not None)


@dataclass(frozen=True)
class Columns:
    """The columns of one row, resolved; the rest is metadata.

    `id` None means the line number; `dialogue` None, which takes predictions, that every row is a case of its own.
    """

    id: str | None
    dialogue: str | None
    references: tuple[str, ...]
    predictions: tuple[str, ...] = ()
    used: frozenset[str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Collect the names, which every row is asked for."""
        single = {name for name in (self.id, self.dialogue) if name is not None}
        object.__setattr__(self, "used", frozenset({*single, *self.references, *self.predictions}))


def parse_mapping(pairs: Sequence[str]) -> Mapping:
    """Return the mapping of texts such as "dialogue=transcript", "references=summary1,summary2" and "predictions=a,b".

    Raises:
        InvalidSpec: one of them does not parse; the message says which.
    """
    chosen: dict[str, Any] = {}
    for pair in pairs:
        meaning, equals, column = (part.strip() for part in pair.partition("="))
        names = tuple(part.strip() for part in column.split(",")) if meaning in LISTED else (column,)
        if not equals or "" in names or "\x00" in column or meaning not in MEANINGS:
            raise InvalidSpec(f"--column '{pair}' does not parse: write MEANING=COLUMN with one of {', '.join(MEANINGS)}.")
        if meaning in chosen:
            advice = "Name it once; several references or predictions are separated by commas."
            raise InvalidSpec(f"--column names the {meaning} twice. {advice}")
        chosen[meaning] = names if meaning in LISTED else column
    mapping = Mapping.model_validate(chosen)
    twice = next((name for name in mapping.chosen if mapping.chosen.count(name) > 1), None)
    if twice is not None:
        raise InvalidSpec(f"'{twice}' gives one column two meanings: {', '.join(pairs)}. Give each column one.")
    return mapping


def write_mapping(*, predictions: Sequence[str], references: Sequence[str] = (), dialogue: str | None = None) -> list[str]:
    """Return the texts that `parse_mapping` reads this choice of columns from.

    Raises:
        InvalidSpec: there are no predictions, a name cannot be written so, or one column has two meanings.
    """
    if not predictions:
        raise InvalidSpec("Name the columns that hold the summaries.")
    cut = next((name for name in (*predictions, *references) if "," in name or name != name.strip()), None)
    if cut is not None:
        raise InvalidSpec(f"The column {cut!r} cannot be named: rename it so that it has no comma and no spaces around it.")
    lists = {"predictions": ",".join(predictions), "references": ",".join(references), "dialogue": dialogue}
    pairs = [f"{meaning}={column}" for meaning, column in lists.items() if column]
    parse_mapping(pairs)
    return pairs


def free_of(mapping: Mapping, found: Sequence[str]) -> list[str]:
    """Return the columns found that the user gave no meaning, among which the usual names are looked for."""
    return [name for name in found if name not in mapping.chosen]


def find_convention(found: Sequence[str]) -> str | None:
    """Return how a row's columns usually name references: references, summary or summary1..n; None when it has none."""
    usual = next((name for name in ("references", "summary") if name in found), None)
    return usual or (NUMBERED if any(NUMBERED_SUMMARY.fullmatch(name) for name in found) else None)


def resolve(mapping: Mapping, found: Sequence[str], *, convention: str | None = None) -> Columns:
    """Return which of a row's columns mean what. Only the dialogue must be there, and with predictions only if it was named.

    `convention` is how the file names its references, as `find_convention` said of an earlier row.

    Raises:
        InvalidDataset: it is not; the message names the columns found and the nearest.
    """
    predictions = mapping.predictions or ()
    dialogue = mapping.dialogue or (None if predictions else "dialogue")
    if dialogue is not None and dialogue not in found:
        advice = "" if mapping.dialogue else " Name the column with the text: --column dialogue=NAME."
        raise InvalidDataset(f"There is no column '{dialogue}'. {describe(dialogue, found)}{advice}")
    free = free_of(mapping, found)
    row_id = mapping.id or next((name for name in ("id", "fname") if name in free), None)
    references = mapping.references
    if references is None:
        references = _usual_references(free, convention or find_convention(free))
    return Columns(id=row_id, dialogue=dialogue, references=references, predictions=predictions)


def require_chosen(mapping: Mapping, found: Sequence[str]) -> None:
    """Make sure that every column the user named is among those found.

    Raises:
        InvalidDataset: one is not; the message names the columns found and the nearest.
    """
    missing = next((name for name in mapping.chosen if name not in found), None)
    if missing is not None:
        raise InvalidDataset(f"There is no column '{missing}'. {describe(missing, found)}")


def describe(missing: str, found: Sequence[str]) -> str:
    """Return sentences that name the columns found and the one most like the missing one."""
    listed = ", ".join(f"'{name[:80]}'" for name in found[:SHOWN_COLUMNS]) or "none"
    more = f" and {len(found) - SHOWN_COLUMNS} more" if len(found) > SHOWN_COLUMNS else ""
    by_lower = {name.lower(): name for name in found[:1000]}
    near = difflib.get_close_matches(missing.lower(), by_lower, n=1)
    hint = f" Did you mean '{by_lower[near[0]]}'?" if near else ""
    return f"Columns found: {listed}{more}.{hint}"


def _usual_references(found: Sequence[str], convention: str | None) -> tuple[str, ...]:
    if convention == NUMBERED:
        numbered = (name for name in found if NUMBERED_SUMMARY.fullmatch(name))
        return tuple(sorted(numbered, key=lambda name: int(name[7:])))
    return (convention,) if convention is not None and convention in found else ()

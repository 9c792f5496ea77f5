"""Which columns of a file mean what."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from gistmill.errors import InvalidDataset, InvalidSpec

MEANINGS = ("id", "dialogue", "references")
NUMBERED_SUMMARY = re.compile(r"summary([1-9][0-9]{0,3})")
NUMBERED = "summary1..n"
SHOWN_COLUMNS = 20


class Mapping(BaseModel):
    """The user's choice of columns; what is None is found by the usual names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = None
    dialogue: str | None = None
    references: tuple[str, ...] | None = None

    @property
    def chosen(self) -> tuple[str, ...]:
        """The columns that the user named."""
        return tuple(name for name in (self.id, self.dialogue, *(self.references or ())) if name is not None)


@dataclass(frozen=True)
class Columns:
    """The columns of one row, resolved; the rest is metadata. `id` None means the line number."""

    id: str | None
    dialogue: str
    references: tuple[str, ...]
    used: frozenset[str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        """Collect the names, which every row is asked for."""
        object.__setattr__(self, "used", frozenset({self.dialogue, *self.references, *(() if self.id is None else (self.id,))}))


def parse_mapping(pairs: Iterable[str]) -> Mapping:
    """Return the mapping of texts such as "dialogue=transcript" and "references=summary1,summary2".

    Raises:
        InvalidSpec: one of them does not parse; the message says which.
    """
    chosen: dict[str, Any] = {}
    for pair in pairs:
        meaning, equals, column = (part.strip() for part in pair.partition("="))
        names = tuple(part.strip() for part in column.split(",")) if meaning == "references" else (column,)
        if not equals or "" in names or meaning not in MEANINGS:
            raise InvalidSpec(f"--column '{pair}' does not parse: write MEANING=COLUMN with one of {', '.join(MEANINGS)}.")
        if meaning in chosen:
            raise InvalidSpec(f"--column names the {meaning} twice. Name it once; several references are separated by commas.")
        chosen[meaning] = names if meaning == "references" else column
    mapping = Mapping.model_validate(chosen)
    if len(set(mapping.chosen)) < len(mapping.chosen):
        raise InvalidSpec(f"--column gives one column two meanings: {', '.join(pairs)}. Give each column one.")
    return mapping


def find_convention(found: Sequence[str]) -> str | None:
    """Return how a row's columns usually name references: references, summary or summary1..n; None when it has none."""
    usual = next((name for name in ("references", "summary") if name in found), None)
    return usual or (NUMBERED if any(NUMBERED_SUMMARY.fullmatch(name) for name in found) else None)


def resolve(mapping: Mapping, found: Sequence[str], *, convention: str | None = None) -> Columns:
    """Return which of a row's columns mean what. Only the dialogue must be there.

    `convention` is how the file names its references, as `find_convention` said of an earlier row.

    Raises:
        InvalidDataset: it is not; the message names the columns found and the nearest.
    """
    dialogue = mapping.dialogue or "dialogue"
    if dialogue not in found:
        advice = "" if mapping.dialogue else " Name the column with the text: --column dialogue=NAME."
        raise InvalidDataset(f"There is no column '{dialogue}'. {describe(dialogue, found)}{advice}")
    row_id = mapping.id or next((name for name in ("id", "fname") if name in found), None)
    references = mapping.references
    if references is None:
        references = _usual_references(found, convention or find_convention(found))
    return Columns(id=row_id, dialogue=dialogue, references=references)


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

"""Which columns of a file mean what."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from gistmill.errors import InvalidDataset, InvalidSpec

MEANINGS = ("id", "dialogue", "references")
NUMBERED_SUMMARY = re.compile(r"summary\d+")


class Mapping(BaseModel):
    """The user's choice of columns; what is None is found by the usual names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = None
    dialogue: str | None = None
    references: tuple[str, ...] | None = None


class Columns(BaseModel):
    """The columns of one file, resolved. `id` None means the line number."""

    model_config = ConfigDict(frozen=True)

    id: str | None
    dialogue: str
    references: tuple[str, ...]


def parse_mapping(pairs: Iterable[str]) -> Mapping:
    """Return the mapping of texts such as "dialogue=transcript" and "references=summary1,summary2".

    Raises:
        InvalidSpec: one of them does not parse; the message says which.
    """
    chosen: dict[str, Any] = {}
    for pair in pairs:
        meaning, equals, column = (part.strip() for part in pair.partition("="))
        if not equals or not column or meaning not in MEANINGS:
            raise InvalidSpec(f"--column '{pair}' does not parse: write MEANING=COLUMN with one of {', '.join(MEANINGS)}.")
        if meaning in chosen:
            raise InvalidSpec(f"--column names the {meaning} twice. Name it once; several references are separated by commas.")
        chosen[meaning] = tuple(part.strip() for part in column.split(",")) if meaning == "references" else column
    return Mapping.model_validate(chosen)


def resolve(mapping: Mapping, found: Sequence[str]) -> Columns:
    """Return which of the columns found mean what.

    Raises:
        InvalidDataset: a column is missing; the message names those found and the nearest.
    """
    dialogue = _require(mapping.dialogue or "dialogue", found, is_chosen=mapping.dialogue is not None)
    if mapping.id is not None:
        row_id: str | None = _require(mapping.id, found, is_chosen=True)
    else:
        row_id = next((name for name in ("id", "fname") if name in found), None)
    if mapping.references is not None:
        references = tuple(_require(name, found, is_chosen=True) for name in mapping.references)
    else:
        references = _usual_references(found)
    return Columns(id=row_id, dialogue=dialogue, references=references)


def _usual_references(found: Sequence[str]) -> tuple[str, ...]:
    for name in ("references", "summary"):
        if name in found:
            return (name,)
    return tuple(sorted((name for name in found if NUMBERED_SUMMARY.fullmatch(name)), key=lambda name: int(name[7:])))


def _require(name: str, found: Sequence[str], *, is_chosen: bool) -> str:
    if name in found:
        return name
    near = difflib.get_close_matches(name, found, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    advice = "" if is_chosen else " Name the column with the text: --column dialogue=NAME."
    listed = ", ".join(f"'{column}'" for column in found[:20]) or "none"
    raise InvalidDataset(f"There is no column '{name}'. Columns found: {listed}.{hint}{advice}")

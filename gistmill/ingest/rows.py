"""What every reader yields."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """A row as the file has it, before its columns are understood. `line` is where it begins, counted from 1."""

    line: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A parsed and checked row. `number` counts from 0; `line` is for messages."""

    number: int
    line: int
    id: str
    dialogue: str
    references: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def characters(self) -> int:
        """The length of the dialogue."""
        return len(self.dialogue)

    @property
    def digest(self) -> str:
        """The sha256 of the dialogue, as 64 hex digits."""
        return hashlib.sha256(self.dialogue.encode()).hexdigest()

"""What every reader yields."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Record(NamedTuple):
    """A row as the file has it, before its columns are understood. `line` is where it begins, counted from 1."""

    line: int
    values: dict[str, Any]


class Row(NamedTuple):
    """A parsed and checked row. `number` counts from 0; `line` is for messages."""

    number: int
    line: int
    id: str
    dialogue: str
    references: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = MappingProxyType({})

    @property
    def characters(self) -> int:
        """The length of the dialogue."""
        return len(self.dialogue)

    @property
    def digest(self) -> str:
        """The sha256 of the dialogue, as 64 hex digits."""
        return hashlib.sha256(self.dialogue.encode()).hexdigest()

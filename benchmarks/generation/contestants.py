"""What a contestant is, and which there are: peers, and engines of ours by the names and precisions that workers offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from benchmarks.generation.figures import padded_positions
from gistmill.specs import Precision
from workers.engine.loading import EngineName

Kind = Literal["loop", "sorted", "ctranslate2", "engine"]


@dataclass(frozen=True)
class Answer:
    """What a contestant wrote for some rows: their numbers and texts, the tokens in of each batch, all tokens out.

    `batches` is None when the contestant does not tell; `tokens_in` counts no pads.
    """

    texts: dict[int, str]
    tokens_in: int
    tokens_out: int
    batches: list[list[int]] | None = None

    @property
    def positions(self) -> int | None:
        """Input positions computed, pads included; None when the batches are not known."""
        return None if self.batches is None else padded_positions(self.batches)


class Contestant(Protocol):
    """A loaded model that answers prompts."""

    @property
    def setting(self) -> str:
        """How it runs, for people; empty when there is nothing to say."""

    def tune(self, prompts: Sequence[str]) -> None:
        """Try its settings on these prompts and keep the fastest."""

    def answer(self, prompts: Sequence[str], most_rows: int) -> Answer:
        """Complete the prompts, or so many rows that stand for all of them in length and in batches."""


@dataclass(frozen=True)
class Entry:
    """A contestant by its name: what it is and how it computes."""

    name: str
    kind: Kind
    precision: str = "float32"
    engine: str = ""


LOOP = Entry("notebook's loop", "loop")
SORTED = Entry("transformers, length-sorted", "sorted")
DIRECT = Entry("ctranslate2 called directly", "ctranslate2")
DIRECT_INT8 = Entry("ctranslate2 called directly, int8", "ctranslate2", "int8")
# A new engine or precision joins by one line; it is measured once the workers offer it.
OURS = (
    Entry("engine transformers", "engine", "float32", "transformers"),
    Entry("engine ctranslate2", "engine", "float32", "ctranslate2"),
    Entry("engine ctranslate2, int8", "engine", "int8", "ctranslate2"),
    Entry("engine graph", "engine", "float32", "graph"),
)


def list_ours() -> list[Entry]:
    """Return the engines of ours that this version offers, at the precisions that jobs can ask for."""
    return [entry for entry in OURS if entry.engine in get_args(EngineName) and is_offered(entry.precision)]


def is_offered(precision: str) -> bool:
    """Say whether a job can ask for this precision."""
    return precision in get_args(Precision)

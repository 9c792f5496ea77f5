"""What the rounds of a contestant come to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Round:
    """One timed round: tokens as the model read and wrote them, and the positions it computed for the input, pads included.

    `positions` is None where the contestant does not tell its batches. `texts` are the summaries by the number of their row.
    """

    rows: int
    seconds: float
    tokens_in: int
    tokens_out: int
    positions: int | None = None
    texts: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def rows_per_s(self) -> float:
        """Dialogues per second, each copy counted."""
        return self.rows / self.seconds


@dataclass
class Result:
    """A contestant's rounds, what it took to begin, and the most memory it ever held.

    `load_s` reaches from the start of a process to a model that is ready; `first_s` is its first answer, to a few dialogues.
    """

    name: str
    rounds: list[Round] = field(default_factory=list)
    setting: str = ""
    load_s: float | None = None
    first_s: float | None = None
    peak_mib: float | None = None

    @property
    def rows_per_s(self) -> float:
        """The median over the rounds."""
        return statistics.median(each.rows_per_s for each in self.rounds)

    @property
    def tokens_out_per_s(self) -> float:
        """The median over the rounds."""
        return statistics.median(each.tokens_out / each.seconds for each in self.rounds)

    @property
    def padding_share(self) -> float | None:
        """Pads among the input positions that were computed, 0 to 1; None where they are not known."""
        positions = [each.positions for each in self.rounds]
        if None in positions or not positions:
            return None
        return 1 - sum(each.tokens_in for each in self.rounds) / sum(filter(None, positions))

    @property
    def mean_tokens(self) -> tuple[float, float]:
        """Tokens in and out of a row."""
        rows = sum(each.rows for each in self.rounds)
        return (
            sum(each.tokens_in for each in self.rounds) / rows,
            sum(each.tokens_out for each in self.rounds) / rows,
        )


def ratio(one: Result, other: Result) -> float:
    """Return how many times as fast one is: the median over the rounds, in each of which both ran one soon after the other."""
    pairs = zip(one.rounds, other.rounds, strict=True)
    return statistics.median(mine.rows_per_s / theirs.rows_per_s for mine, theirs in pairs)


def ratio_range(one: Result, other: Result) -> tuple[float, float]:
    """Return the least and the most of what `ratio` takes the median of."""
    pairs = zip(one.rounds, other.rounds, strict=True)
    ratios = [mine.rows_per_s / theirs.rows_per_s for mine, theirs in pairs]
    return min(ratios), max(ratios)


def agreement(one: Result, other: Result) -> float | None:
    """Return the share of equal summaries among the rows that both wrote, 0 to 1; None when they share no row."""
    mine, theirs = _texts(one), _texts(other)
    shared = mine.keys() & theirs.keys()
    return sum(mine[row] == theirs[row] for row in shared) / len(shared) if shared else None


def padded_positions(batches: Sequence[Sequence[int]]) -> int:
    """Return the positions that batches of rows of these lengths take, each padded to its longest row."""
    return sum(len(batch) * max(batch) for batch in batches if batch)


def _texts(result: Result) -> dict[int, str]:
    return {row: text for each in result.rounds for row, text in each.texts.items()}

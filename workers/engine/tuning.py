"""Which of an engine's settings is fastest on this host: tried on real work at first use, and kept.

A trial is a slice of a job's own rows under one setting. Its results are results like any others, so no work is thrown away
and no job waits for a probe: a job too small for a trial runs as it is, and what is missing is tried by the next. A synthetic
probe was rejected: one of a few seconds for all settings is too short to tell 10 % apart on a machine that others use, and
one that is long enough would cost a job of 50 rows more than it can gain.

Others on the machine only ever slow a trial down. So every setting is tried in each of a few rounds, every other one in
reverse, and its fastest trial counts. The settings that are then close to the fastest are tried as often again: a minute of
other work can slow each trial of one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog

log = structlog.get_logger(__name__)

ROUNDS = 3
# Settings are close when they come within a fifth of the fastest: those are tried so many times each.
CLOSE = 0.8
FINAL_ROUNDS = 6
# An earlier setting is kept when a later one is faster by no more than this: that is noise.
MARGIN = 1.03
# A slice that fills less of the batches than this is no trial of them.
LEAST_FILL = 0.5
MOST_SPLITS = 4
# Each lane has memory of its own for its batch.
MOST_LANES = 8
# Of FLAN-T5's work, by its shapes; a written token is also slower than its share, for few rows are computed at once.
WRITTEN_PER_READ = 2


class Setting(NamedTuple):
    """So many micro-batches at once, which share the threads, of at most so many tokens each."""

    lanes: int
    budget_tokens: int

    def __str__(self) -> str:
        """Return it for a log."""
        return f"{self.lanes} x {self.budget_tokens}"


Speeds = Mapping[Setting, Sequence[float]]


def list_lanes(threads: int) -> list[int]:
    """Return in how many lanes so many threads may be split evenly: two to begin with, then one, the most, and a few between.

    Two are the safe ones. On two cores they are about as fast in float32 when nothing else runs, faster in int8, and beside
    other work five times as fast in float32: threads that share a batch wait for each other after every product.
    """
    divisors = [lanes for lanes in range(1, min(threads, MOST_LANES) + 1) if threads % lanes == 0]
    last = len(divisors) - 1
    some = {divisors[round(place * last / (MOST_SPLITS - 1))] for place in range(MOST_SPLITS)}
    return sorted(some, key=lambda lanes: (lanes != 2, lanes))


def find_next(settings: Sequence[Setting], speeds: Speeds) -> Setting:
    """Return the setting to try next: in rounds, every other one in reverse, so that neighbours are tried one after another."""
    if not _is_short_of(ROUNDS, settings, speeds):
        settings = _list_close(settings, speeds)
    tried = [len(speeds.get(setting, ())) for setting in settings]
    rounds = min(tried)
    left = [setting for setting, times in zip(settings, tried, strict=True) if times == rounds]
    return left[0] if rounds % 2 == 0 else left[-1]


def choose(settings: Sequence[Setting], speeds: Speeds) -> Setting | None:
    """Return the fastest setting, the first of those that are as good as equal; None while trials are missing."""
    if _is_short_of(ROUNDS, settings, speeds):
        return None
    close = _list_close(settings, speeds)
    if len(close) > 1 and _is_short_of(FINAL_ROUNDS, close, speeds):
        return None
    chosen = close[0]
    for setting in close[1:]:
        if max(speeds[setting]) > MARGIN * max(speeds[chosen]):
            chosen = setting
    return chosen


def _is_short_of(rounds: int, settings: Sequence[Setting], speeds: Speeds) -> bool:
    return any(len(speeds.get(setting, ())) < rounds for setting in settings)


def _list_close(settings: Sequence[Setting], speeds: Speeds) -> list[Setting]:
    """Return the settings that may be the fastest; each further trial can only leave fewer."""
    fastest = max(max(speeds[setting]) for setting in settings)
    return [setting for setting in settings if max(speeds[setting]) >= CLOSE * fastest]


def trial_rows(lengths: Sequence[int], settings: Iterable[Setting], *, max_rows: int) -> int:
    """Return how many of these rows, longest first, are a fair trial of every setting; 0 when they are too few or too long.

    They fill the batches of each about equally well, and every lane gets equally many.
    """
    settings = list(settings)
    tokens = max(setting.lanes * setting.budget_tokens for setting in settings)
    longest = max(1, lengths[0]) if lengths else 1
    rows = min(round(tokens / (lanes * budget)) * lanes * min(max_rows, budget // longest) for lanes, budget in settings)
    return rows if rows <= len(lengths) and rows * longest >= LEAST_FILL * tokens else 0


def work(tokens_in: int, tokens_out: int) -> int:
    """Return what reading and writing so many tokens counts, so that trials on rows of other lengths can be compared."""
    return tokens_in + WRITTEN_PER_READ * tokens_out


class Notes(Protocol):
    """Where trials are kept."""

    def read(self) -> Speeds:
        """Return the speeds by setting."""

    def add(self, setting: Setting, tokens_per_s: float) -> Speeds:
        """Note a trial and return all."""


class Tuner:
    """Names the setting of each trial, and the fastest when there were enough. The first setting is the one to begin with."""

    def __init__(self, settings: Sequence[Setting], notes: Notes, *, max_rows: int) -> None:
        self.settings = settings
        self._notes = notes
        self._max_rows = max_rows
        self._speeds = notes.read()

    @property
    def chosen(self) -> Setting | None:
        """The fastest setting, or None while trials are missing."""
        return choose(self.settings, self._speeds)

    @property
    def best_known(self) -> Setting:
        """The setting for work that is no trial."""
        return self.chosen or self.settings[0]

    @property
    def trials(self) -> int:
        """How many trials are noted."""
        return sum(map(len, self._speeds.values()))

    def count_too_long(self, lengths: Sequence[int]) -> int:
        """Return how many of these rows, longest first, fit in no batch of the setting with the smallest."""
        least = min(setting.budget_tokens for setting in self.settings)
        return sum(length > least for length in lengths)

    def find_trial(self, lengths: Sequence[int]) -> tuple[Setting, int] | None:
        """Return the setting to try next and on how many of these rows, longest first; None when that would be no trial."""
        rows = 0 if self.chosen else trial_rows(lengths, self.settings, max_rows=self._max_rows)
        return (find_next(self.settings, self._speeds), rows) if rows else None

    def note(self, setting: Setting, *, tokens_in: int, tokens_out: int, seconds: float) -> None:
        """Note a trial. Other workers of the host may have noted some as well; with the last one the choice is made."""
        self._speeds = self._notes.add(setting, work(tokens_in, tokens_out) / max(seconds, 1e-9))
        if self.chosen is not None:
            figures = {str(each): round(max(self._speeds[each])) for each in self.settings}
            lanes, budget_tokens = self.chosen
            log.info("engine_tuned", lanes=lanes, budget_tokens=budget_tokens, tokens_per_s=figures)

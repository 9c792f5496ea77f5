"""How much a run measures: which shapes, which contestants, how many rounds, and how long each takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.generation.contestants import DIRECT, DIRECT_INT8, LOOP, OURS, SORTED, Entry, is_offered, list_ours
from benchmarks.generation.system import Form

DISTINCT = Form("system, one worker")
THRICE = Form("system, one worker, each dialogue three times", copies=3)
INT8 = Form("system, one worker, int8", precision="int8")
TWO_WORKERS = Form("system, two workers")
# The rows of DialogSum's test set, each of which stands three times in its flattened form.
MOST_ROWS = 500
ENGINE_TRANSFORMERS, ENGINE_CTRANSLATE2 = OURS[:2]


@dataclass(frozen=True)
class Stage:
    """One model and those that run it, in the order of a round.

    A round gives each contestant about `round_s` seconds, the slow ones `slow_s`, on `least_rows` to `most_rows` rows, after a
    short trial; 0 seconds mean the fewest rows, without a trial. With `tune_rows` the peers first choose their settings on so
    many.
    """

    model: str
    entries: tuple[Entry, ...]
    one_worker: tuple[Form, ...]
    two_workers: tuple[Form, ...]
    rounds: int
    round_s: float
    slow_s: float
    tune_rows: int
    least_rows: int = 24
    most_rows: int = MOST_ROWS
    most_tokens: int = 40
    ends_by_itself: bool = False


# Those whose rounds are cut to a sample: they take several times as long, and their speed does not depend on the rest.
SLOW = frozenset({LOOP.name, SORTED.name, ENGINE_TRANSFORMERS.name})


def full() -> list[Stage]:
    """Return the stages of a full run: under 40 minutes on two cores."""
    ours = tuple(list_ours())
    int8 = (INT8,) if is_offered("int8") else ()
    fast = tuple(entry for entry in ours if entry.name not in SLOW)
    small = (LOOP, SORTED, ENGINE_TRANSFORMERS, DIRECT, DIRECT_INT8, *fast)
    base = (LOOP, SORTED, DIRECT, DIRECT_INT8, *fast)
    return [
        Stage("small", small, (DISTINCT, THRICE, *int8), (TWO_WORKERS,), 3, round_s=40, slow_s=13, tune_rows=40),
        Stage("base", base, (DISTINCT,), (), 2, round_s=25, slow_s=13, tune_rows=16),
        Stage("gist-tiny", small, (DISTINCT, THRICE), (), 2, 6, slow_s=3, tune_rows=40, most_tokens=128, ends_by_itself=True),
    ]


def quick() -> list[Stage]:
    """Return the stage of a quick run: at most three minutes on two cores, settings as they come."""
    entries = (LOOP, SORTED, DIRECT, ENGINE_CTRANSLATE2)
    return [Stage("small", entries, (DISTINCT, THRICE), (), 2, round_s=0, slow_s=0, tune_rows=0)]


def tiny() -> list[Stage]:
    """Return a stage that only shows that every path works: a model of no worth, and no figure of any."""
    small = full()[0]
    few = {"rounds": 2, "round_s": 1, "slow_s": 1, "tune_rows": 2, "least_rows": 4, "most_rows": 16}
    return [replace(small, model="tiny", **few)]  # type: ignore[arg-type]

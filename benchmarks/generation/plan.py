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
    """A model's shape and those that run it, in the order of a round.

    A round gives each contestant about `round_s` seconds, the slow ones `slow_s`, on `least_rows` to `most_rows` rows, after a
    short trial; 0 seconds mean the fewest rows, without a trial. With `tune_rows` the peers first choose their settings on so
    many. In one stage of a run the goals are judged.
    """

    name: str
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
    is_judged: bool = False


# Those whose rounds are cut to a sample: they take several times as long, and their speed does not depend on the rest.
SLOW = frozenset({LOOP.name, SORTED.name, ENGINE_TRANSFORMERS.name})


def full() -> list[Stage]:
    """Return the stages of a full run: about an hour on two cores.

    The goals are judged on all rows, few as the contestants then are: on a sixth of them the start of the command and the
    upload, a second and a half, would be a tenth of the time.
    """
    ours = tuple(list_ours())
    int8 = (INT8,) if is_offered("int8") else ()
    fast = tuple(entry for entry in ours if entry.name not in SLOW)
    everybody = (LOOP, SORTED, ENGINE_TRANSFORMERS, DIRECT, DIRECT_INT8, *fast)
    judged = (LOOP, DIRECT, DIRECT_INT8, *(entry for entry in fast if entry.engine == ENGINE_CTRANSLATE2.engine))
    base = (LOOP, SORTED, DIRECT, DIRECT_INT8, *fast)
    small = Stage("small", "small", everybody, (DISTINCT, THRICE, *int8), (TWO_WORKERS,), 2, 40, slow_s=13, tune_rows=40)
    short = replace(small, name="gist-tiny", model="gist-tiny", one_worker=(DISTINCT, THRICE), two_workers=())
    # Its dialogues are short: an engine's trial takes a quarter of them, and without one the rounds would be its trials.
    short = replace(short, most_tokens=128, ends_by_itself=True, round_s=6, slow_s=3, tune_rows=MOST_ROWS)
    return [
        small,
        replace(small, name="small-500", entries=judged, two_workers=(), least_rows=MOST_ROWS, is_judged=True),
        Stage("base", "base", base, (DISTINCT,), (), 2, round_s=25, slow_s=13, tune_rows=16),
        short,
    ]


def quick() -> list[Stage]:
    """Return the stage of a quick run: at most three minutes on two cores, settings as they come."""
    entries = (LOOP, SORTED, DIRECT, ENGINE_CTRANSLATE2)
    return [Stage("small", "small", entries, (DISTINCT, THRICE), (), 2, round_s=0, slow_s=0, tune_rows=0, is_judged=True)]


def tiny() -> list[Stage]:
    """Return a stage that only shows that every path works: a model of no worth, and no figure of any."""
    small = full()[0]
    few = {"name": "tiny", "rounds": 2, "round_s": 1, "slow_s": 1, "tune_rows": 2, "least_rows": 4, "most_rows": 16}
    return [replace(small, model="tiny", **few)]  # type: ignore[arg-type]

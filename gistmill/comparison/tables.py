"""What a comparison says, as tables of texts and as sentences, whoever shows them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from gistmill.comparison.figures import difference, duration, mean, number_of, p_value, share, signed, size
from gistmill.views import ComparisonView, CostView, PairView, SystemView

UNKNOWN = "-"
COSTS: dict[str, Callable[[CostView], str]] = {
    "training time": lambda cost: duration(cost.training_s),
    "peak memory": lambda cost: size(cost.memory_bytes),
    "trainable parameters": lambda cost: share(cost.trainable_parameters, cost.total_parameters),
    "artifact": lambda cost: size(cost.artifact_bytes),
}
LEFT_OUT = {
    "failed": "without a summary of every system",
    "example": "used as an example of a prompt",
    "trained": "seen in training",
    "no_reference": "without a reference",
}
HUMAN = re.compile(r"human|baseline", re.IGNORECASE)
ORIGINAL = re.compile(r"original", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """A titled table of texts. The first `names` columns hold words, which are set left; the others figures, set right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1


def list_tables(view: ComparisonView) -> list[Table]:
    """Return all tables of a comparison that have rows: the systems, the pairs, and the improvements."""
    tables = (tabulate_systems(view), tabulate_pairs(view), *tabulate_improvements(view))
    return [table for table in tables if table.rows]


def tabulate_systems(view: ComparisonView) -> Table:
    """Return a row per system: its mean on each measure with the interval at 95 %, and what it cost where that is known."""
    costs = {
        name: column
        for name, show in COSTS.items()
        if any(column := [show(system.cost) if system.cost else "" for system in view.systems])
    }
    rows = (
        (system.name, *_means(system, view.measures), *(column[place] or UNKNOWN for column in costs.values()))
        for place, system in enumerate(view.systems)
    )
    return Table("Scores in points (0 to 100) with 95 % intervals", ("system", *view.measures, *costs), tuple(rows))


def tabulate_pairs(view: ComparisonView) -> Table:
    """Return a row per pair and measure: the difference with its interval at 95 %, the p-value, and who won how many cases."""
    # Of two systems there is one pair a measure, and nothing to correct.
    p = "p (Holm)" if len(view.systems) > 2 else "p"
    columns = ("system", "over", "measure", "difference", p, "wins/ties/losses")
    rows = (
        (
            pair.system,
            pair.baseline,
            pair.measure,
            difference(pair.delta, pair.low, pair.high),
            _known_p(pair),
            f"{pair.wins}/{pair.ties}/{pair.losses}",
        )
        for pair in view.pairs
    )
    return Table("Differences in points with 95 % intervals, case by case", columns, tuple(rows), names=3)


def tabulate_improvements(view: ComparisonView) -> list[Table]:
    """Return the two tables of the notebook: every system over the baseline, and each of the others over those before it.

    The figures are differences of means. The second table is left out where there are no two others.
    """
    systems = [system for system in view.systems if system.scores]
    baseline = next((system for system in systems if system.name == view.baseline), None)
    others = [system for system in systems if system.name != view.baseline]
    if baseline is None or not others:
        return []
    title = "Absolute improvement in percentage points"
    tables = [_tabulate(f"{title} over {baseline.name}", [(system, baseline) for system in others], view.measures)]
    rest = [(later, earlier) for earlier, later in combinations(others, 2)]
    if rest:
        tables.append(_tabulate(f"{title} of the others over each other", rest, view.measures))
    return tables


def list_sentences(view: ComparisonView) -> list[str]:
    """Return what the figures rest on: cases, what was left out, what a reader must know, and the signature."""
    return [*_state(view), *_left_out(view), *_empty(view), *_labels(view), *view.notes, *_signature(view)]


def _means(system: SystemView, measures: Sequence[str]) -> Iterator[str]:
    for measure in measures:
        found = system.scores.get(measure)
        yield UNKNOWN if found is None else mean(found.fmeasure, found.low, found.high)


def _known_p(pair: PairView) -> str:
    return p_value(pair.p_value if pair.p_adjusted is None else pair.p_adjusted) or UNKNOWN


def _tabulate(title: str, pairs: Sequence[tuple[SystemView, SystemView]], measures: Sequence[str]) -> Table:
    rows = (
        (f"{system.name} over {other.name}", *(_improvement(system, other, measure) for measure in measures))
        for system, other in pairs
    )
    return Table(title, ("compared", *measures), tuple(rows))


def _improvement(system: SystemView, other: SystemView, measure: str) -> str:
    if measure not in system.scores or measure not in other.scores:
        return UNKNOWN
    return signed(system.scores[measure].fmeasure - other.scores[measure].fmeasure)


def _state(view: ComparisonView) -> Iterator[str]:
    rows = f"{view.dataset}{view.select or ''}"
    if view.state == "completed":
        yield f"{view.counts.get('scored', 0):,} of {number_of(view.cases, 'case')} of {rows} are scored."
    else:
        yield f"The evaluation is {view.state}: {view.ended:,} of {number_of(view.cases, 'case')} of {rows} have ended."
    if view.error:
        yield f"It ended with an error: {view.error.get('message') or view.error.get('code')}"
    if view.counts.get("scored") == 1:
        yield "One case alone has no interval and no p-value: nothing says how surely its figures hold for others."


def _left_out(view: ComparisonView) -> Iterator[str]:
    counts = {outcome: count for outcome, count in view.counts.items() if outcome != "scored" and count}
    if counts:
        reasons = ", ".join(f"{count:,} {LEFT_OUT.get(outcome, outcome)}" for outcome, count in counts.items())
        yield f"Left out of every figure: {number_of(sum(counts.values()), 'case')} ({reasons})."


def _empty(view: ComparisonView) -> Iterator[str]:
    empty = [f"{system.name} {system.empty:,}" for system in view.systems if system.empty]
    if empty:
        yield f"Empty summaries, which score 0: {', '.join(empty)}."


def _labels(view: ComparisonView) -> Iterator[str]:
    """The notebook prints "over HUMAN BASELINE" above figures that are over its original model."""
    for system in view.systems:
        if HUMAN.search(system.column or ""):
            yield (
                f"{system.name} is one of the compared here: a figure over it is over its summaries, not over the references"
                " that people wrote."
            )
        elif system.name == view.baseline and ORIGINAL.search(system.column or ""):
            yield f"What the notebook calls 'over HUMAN BASELINE' is over {system.name}, and is called so here."


def _signature(view: ComparisonView) -> Iterator[str]:
    if view.signature:
        yield f"Signature: {view.signature}"

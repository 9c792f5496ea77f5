"""The last chunk of an evaluation: all scores become means, comparisons, counts and a signature."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import fsum
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from gistmill.db import scores as score_rows
from gistmill.db.claim import Claim
from gistmill.db.evaluations import Evaluation
from gistmill.db.scores import StoredScore
from gistmill.db.session import Database
from gistmill.errors import NothingToScore
from gistmill.faults import point
from gistmill.specs import EvaluateSpec
from workers.evaluation import statistics
from workers.handlers.base import Lease
from workers.handlers.signature import list_notes, sign

log = structlog.get_logger(__name__)

TICK_SCORES = 50_000
REASONS = {
    "failed": "a model has no summary of them",
    "example": "a prompt shows them as an example",
    "trained": "a model was trained on them",
    "no_reference": "they have no reference",
}


@dataclass
class _Series:
    """The scores of one system by one measure: of each case the sum over its rows, and precision and recall of every row."""

    sums: array[float] = field(default_factory=lambda: array("d"))
    precision: array[float] = field(default_factory=lambda: array("d"))
    recall: array[float] = field(default_factory=lambda: array("d"))

    def add(self, place: int, score: StoredScore) -> None:
        """Add the score of a row of the case at this place."""
        if place == len(self.sums):
            self.sums.append(0.0)
        self.sums[place] += score.fmeasure
        if score.precision is not None and score.recall is not None:
            self.precision.append(score.precision)
            self.recall.append(score.recall)


@dataclass
class _Scores:
    """All scores as they are read, case by case: 24 bytes each, and some 100 a case.

    `rows` says how many rows a case has, `first_rows` which is its first; `series` goes by measure and system.
    """

    rows: array[int] = field(default_factory=lambda: array("q"))
    first_rows: array[int] = field(default_factory=lambda: array("q"))
    series: dict[tuple[str, int], _Series] = field(default_factory=dict)

    @property
    def measures(self) -> list[str]:
        """What was measured."""
        return sorted({measure for measure, _ in self.series})

    @property
    def order(self) -> NDArray[np.intp]:
        """The places of the cases in the order of the data: keys of dialogues follow from what else was ever loaded."""
        return np.argsort(np.frombuffer(self.first_rows, dtype=np.int64), kind="stable")


def aggregate(
    database: Database,
    claim: Claim,
    lease: Lease,
    spec: EvaluateSpec,
    evaluation: Evaluation,
    metrics: Sequence[str],
) -> None:
    """Write what the scores of the job come to. The same scores give the same bytes, whoever aggregates.

    Raises:
        NothingToScore: every case was left out; the message says why.
        LeaseLost, JobEnded: as when scores are recorded.
    """
    if evaluation.is_aggregated:
        return
    names = [system.name for system in evaluation.systems]
    with database.read() as connection:
        counts = score_rows.count_outcomes(connection, claim.job_key)
        flaws = score_rows.count_flaws(connection, claim.job_key, len(names))
        notes = list_notes(connection, evaluation, flaws)
        signature = sign(connection, claim, spec, evaluation, metrics, counts)
        if not counts.get("scored"):
            raise NothingToScore(f"No case is left to score: {'; '.join(_left_out(counts))}.")
        found = _read(score_rows.read_all(connection, claim.job_key), lease)
    lease.check()
    means, pairs = _compute(found, spec, len(names), lease.check)
    lease.check_write()
    point("aggregate.begun", claim=claim)
    write = partial(
        score_rows.record_aggregates,
        claim=claim,
        means=means,
        pairs=pairs,
        counts={"outcomes": counts, "empty": flaws.empty},
        signature=signature,
        notes=notes,
    )
    database.transact(write)
    point("aggregate.committed", claim=claim)
    log.info("evaluation_aggregated", job_id=claim.job_id, cases=counts["scored"], systems=len(names))


def _read(scores: Iterable[StoredScore], lease: Lease) -> _Scores:
    """Add up the scores of each measure, per system and case. They come with the rows of a case together."""
    found, last = _Scores(), (-1, -1)
    for count, score in enumerate(scores, start=1):
        if count % TICK_SCORES == 0:
            lease.check()
        if score.dialogue_key != last[0]:
            found.rows.append(0)
            found.first_rows.append(score.row_number)
        if (score.dialogue_key, score.row_number) != last:
            found.rows[-1] += 1
            last = (score.dialogue_key, score.row_number)
        series = found.series.setdefault((score.measure, score.system), _Series())
        series.add(len(found.rows) - 1, score)
    return found


def _compute(
    found: _Scores, spec: EvaluateSpec, systems: int, tick: Callable[[], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of score_means and comparisons."""
    order = found.order
    weights = np.array(found.rows, dtype=np.float64)[order]
    values = {
        measure: np.array([found.series[measure, system].sums for system in range(systems)])[:, order] / weights
        for measure in found.measures
    }
    result = statistics.aggregate(values, weights=weights, resamples=spec.resamples, seed=spec.seed, tick=tick)
    rows = sum(found.rows)
    means = [
        _mean_row(system, measure, mean, found.series[measure, system], rows)
        for (system, measure), mean in result.means.items()
    ]
    pairs = [_pair_row(*key, pair) for key, pair in result.pairs.items()]
    return means, pairs


def _mean_row(system: int, measure: str, mean: statistics.Mean, series: _Series, rows: int) -> dict[str, Any]:
    # Rounded once, so that they depend on no order of summing.
    has_parts = len(series.precision) == rows
    return {
        "system": system,
        "measure": measure,
        "cases": mean.cases,
        "precision": fsum(series.precision) / rows if has_parts else None,
        "recall": fsum(series.recall) / rows if has_parts else None,
        "fmeasure": mean.value,
        **_limits(mean.levels),
    }


def _pair_row(measure: str, system: int, baseline: int, pair: statistics.Pair) -> dict[str, Any]:
    return {
        "measure": measure,
        "system": system,
        "baseline": baseline,
        "cases": pair.cases,
        "delta": pair.delta,
        **_limits(pair.levels),
        "p_value": pair.p_value,
        "p_adjusted": pair.p_adjusted,
        "wins": pair.wins,
        "ties": pair.ties,
        "losses": pair.losses,
    }


def _limits(levels: Mapping[str, tuple[float, float]] | None) -> dict[str, Any]:
    low, high = levels["95"] if levels else (None, None)
    return {"low": low, "high": high, "levels": None if levels is None else {name: list(both) for name, both in levels.items()}}


def _left_out(counts: Mapping[str, int]) -> list[str]:
    return [f"{counts[outcome]} because {reason}" for outcome, reason in REASONS.items() if counts.get(outcome)]

"""One score out of several: what a case with n references gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum

from gistmill.specs.evaluate import ReferenceRule
from workers.evaluation.rouge import Score


def combine(pairs: Sequence[Mapping[str, Score]], rule: ReferenceRule) -> list[dict[str, Score]]:
    """Return the scores of a case from those of its summary against each reference, by measure.

    `max` gives one entry: by measure, precision, recall and f-measure of the first reference with the best f-measure, as
    `RougeScorer.score_multi` does. `mean` gives one entry with the means. `each` gives every reference its own.

    Raises:
        ValueError: there is no reference.
    """
    if not pairs:
        raise ValueError("a case without references has no score")
    if rule == "each":
        return [dict(scores) for scores in pairs]
    choose = _best if rule == "max" else _mean
    return [{measure: choose([scores[measure] for scores in pairs]) for measure in pairs[0]}]


def _best(scores: Sequence[Score]) -> Score:
    return max(scores, key=lambda score: score.fmeasure)


def _mean(scores: Sequence[Score]) -> Score:
    precision, recall = (_mean_or_none([score[place] for score in scores]) for place in (0, 1))
    return Score(precision, recall, fsum(score.fmeasure for score in scores) / len(scores))


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fsum(known) / len(known) if len(known) == len(values) else None

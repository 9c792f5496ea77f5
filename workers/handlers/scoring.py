"""A page of cases becomes outcomes and scores: which summary is scored against which references, under each rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from gistmill.db.cases import Case, CaseRow
from gistmill.db.scores import CaseEnd, ScoreRow
from gistmill.errors import MetricFailed
from gistmill.specs import ReferenceRule
from workers.evaluation.metric_process import UNWATCHED, Progress
from workers.evaluation.metrics import Metric
from workers.evaluation.rouge import Score
from workers.evaluation.rules import combine


class Judge(NamedTuple):
    """What scores, by which rule, and the numbers of the systems that are scored."""

    metrics: Sequence[Metric]
    rule: ReferenceRule
    systems: Sequence[int]


class _Unit(NamedTuple):
    """What gets one score per measure: a summary against its references; of a case as a whole, or of one of its rows."""

    place: int
    row_number: int
    system: int
    text: str
    references: Sequence[str]


def score_page(
    judge: Judge, cases: Sequence[Case], left_out: Mapping[int, str], *, progress: Progress = UNWATCHED
) -> list[CaseEnd]:
    """Return how each case ends. All pairs of the page are scored in one go.

    Raises:
        MetricFailed: a metric's module raised, or gave no number.
        Stopped: the lease said so while a module worked.
    """
    ends = [_outcome(judge, case, left_out.get(case.dialogue_key)) for case in cases]
    scored = [(place, case) for place, case in enumerate(cases) if ends[place].outcome == "scored"]
    units = [unit for place, case in scored for unit in _units(judge, place, case)]
    rows: dict[int, list[ScoreRow]] = {place: [] for place, _ in scored}
    for unit, scores in zip(units, _score(judge, units, progress), strict=True):
        rows[unit.place] += [ScoreRow(unit.row_number, unit.system, measure, *score) for measure, score in scores.items()]
    return [end._replace(scores=tuple(rows.get(place, ()))) for place, end in enumerate(ends)]


def _outcome(judge: Judge, case: Case, reason: str | None) -> CaseEnd:
    """Return the end of a case without its scores."""
    end = CaseEnd(case.dialogue_key, case.rows[0].number, "scored")
    if not case.references:
        return end._replace(outcome="no_reference")
    if reason is not None:
        return end._replace(outcome=reason)
    read = _read_rows(judge.rule, case)
    missing = tuple(system for system in judge.systems if any(system not in row.texts for row in read))
    if missing:
        return end._replace(outcome="failed", missing=missing)
    empty = tuple(system for system in judge.systems if any(not row.texts[system].strip() for row in read))
    return end._replace(empty=empty, is_differing=judge.rule != "each" and _is_differing(judge, case))


def _read_rows(rule: ReferenceRule, case: Case) -> Sequence[CaseRow]:
    """Return the rows whose summaries count: the first, or under `each` all that have a reference."""
    return [row for row in case.rows if row.references] if rule == "each" else case.rows[:1]


def _is_differing(judge: Judge, case: Case) -> bool:
    return any(len({row.texts[system] for row in case.rows if system in row.texts}) > 1 for system in judge.systems)


def _units(judge: Judge, place: int, case: Case) -> Iterator[_Unit]:
    for row in _read_rows(judge.rule, case):
        references = row.references if judge.rule == "each" else case.references
        for system in judge.systems:
            yield _Unit(place, row.number, system, row.texts[system], references)


def _score(judge: Judge, units: Sequence[_Unit], progress: Progress) -> list[dict[str, Score]]:
    """Return the scores of each unit by measure: those of its references, the best or their mean."""
    texts = [unit.text for unit in units for _ in unit.references]
    references = [reference for unit in units for reference in unit.references]
    totals: list[dict[str, Score]] = [{} for _ in units]
    # Rows that stand alone may have several references all the same: then the best counts.
    rule: ReferenceRule = "max" if judge.rule == "each" else judge.rule
    for metric in judge.metrics if units else ():
        scores = iter(_score_pairs(metric, texts, references, units, progress))
        for total, unit in zip(totals, units, strict=True):
            total.update(*combine([next(scores) for _ in unit.references], rule))
    return totals


def _score_pairs(
    metric: Metric, texts: Sequence[str], references: Sequence[str], units: Sequence[_Unit], progress: Progress
) -> list[dict[str, Score]]:
    """Return the scores of the pairs; an error names the row of the pair that it is about."""
    try:
        return metric.score(texts, references, progress=progress)
    except MetricFailed as error:
        if "pair" not in error.fields:
            raise
        rows = [unit.row_number for unit in units for _ in unit.references]
        raise MetricFailed(f"Row {rows[error.fields['pair']]}: {error.message}", **error.fields) from error

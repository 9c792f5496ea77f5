"""The cases of an evaluation side by side: in the order of the data, or the worst or best first."""

from __future__ import annotations

import difflib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

from gistmill.db import cases as case_rows
from gistmill.db import evaluations
from gistmill.db.bulk import is_among
from gistmill.db.evaluations import Evaluation
from gistmill.db.session import Database
from gistmill.db.tables import dataset_rows, dialogues, evaluation_cases, score_means, scores
from gistmill.errors import InvalidInput
from gistmill.readback.comparisons import ROUGE
from gistmill.views import CaseView

CaseOrder = Literal["input", "worst", "best"]
PAGE = 200
RANKED_AT_ONCE = 10_000
DELTA = "delta"


@dataclass(frozen=True)
class CaseQuery:
    """Which cases, in which order. `by` is delta, or a measure of the system; None stands for the usual choice."""

    order: CaseOrder = "input"
    by: str = DELTA
    measure: str | None = None
    system: str | None = None
    baseline: str | None = None


@dataclass(frozen=True)
class Ranking:
    """The dialogues of cases, the worst or best first, behind this position. Eight bytes a case: millions may be ranked."""

    position: int
    keys: array[int]

    def pages(self, size: int = PAGE) -> Iterator[Ranking]:
        """Yield it in parts."""
        for start in range(0, len(self.keys), size):
            yield Ranking(self.position + start, self.keys[start : start + size])


class _Found(NamedTuple):
    """A case, and how it ended."""

    dialogue_key: int
    outcome: str


@dataclass(frozen=True)
class _Choice:
    """The measure and the numbers of the systems that a query means."""

    measure: str
    system: int
    baseline: int


def read_cases(
    database: Database,
    tenant_key: int,
    job_id: str,
    query: CaseQuery | None = None,
    *,
    after: str | None = None,
    limit: int = PAGE,
) -> list[CaseView]:
    """Return at most `limit` cases behind the cursor.

    In input order they are there as soon as they are recorded; the worst and best are of those that were scored.

    Raises:
        UnknownComparison: this tenant has no evaluate job of this id.
        InvalidInput: the cursor cannot be read, or no such measure or system was scored.
    """
    query = query or CaseQuery()
    if query.order != "input":
        return read_ranked(database, tenant_key, job_id, query, rank_cases(database, tenant_key, job_id, query, after, limit))
    with database.read() as connection:
        job = evaluations.get_row(connection, tenant_key, job_id)
        evaluation = evaluations.load(connection, job.job_key)
        choice = _choose(connection, evaluation, query)
        found = _in_input_order(connection, job.job_key, position_of(after), limit)
        return _views(connection, job, evaluation, found, choice)


def rank_cases(
    database: Database, tenant_key: int, job_id: str, query: CaseQuery, after: str | None = None, limit: int | None = None
) -> Ranking:
    """Return which cases come behind the cursor, all of them or at most `limit`, the worst or best first.

    All scores are read and sorted for it, so that whoever shows many cases ranks them once and reads them in pages.

    Raises:
        UnknownComparison, InvalidInput: as in `read_cases`.
    """
    position = position_of(after)
    with database.read() as connection:
        job = evaluations.get_row(connection, tenant_key, job_id)
        choice = _choose(connection, evaluations.load(connection, job.job_key), query)
        if choice is None:
            return Ranking(position, array("q"))
        ranked = _ranked(job.job_key, query, choice).limit(limit).offset(position)
        rows = connection.execute(ranked, execution_options={"yield_per": RANKED_AT_ONCE})
        return Ranking(position, array("q", (row.dialogue_key for row in rows)))


def read_ranked(database: Database, tenant_key: int, job_id: str, query: CaseQuery, ranking: Ranking) -> list[CaseView]:
    """Return the cases of a ranking, or of a part of one, in its order."""
    with database.read() as connection:
        job = evaluations.get_row(connection, tenant_key, job_id)
        evaluation = evaluations.load(connection, job.job_key)
        found = [_Found(key, "scored") for key in ranking.keys]
        views = _views(connection, job, evaluation, found, _choose(connection, evaluation, query))
    return [view.model_copy(update={"cursor": f"c:{ranking.position + place}"}) for place, view in enumerate(views, start=1)]


def _choose(connection: Connection, evaluation: Evaluation, query: CaseQuery) -> _Choice | None:
    """Return what the query means, or None while nothing is scored."""
    names = [system.name for system in evaluation.systems]
    system = _place(query.system, names, "system") if query.system else len(names) - 1
    baseline = _place(query.baseline, names, "system") if query.baseline else 0
    known = select(score_means.c.measure).where(score_means.c.job_key == evaluation.job_key).distinct()
    measures = sorted(connection.execute(known).scalars())
    if not measures:
        return None
    wanted = query.by if query.by != DELTA else query.measure
    if wanted is not None:
        return _Choice(measures[_place(wanted, measures, "measure")], system, baseline)
    usual = next((name for name in reversed(ROUGE) if name in measures), measures[0])
    return _Choice(usual, system, baseline)


def _place(name: str, known: Sequence[str], what: str) -> int:
    if name in known:
        return known.index(name)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise InvalidInput(f"There is no {what} '{name[:60]}' in this evaluation. There are: {', '.join(known)}.{hint}")


def _in_input_order(connection: Connection, job_key: int, position: int, limit: int) -> list[_Found]:
    columns = (evaluation_cases.c[name] for name in _Found._fields)
    query = select(*columns).where(evaluation_cases.c.job_key == job_key, evaluation_cases.c.row_number >= position)
    return [_Found(*row) for row in connection.execute(query.order_by(evaluation_cases.c.row_number).limit(limit))]


def _ranked(job_key: int, query: CaseQuery, choice: _Choice) -> Select[tuple[int]]:
    """The dialogues of the cases in order, from one walk through the scores: under the rule `each` the mean of a case's rows.

    Two sums joined to the cases took PostgreSQL more than 30 s for 40,000 cases that it had no statistics of.
    """
    mean = func.avg(scores.c.fmeasure)
    value: ColumnElement[float] = mean.filter(scores.c.system == choice.system)
    systems = {choice.system}
    if query.by == DELTA:
        value = value - mean.filter(scores.c.system == choice.baseline)
        systems.add(choice.baseline)
    mine = (scores.c.job_key == job_key, scores.c.measure == choice.measure, scores.c.system.in_(systems))
    first = func.min(scores.c.row_number)
    return (
        select(scores.c.dialogue_key)
        .where(*mine)
        .group_by(scores.c.dialogue_key)
        .order_by(value if query.order == "worst" else value.desc(), first)
    )


def _views(
    connection: Connection, job: Row[Any], evaluation: Evaluation, found: Sequence[_Found], choice: _Choice | None
) -> list[CaseView]:
    keys = [key for key, _ in found]
    if not keys:
        return []
    names = {system.number: system.name for system in evaluation.systems}
    cases = {case.dialogue_key: case for case in case_rows.load_cases(connection, job, evaluation, keys)}
    texts = dict(
        connection.execute(select(dialogues.c.key, dialogues.c.text).where(is_among(connection, dialogues.c.key, keys))).all()
    )
    ids = _item_ids(connection, job.dataset_key, [case.rows[0].number for case in cases.values()])
    scored = _scores(connection, job.job_key, keys)
    views = []
    for key, outcome in found:
        case, of = cases[key], scored.get(key, {})
        first = case.rows[0]
        views.append(
            CaseView(
                cursor=f"c:{first.number + 1}",
                row=first.number,
                id=ids[first.number],
                outcome=outcome,
                dialogue=texts[key],
                references=case.references,
                summaries={name: first.texts.get(number) for number, name in names.items()},
                scores={name: of[number] for number, name in names.items() if number in of},
                delta=_delta(of, choice),
            )
        )
    return views


def _item_ids(connection: Connection, dataset_key: int, numbers: Sequence[int]) -> dict[int, str]:
    query = select(dataset_rows.c.row_number, dataset_rows.c.id).where(
        dataset_rows.c.dataset_key == dataset_key, is_among(connection, dataset_rows.c.row_number, numbers)
    )
    return {row.row_number: row.id for row in connection.execute(query)}


def _scores(connection: Connection, job_key: int, keys: Sequence[int]) -> dict[int, dict[int, dict[str, float]]]:
    """Return the F-measures of these cases by dialogue, system and measure."""
    query = (
        select(scores.c.dialogue_key, scores.c.system, scores.c.measure, func.avg(scores.c.fmeasure).label("value"))
        .where(scores.c.job_key == job_key, is_among(connection, scores.c.dialogue_key, keys))
        .group_by(scores.c.dialogue_key, scores.c.system, scores.c.measure)
    )
    found: dict[int, dict[int, dict[str, float]]] = {}
    for row in connection.execute(query):
        found.setdefault(row.dialogue_key, {}).setdefault(row.system, {})[row.measure] = row.value
    return found


def _delta(of: dict[int, dict[str, float]], choice: _Choice | None) -> float | None:
    if choice is None or choice.system not in of or choice.baseline not in of:
        return None
    return of[choice.system][choice.measure] - of[choice.baseline][choice.measure]


def position_of(cursor: str | None) -> int:
    """Return the place behind which a cursor stands.

    Raises:
        InvalidInput: it cannot be read.
    """
    if cursor is None:
        return 0
    kind, _, number = cursor.partition(":")
    if kind == "c" and number.isascii() and number.isdigit() and len(number) < 19:
        return int(number)
    raise InvalidInput(f"'{cursor[:40]}' is not a cursor. Give back the `cursor` of a line that you have read.")

"""Evaluations read back: in pages, side by side, worst first, with what each model cost, and through the views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from gistmill.db.session import Database
from gistmill.db.tables import tenants
from gistmill.errors import InvalidInput, UnknownComparison
from gistmill.gate import evaluate as judge
from gistmill.gate import parse
from gistmill.readback import CaseQuery, get_comparison, list_comparisons, read_cases
from gistmill.readback.cases import rank_cases, read_ranked
from gistmill.views import CaseView
from tests.support.evaluations import Lab, dialogues, echo, first_words
from tests.support.rows import add


@pytest.fixture
def lab(database: Database, tmp_path: Path) -> Lab:
    """A database with two models, the second of which fails on a dialogue."""
    made = Lab(database, tmp_path)
    made.add("one", first_words, weight_bytes=77, manifest={"parameters": 9})
    made.add("two", lambda unit: None if "part 4" in unit.text else echo(unit))
    return made


def cases(lab: Lab, job_id: str, query: CaseQuery | None = None, **page: Any) -> list[CaseView]:
    return read_cases(lab.database, lab.tenant, job_id, query, **page)


def test_comparison_tells_systems_costs_and_that_what_is_running_has_no_figures_yet(lab: Lab) -> None:
    job_id = lab.submit(lab.load(dialogues(6)).id, "one", "two", select="[0:6]")
    view = lab.view(job_id)
    assert (view.state, view.measures, view.pairs, view.counts, view.ended) == ("waiting", [], [], {}, 0)
    assert (view.dataset, view.select, view.baseline, view.cases) == ("data", "[0:6]", "one", 6)
    lab.work()
    view = lab.view(job_id)
    first = view.systems[0]
    assert (first.name, first.model, first.prompt, first.column) == ("one", "one@1", "instruction", None)
    assert first.cost is not None
    assert (first.cost.artifact_bytes, first.cost.total_parameters, first.cost.training_s) == (77, 9, None)
    assert view.measures == ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert [(pair.system, pair.baseline) for pair in view.pairs] == [("two", "one")] * 4
    assert not judge(parse("two.rougeLsum - one.rougeLsum > 99"), view).is_met


def test_evaluations_are_listed_newest_first_in_pages(lab: Lab) -> None:
    data = lab.load(dialogues(2))
    ids = [lab.submit(data.id, "one") for _ in range(3)]
    first = list_comparisons(lab.database, lab.tenant, limit=2)
    assert ([view.id for view in first.data], first.has_more, first.next) == (ids[:0:-1], True, ids[1])
    second = list_comparisons(lab.database, lab.tenant, limit=2, after=first.next)
    assert ([view.id for view in second.data], second.has_more) == (ids[:1], False)


def test_nothing_of_another_tenant_is_shown(lab: Lab) -> None:
    job_id = lab.submit(lab.load(dialogues(2)).id, "one")
    other = lab.database.transact(lambda connection: add(connection, tenants, name="other"))
    assert list_comparisons(lab.database, other).data == []
    summarize = list_comparisons(lab.database, lab.tenant).data[0].systems[0].job
    for read in (get_comparison, read_cases):
        with pytest.raises(UnknownComparison):
            read(lab.database, other, job_id)
        with pytest.raises(UnknownComparison):
            read(lab.database, lab.tenant, str(summarize))
    with pytest.raises(UnknownComparison):
        rank_cases(lab.database, other, job_id, CaseQuery("worst"))


def test_cases_stand_side_by_side_in_the_order_of_the_data_and_pages_go_on(lab: Lab) -> None:
    rows = dialogues(6, references=2)
    view = lab.evaluate(lab.load(rows).id, "one", "two")
    found = cases(lab, view.id)
    assert [case.row for case in found] == list(range(6))
    assert (found[0].id, found[0].dialogue) == ("r0", rows[0]["dialogue"])
    assert found[0].references == [rows[0]["summary1"], rows[0]["summary2"]]
    assert found[0].summaries == {"one": " ".join(rows[0]["dialogue"].split()[:4]), "two": rows[0]["dialogue"]}
    assert found[0].delta == pytest.approx(found[0].scores["two"]["rougeLsum"] - found[0].scores["one"]["rougeLsum"])
    assert (found[4].outcome, found[4].summaries["two"], found[4].scores, found[4].delta) == ("failed", None, {}, None)
    paged = cases(lab, view.id, limit=4)
    paged += cases(lab, view.id, after=paged[-1].cursor, limit=4)
    assert paged == found


@pytest.mark.parametrize("rule", ["max", "each"])
def test_worst_and_best_cases_are_ranked_by_delta_or_by_a_measure(lab: Lab, rule: str) -> None:
    rows = [{"dialogue": row["dialogue"], "summary": row[f"summary{n}"]} for row in dialogues(6, references=2) for n in (1, 2)]
    view = lab.evaluate(lab.load(rows).id, "one", "two", references=rule)
    known = [case for case in cases(lab, view.id) if case.scores]
    for query, sign, measure in (
        (CaseQuery("worst"), 1, "rougeLsum"),
        (CaseQuery("worst", measure="rouge1"), 1, "rouge1"),
        (CaseQuery("best", system="one", baseline="two"), 1, "rougeLsum"),
        (CaseQuery("best", measure="rouge2"), -1, "rouge2"),
    ):
        order = sorted(known, key=lambda case: (sign * difference(case, measure), case.row))
        found = cases(lab, view.id, query)
        assert [case.row for case in found] == [case.row for case in order]
        assert cases(lab, view.id, query, limit=2, after=found[0].cursor) == found[1:3]
    alone = cases(lab, view.id, CaseQuery("best", by="rouge1", system="one"))
    values = [case.scores["one"]["rouge1"] for case in alone]
    assert values == sorted(values, reverse=True)
    assert len(values) == len(known)


def difference(case: CaseView, measure: str) -> float:
    return case.scores["two"][measure] - case.scores["one"][measure]


def test_ranking_once_and_reading_in_pages_gives_what_one_page_gives(lab: Lab) -> None:
    view = lab.evaluate(lab.load(dialogues(9)).id, "one", "two")
    query = CaseQuery("worst")
    ranking = rank_cases(lab.database, lab.tenant, view.id, query, "c:1")
    parts = [case for part in ranking.pages(3) for case in read_ranked(lab.database, lab.tenant, view.id, query, part)]
    assert parts == cases(lab, view.id, query, after="c:1")
    assert [case.cursor for case in parts] == [f"c:{place}" for place in range(2, 9)]


def test_what_was_not_scored_cannot_be_asked_for(lab: Lab) -> None:
    view = lab.evaluate(lab.load(dialogues(3)).id, "one", "two")
    for query, words in (
        (CaseQuery(by="rouge3"), "no measure 'rouge3'.*Did you mean"),
        (CaseQuery(measure="bleu"), "no measure 'bleu'"),
        (CaseQuery("worst", system="tow"), "no system 'tow'.*Did you mean 'two'"),
        (CaseQuery(baseline="three"), "no system 'three'"),
    ):
        with pytest.raises(InvalidInput, match=words):
            cases(lab, view.id, query)
    for cursor in ("x", "c:-1", "c:" + "9" * 30, "a:1"):
        with pytest.raises(InvalidInput, match="not a cursor"):
            cases(lab, view.id, after=cursor)
    running = lab.submit(lab.load(dialogues(2), name="new").id, "one")
    assert (cases(lab, running), cases(lab, running, CaseQuery("worst"))) == ([], [])


def test_showing_an_evaluation_reads_no_row_of_its_cases(lab: Lab) -> None:
    view = lab.evaluate(lab.load(dialogues(3)).id, "one")
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(lab.database.engine, "before_cursor_execute", note)
    assert lab.view(view.id) == view
    event.remove(lab.database.engine, "before_cursor_execute", note)
    assert [statement for statement in seen if "evaluation_cases" in statement or "FROM scores" in statement] == []


def test_many_cases_are_ranked_with_a_number_of_statements_that_does_not_grow_with_the_pages(lab: Lab) -> None:
    view = lab.evaluate(lab.load(dialogues(9)).id, "one", "two")
    sorts: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if "avg(" in statement and "ORDER BY" in statement:
            sorts.append(statement)

    event.listen(lab.database.engine, "before_cursor_execute", note)
    query = CaseQuery("worst")
    ranking = rank_cases(lab.database, lab.tenant, view.id, query)
    pages = [read_ranked(lab.database, lab.tenant, view.id, query, part) for part in ranking.pages(1)]
    event.remove(lab.database.engine, "before_cursor_execute", note)
    assert (len(pages), len(sorts)) == (8, 1)

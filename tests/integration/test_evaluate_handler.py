"""What an evaluation finds, checked against rouge_score and plain Python: cases, rules, what is left out, and what goes on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

from gistmill import control
from gistmill.db import chunks as chunk_rows
from gistmill.db import prompts, scores
from gistmill.db.check import check
from gistmill.db.models import resolve
from gistmill.db.pending import Unit
from gistmill.db.session import Database
from gistmill.db.tables import comparisons, evaluation_cases, score_means
from gistmill.db.tables import scores as score_table
from gistmill.errors import JobEnded, LeaseLost, StoreUnavailable
from gistmill.settings import WorkerSettings
from gistmill.specs import parse_evaluate_spec
from gistmill.submit import submit_job, submit_rescore
from gistmill.submit.prompts import draft_examples
from tests.support.evaluations import Lab, dialogues, echo, first_words
from tests.support.finetune import add_model, submit_finetune
from tests.support.jobs import chunk_rows_of, make_worker, take
from workers.handlers import evaluate, scoring

MEASURES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@pytest.fixture
def lab(database: Database, tmp_path: Path) -> Lab:
    """A database with two models."""
    made = Lab(database, tmp_path)
    made.add("one", first_words)
    made.add("two", echo)
    return made


def rouge(text: str, references: Sequence[str], measure: str, *, stemming: bool = True) -> float:
    """Return the best F-measure, by the definition itself."""
    return float(RougeScorer([measure], use_stemmer=stemming).score_multi(list(references), text)[measure].fmeasure)


def words(text: str) -> str:
    return " ".join(text.split()[:4])


@pytest.mark.parametrize("stemming", [True, False])
def test_scores_and_means_are_those_of_rouge_score(lab: Lab, *, stemming: bool) -> None:
    rows = dialogues(7, references=3)
    view = lab.evaluate(lab.load(rows).id, "one", "two", stemming=stemming)
    assert (view.state, view.counts, view.ended, view.cases) == ("completed", {"scored": 7}, 7, 7)
    for measure in MEASURES:
        mine = [
            [rouge(text, [row[f"summary{n}"] for n in (1, 2, 3)], measure, stemming=stemming) for row in rows
             for text in (write(row["dialogue"]),)]
            for write in (words, str)
        ]  # fmt: skip
        found = [system.scores[measure] for system in view.systems]
        assert [mean.fmeasure for mean in found] == pytest.approx([fmean(values) for values in mine], abs=1e-12)
        (pair,) = [pair for pair in view.pairs if pair.measure == measure]
        deltas = [two - one for one, two in zip(*mine, strict=True)]
        assert pair.delta == pytest.approx(fmean(deltas), abs=1e-12)
        assert (pair.wins, pair.losses) == (sum(d > 1e-12 for d in deltas), sum(d < -1e-12 for d in deltas))
        assert (pair.low or 0) <= pair.delta <= (pair.high or 0)
        assert all((mean.low or 0) <= mean.fmeasure <= (mean.high or 0) for mean in found)
    assert check(lab.database) == []


def test_flattened_data_is_generated_once_per_dialogue_and_scored_as_the_wide_form(lab: Lab) -> None:
    wide = dialogues(6, references=3)
    flat = [{"dialogue": row["dialogue"], "summary": row[f"summary{n}"]} for n in (1, 2, 3) for row in wide]
    first = lab.evaluate(lab.load(wide).id, "one", "two")
    assert lab.generated == 12
    second = lab.evaluate(lab.load(flat, name="flat").id, "one", "two", prompt="none")
    assert (lab.generated, second.cases, second.counts) == (24, 6, {"scored": 6})
    assert [system.scores for system in second.systems] == [system.scores for system in first.systems]
    assert second.pairs == first.pairs


def test_each_scores_every_row_and_resamples_cases_of_unequal_numbers_of_rows(lab: Lab) -> None:
    rows = [
        {"dialogue": row["dialogue"], "summary": row[f"summary{n + 1}"]}
        for number, row in enumerate(dialogues(5, references=3))
        for n in range(1 + number % 3)
    ]
    view = lab.evaluate(lab.load(rows).id, "one", "two", references="each")
    values = [rouge(words(row["dialogue"]), [row["summary"]], "rouge1") for row in rows]
    mean = view.systems[0].scores["rouge1"]
    assert (mean.cases, view.counts) == (5, {"scored": 5})
    assert mean.fmeasure == pytest.approx(fmean(values), abs=1e-12)
    stored = [row for row in lab.rows(score_table, view.id) if row["system"] == 0 and row["measure"] == "rouge1"]
    assert {row["row_number"]: row["fmeasure"] for row in stored} == pytest.approx(dict(enumerate(values)), abs=1e-12)
    averaged = lab.evaluate(lab.load(rows).id, "one", references="mean")
    grouped: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        grouped.setdefault(row["dialogue"], []).append(value)
    expected = fmean(fmean(of_case) for of_case in grouped.values())
    assert averaged.systems[0].scores["rouge1"].fmeasure == pytest.approx(expected, abs=1e-12)


def test_single_case_has_no_interval_and_no_p_value(lab: Lab) -> None:
    view = lab.evaluate(lab.load(dialogues(1)).id, "one", "two")
    mean, pair = view.systems[0].scores["rouge1"], view.pairs[0]
    assert (mean.low, mean.high, mean.levels, pair.low, pair.p_value, pair.p_adjusted) == (None, None, {}, None, None, None)


def test_empty_summaries_score_zero_and_are_counted(lab: Lab) -> None:
    rows = [{"gold": row["summary"], "a": row["summary"], "b": " \n" if n < 2 else "Ann"} for n, row in enumerate(dialogues(4))]
    view = evaluate_columns(lab, rows, "a", "b")
    assert [(system.name, system.empty) for system in view.systems] == [("a", 0), ("b", 2)]
    assert view.systems[0].scores["rouge2"].fmeasure == 1.0
    of_b = [row for row in lab.rows(score_table, view.id) if row["system"] == 1 and row["measure"] == "rouge1"]
    assert sorted(row["row_number"] for row in of_b if row["fmeasure"] == 0.0) == [0, 1]
    assert view.counts == {"scored": 4}


def evaluate_columns(lab: Lab, rows: list[dict[str, Any]], *columns: str, case: str | None = None, **fields: Any) -> Any:
    predictions = lab.load_predictions(rows, *columns, case=case, references=fields.pop("gold", ("gold",)))
    named = {"dataset": predictions.id, "predictions": predictions.id, "columns": list(columns), "resamples": 200}
    job_id, _ = submit_job(lab.database, lab.tenant, parse_evaluate_spec(named | fields))
    lab.work()
    return lab.view(job_id)


@pytest.mark.parametrize("rule", ["max", "each"])
def test_case_column_and_data_beside_make_the_same_cases_of_the_rows_of_a_file(lab: Lab, rule: str) -> None:
    wide = dialogues(4, references=3)
    rows = [
        {"key": f"d{number}", "gold": row[f"summary{n}"], "a": words(row["dialogue"]), "b": row["dialogue"]}
        for number, row in enumerate(wide)
        for n in (1, 2, 3)
    ]
    by_column = evaluate_columns(lab, rows, "a", "b", case="key", references=rule)
    beside = lab.load([{"dialogue": row["dialogue"]} for row in wide for _ in range(3)])
    by_data = evaluate_columns(lab, rows, "a", "b", dataset=beside.id, references=rule)
    alone = evaluate_columns(lab, rows, "a", "b", references=rule)
    assert (by_column.cases, by_data.cases, alone.cases) == (4, 4, 12)
    assert by_column.systems[0].scores == by_data.systems[0].scores
    value = by_column.systems[0].scores["rouge1"].fmeasure
    values = [max(found) if rule == "max" else fmean(found) for found in (
        [rouge(row["a"], [row["gold"]], "rouge1") for row in rows[start : start + 3]] for start in range(0, 12, 3)
    )]  # fmt: skip
    assert value == pytest.approx(fmean(values), abs=1e-12)
    rules = [dict(part.partition(":")[::2] for part in view.signature.split("|"))["cases"] for view in (by_column, alone)]
    assert rules == ["column-key", "each-row"]


def test_references_of_a_file_go_before_those_of_the_data_beside_it(lab: Lab) -> None:
    rows = [{"gold": row["dialogue"], "a": row["dialogue"]} for row in dialogues(3)]
    beside = lab.load(dialogues(3))
    assert evaluate_columns(lab, rows, "a", dataset=beside.id).systems[0].scores["rougeL"].fmeasure == 1.0
    without = evaluate_columns(lab, rows, "a", dataset=beside.id, gold=())
    assert 0 < without.systems[0].scores["rougeL"].fmeasure < 1


def test_cases_that_are_no_fair_test_are_left_out_of_everything_and_counted(lab: Lab) -> None:
    rows = dialogues(10)
    rows[9] = {"dialogue": rows[9]["dialogue"]}
    data = lab.load(rows)
    shots = draft_examples(lab.database, lab.tenant, "shots", kind="few-shot", dataset=data.id, selection="[0,5]")
    prompts.add(lab.database, lab.tenant, shots)
    base = resolve(lab.database, lab.tenant, "two")
    training = submit_finetune(lab.database, base, data.id, name="tuned", select="[1:3]")
    lab.add("tuned", echo, job_key=lab.key_of(training), lineage={"base_digest": base.digest})
    lab.add("patchy", lambda unit: None if "part 7" in unit.text else unit.text)
    view = lab.evaluate(data.id, "one", "tuned", "patchy", prompt="shots")
    expected = {0: "example", 1: "trained", 2: "trained", 5: "example", 7: "failed", 9: "no_reference"}
    assert lab.outcomes(view.id) == {row: expected.get(row, "scored") for row in range(10)}
    assert (view.counts, view.ended) == ({"example": 2, "failed": 1, "no_reference": 1, "scored": 4, "trained": 2}, 10)
    assert "patchy has no summary of 1 case." in view.notes
    assert {row["row_number"] for row in lab.rows(score_table, view.id)} == {3, 4, 6, 8}
    assert {row["cases"] for table in (score_means, comparisons) for row in lab.rows(table, view.id)} == {4}
    assert {pair.wins + pair.ties + pair.losses for pair in view.pairs} == {4}
    assert check(lab.database) == []


@pytest.mark.parametrize("how", ["copy", "adapter", "stopped"])
def test_training_counts_by_files_through_the_base_and_by_what_chose_the_weights(lab: Lab, how: str) -> None:
    data, valid = lab.load(dialogues(4)), lab.load(dialogues(6)[4:], name="valid")
    base = resolve(lab.database, lab.tenant, "two")
    stop = {"validation": valid.id, "early_stop": "loss"} if how == "stopped" else {}
    training = submit_finetune(lab.database, base, data.id, name="tuned", select="[0:1]", **stop)
    lab.add("tuned", echo, job_key=lab.key_of(training))
    tuned = resolve(lab.database, lab.tenant, "tuned")
    if how == "adapter":
        lab.add("other", echo, lineage={"base_digest": tuned.digest})
    if how == "copy":
        add_model(lab.database, "other", digest=tuned.digest)
        lab.writers["other"] = echo
    view = lab.evaluate(lab.load(dialogues(6), name="all").id, "tuned" if how == "stopped" else "other")
    trained = 3 if how == "stopped" else 1
    assert view.counts == {"scored": 6 - trained, "trained": trained}


def test_evaluation_of_which_nothing_is_left_fails_with_the_reasons(lab: Lab) -> None:
    lab.add("silent", lambda unit: None)
    view = lab.evaluate(lab.load(dialogues(3)).id, "one", "silent")
    assert (view.state, (view.error or {})["code"]) == ("failed", "nothing_to_score")
    assert (view.error or {})["message"] == "No case is left to score: 3 because a model has no summary of them."
    assert (lab.rows(score_table, view.id), lab.rows(score_means, view.id)) == ([], [])


def test_case_that_was_left_out_is_scored_after_its_summary_was_made_and_both_jobs_retried(lab: Lab) -> None:
    lab.add("silent", lambda unit: None)
    data = lab.load(dialogues(3))
    view = lab.evaluate(data.id, "one", "silent")
    lab.writers["silent"] = echo
    control.retry(lab.database, lab.tenant, str(view.systems[1].job))
    lab.work()
    control.retry(lab.database, lab.tenant, view.id)
    assert lab.view(view.id).ended == 0
    lab.work()
    again = lab.view(view.id)
    assert (again.state, again.counts, again.ended) == ("completed", {"scored": 3}, 3)
    assert check(lab.database) == []


def test_rows_of_one_dialogue_that_were_sampled_differ_and_the_first_counts(lab: Lab) -> None:
    chance = random.Random(0)

    def write(unit: Unit) -> str:
        return " ".join(chance.sample(unit.text.split(), 5))

    lab.add("dice", write)
    rows = [{"dialogue": row["dialogue"], "summary": row["summary"]} for row in dialogues(3) for _ in range(2)]
    view = lab.evaluate(lab.load(rows).id, "dice", "one", generation={"do_sample": True})
    assert (view.cases, lab.generated) == (3, 12)
    assert any("The rows of 3 cases hold different summaries: the first counts" in note for note in view.notes)
    (first,) = [row for row in lab.rows(evaluation_cases, view.id) if row["row_number"] == 0]
    assert first["differing"]
    each = lab.view(submit_rescore(lab.database, lab.tenant, [view.id], {"references": "each"})[0])
    lab.work()
    each = lab.view(each.id)
    assert (each.cases, len(lab.rows(score_table, each.id)), each.notes) == (3, 6 * 2 * 4, [])


def test_what_the_compared_do_not_share_is_named(lab: Lab) -> None:
    beams = {"name": "b", "model": "two", "prompt": "none", "generation": {"num_beams": 4}}
    view = lab.evaluate(lab.load(dialogues(3)).id, "one", beams)
    assert view.notes == [
        "The compared differ in prompt: one: instruction; b: none.",
        "The compared differ in generation: one: num_beams 1; b: num_beams 4.",
    ]


def test_selected_rows_alone_are_scored_whatever_the_selection(lab: Lab) -> None:
    data = lab.load(dialogues(9))
    for select, rows in (("[::2]", {0, 2, 4, 6, 8}), ("[1,5,8]", {1, 5, 8}), ("[2:4]", {2, 3})):
        view = lab.evaluate(data.id, "one", select=select)
        assert (set(lab.outcomes(view.id)), view.cases, view.ended) == (rows, len(rows), len(rows))
        assert f"select:{select}" in view.signature


def test_signature_tells_long_selections_apart(lab: Lab) -> None:
    data = lab.load(dialogues(60))
    ids = [lab.evaluate(data.id, "one", select=str([*range(50), last])).signature for last in (55, 56)]
    assert ids[0] != ids[1]
    assert all("select:sha256-" in signature for signature in ids)


def test_pages_that_were_recorded_are_not_scored_again_and_the_figures_are_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lab.load(dialogues(12, references=2))
    whole = lab.evaluate(data.id, "one", "two")
    monkeypatch.setattr(evaluate, "PAGE_CASES", 5)
    scored: list[int] = []
    real = scoring.score_page

    def score_page(judge: Any, cases: Any, left_out: Any, *, progress: Any) -> Any:
        scored.append(len(cases))
        if len(scored) == 3:
            raise StoreUnavailable("gone")
        return real(judge, cases, left_out, progress=progress)

    monkeypatch.setattr(evaluate, "score_page", score_page)
    job_id = submit_rescore(lab.database, lab.tenant, [whole.id], {"labels": {"a": "b"}})[0]
    with pytest.raises(StoreUnavailable):
        lab.step()
    assert (len(lab.outcomes(job_id)), lab.view(job_id).ended) == (10, 10)
    holder = owner(lab)
    lab.database.transact(lambda connection: chunk_rows.release_owned(connection, holder))
    lab.work()
    assert scored == [5, 5, 2, 2]
    assert lab.figures(job_id) == lab.figures(whole.id)


def owner(lab: Lab) -> str:
    with lab.database.read() as connection:
        return str(connection.exec_driver_sql("SELECT owner FROM chunks WHERE state = 'running'").scalar_one())


def test_scores_are_written_only_under_the_lease_and_never_under_an_ended_job(lab: Lab) -> None:
    view = lab.evaluate(lab.load(dialogues(2)).id, "one")
    job_id = submit_rescore(lab.database, lab.tenant, [view.id], {})[0]
    claim = take(lab.database, make_worker(lab.database, "zombie", kinds=("evaluate",)))
    assert claim is not None
    end = scores.CaseEnd(1, 0, "scored", scores=(scores.ScoreRow(0, 0, "rouge1", 1.0, 1.0, 1.0),))
    lab.database.transact(lambda connection: chunk_rows.release(connection, claim))
    with pytest.raises(LeaseLost):
        lab.database.transact(lambda connection: scores.record(connection, claim, [end]))
    later = take(lab.database, make_worker(lab.database, "later", kinds=("evaluate",)))
    assert later is not None
    with pytest.raises(LeaseLost):
        lab.database.transact(lambda connection: scores.record(connection, claim, [end]))
    assert lab.database.transact(lambda connection: scores.record(connection, later, [end])) == 1
    assert lab.database.transact(lambda connection: scores.record(connection, later, [end])) == 0
    assert check(lab.database) == []
    assert chunk_rows_of(lab.database, lab.key_of(job_id))[0]["progressed"]
    (case,) = lab.rows(evaluation_cases, job_id)
    assert (case["chunk_key"], case["epoch"], lab.view(job_id).ended) == (later.chunk_key, later.epoch, 1)
    control.cancel(lab.database, lab.tenant, job_id)
    lab.database.transact(lambda connection: chunk_rows.close(connection, later))
    assert lab.view(job_id).state == "cancelled"
    aggregates: dict[str, Any] = {"means": [], "pairs": [], "counts": {}, "signature": {}, "notes": []}
    with pytest.raises(LeaseLost):
        lab.database.transact(lambda connection: scores.record_aggregates(connection, later, **aggregates))


def test_page_under_a_job_that_failed_meanwhile_is_dropped_whole(lab: Lab) -> None:
    view = lab.evaluate(lab.load(dialogues(2)).id, "one")
    job_id = submit_rescore(lab.database, lab.tenant, [view.id], {})[0]
    claim = take(lab.database, make_worker(lab.database, "w", kinds=("evaluate",)))
    assert claim is not None
    with lab.database.write() as connection:
        connection.exec_driver_sql(f"UPDATE jobs SET state = 'failed' WHERE id = '{job_id}'")
    with pytest.raises(JobEnded):
        lab.score(claim)
    assert (lab.rows(evaluation_cases, job_id), lab.rows(score_table, job_id)) == ([], [])


def test_unknown_metric_fails_the_evaluation_and_says_what_the_worker_knows(lab: Lab) -> None:
    view = lab.evaluate(lab.load(dialogues(2)).id, "one", metrics=["bleu"])
    assert (view.state, (view.error or {})["code"]) == ("failed", "unknown_metric")
    assert "GISTMILL_WORKER__METRICS_DIR" in (view.error or {})["message"]


@pytest.mark.timeout(120)
def test_module_that_raises_fails_the_evaluation_and_mended_scores_every_case_anew(
    sqlite_only: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(sqlite_only, tmp_path, settings=WorkerSettings(metrics_dir=tmp_path / "metrics"))
    monkeypatch.setattr(evaluate, "MODULE_PAGE_CASES", 2)
    write_module(tmp_path, "value = 1.0 if predictions != ['bad'] else float('no such summary')")
    rows = [{"gold": "Ann", "a": "bad" if n == 3 else f"Ann {n}"} for n in range(5)]
    view = evaluate_columns(lab, rows, "a", metrics=["length"])
    assert (view.state, (view.error or {})["code"]) == ("failed", "metric_failed")
    assert "The metric 'length' failed on pair 2 of 2" in (view.error or {})["message"]
    assert len(lab.rows(score_table, view.id)) == 2
    assert "no such summary" in (view.error or {})["message"]
    write_module(tmp_path, "value = float(len(predictions[0]))")
    control.retry(lab.database, lab.tenant, view.id)
    lab.work()
    mended = lab.view(view.id)
    assert (mended.state, mended.measures) == ("completed", ["length"])
    assert "(a:1;b:2)|value:f-measure|" in mended.signature
    assert mended.systems[0].scores["length"].fmeasure == pytest.approx(fmean([5, 5, 5, 3, 5]))


def write_module(directory: Path, body: str) -> None:
    """Write a metric module whose value this body computes."""
    path = directory / "metrics" / "length" / "length.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "import datasets\nimport evaluate\n\n\n"
        "class Length(evaluate.Metric):\n"
        "    signature = 'a:1|b:2'\n\n"
        "    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='',\n"
        "            features=datasets.Features({'predictions': text, 'references': text}))\n\n"
        "    def _compute(self, predictions, references):\n"
        f"        {body}\n"
        "        return {'length': value}\n"
    )

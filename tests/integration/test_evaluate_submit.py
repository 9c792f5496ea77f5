"""Evaluate jobs as they are accepted: what they wait for, what they reuse, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from gistmill import control
from gistmill.db.session import Database
from gistmill.db.tables import evaluation_systems, jobs, tenants
from gistmill.errors import DataMismatch, InvalidDataset, InvalidSpec, UnknownComparison, UnknownJob
from gistmill.readback import get_job
from gistmill.specs import parse_evaluate_spec
from gistmill.submit import submit_job, submit_rescore
from tests.support.evaluations import Lab, dialogues, echo, first_words
from tests.support.finetune import Model, submit_finetune
from tests.support.rows import add


@pytest.fixture
def lab(database: Database, tmp_path: Path) -> Lab:
    """A database with two models."""
    made = Lab(database, tmp_path)
    made.add("one", first_words)
    made.add("two", echo)
    return made


def kinds(lab: Lab) -> list[str]:
    with lab.database.read() as connection:
        return list(connection.execute(select(jobs.c.kind).order_by(jobs.c.key)).scalars())


def sources(lab: Lab, job_id: str) -> list[str | None]:
    """Return the ids of the jobs whose summaries are compared, the baseline's first."""
    query = select(jobs.c.id).join(evaluation_systems, evaluation_systems.c.summaries_key == jobs.c.key)
    with lab.database.read() as connection:
        mine = query.where(evaluation_systems.c.job_key == lab.key_of(job_id)).order_by(evaluation_systems.c.number)
        return list(connection.execute(mine).scalars())


def test_missing_summaries_are_submitted_and_waited_for_and_later_found_again(lab: Lab) -> None:
    data = lab.load(dialogues(4))
    first = lab.submit(data.id, "one", "two", baseline="two")
    assert kinds(lab) == ["summarize", "summarize", "evaluate"]
    assert get_job(lab.database, lab.tenant, first).state == "waiting"
    lab.work()
    assert (lab.view(first).state, lab.view(first).baseline, lab.generated) == ("completed", "two", 8)
    second = lab.submit(data.id, "one", "two")
    assert (kinds(lab)[3:], get_job(lab.database, lab.tenant, second).state) == (["evaluate"], "queued")
    assert sources(lab, second) == sources(lab, first)[::-1]


@pytest.mark.parametrize(
    ("changes", "generated"),
    [({}, 0), ({"select": "[0:4]"}, 0), ({"select": "[::2]"}, 0), ({"prompt": "none"}, 4), ({"max_input_tokens": 99}, 4)],
)
def test_summaries_are_made_again_only_when_something_decides_their_text(
    lab: Lab, changes: dict[str, Any], generated: int
) -> None:
    data = lab.load(dialogues(4))
    lab.evaluate(data.id, "one")
    before = lab.generated
    assert lab.evaluate(data.id, "one", **changes).state == "completed"
    with lab.database.read() as connection:
        made = (
            connection.execute(select(jobs.c.generated).where(jobs.c.kind == "summarize").order_by(jobs.c.key)).scalars().all()
        )
    assert sum(made[1:]) == generated
    assert (lab.generated == before) is (len(made) == 1)


@pytest.mark.parametrize(("column", "asked"), [("failed", {}), ("truncated", {}), ("failed", {"on_overflow": "truncate"})])
def test_job_that_lacks_a_summary_or_cut_a_prompt_is_not_reused_as_a_whole(
    lab: Lab, column: str, asked: dict[str, str]
) -> None:
    data = lab.load(dialogues(2))
    earlier = lab.summarize(data.id, "one", on_overflow="truncate")
    changed = update(jobs).where(jobs.c.id == earlier).values({column: 1})
    lab.database.transact(lambda connection: connection.execute(changed))
    assert earlier not in sources(lab, lab.submit(data.id, "one", **asked))
    if column == "truncated":
        assert sources(lab, lab.submit(data.id, "one", on_overflow="truncate")) == [earlier]


def test_two_names_for_one_recipe_are_one_job(lab: Lab) -> None:
    job_id = lab.submit(lab.load(dialogues(2)).id, "a=one", "b=one", "c=two")
    a, b, c = sources(lab, job_id)
    assert (a == b, a == c, kinds(lab)) == (True, False, ["summarize", "summarize", "evaluate"])


def test_summaries_of_a_named_job_are_taken_and_a_running_one_is_waited_for(lab: Lab) -> None:
    data = lab.load(dialogues(3))
    done = lab.summarize(data.id, "one", prompt="none")
    assert sources(lab, lab.submit(data.id, f"a=job:{done}")) == [done]
    other = lab.submit(data.id, "two")
    (making,) = sources(lab, other)
    waiting = lab.submit(data.id, f"mine=job:{making}")
    assert (sources(lab, waiting), get_job(lab.database, lab.tenant, waiting).state) == ([making], "waiting")
    lab.work()
    assert lab.view(waiting).state == "completed"


def test_model_of_a_training_that_has_not_ended_is_waited_for(lab: Lab) -> None:
    data = lab.load(dialogues(3))
    base = lab.add("base", echo)
    making = submit_finetune(lab.database, Model(base, "b" * 64), data.id, name="tuned")
    job_id = lab.submit(data.id, "one", f"tuned=job:{making}")
    (need,) = [name for name in sources(lab, job_id) if get_job(lab.database, lab.tenant, str(name)).state == "waiting"]
    assert sources(lab, job_id)[1] == need


def test_what_cannot_be_evaluated_is_refused_with_the_reason_and_writes_nothing(lab: Lab) -> None:
    bare = lab.load([{"dialogue": row["dialogue"]} for row in dialogues(3)], name="bare")
    data = lab.load(dialogues(4))
    half = lab.load([{**row, "summary": ""} if n > 1 else row for n, row in enumerate(dialogues(4))], name="half")
    done = lab.summarize(data.id, "one")
    scored = lab.submit(data.id, "one")
    lab.work()
    before = kinds(lab)
    for error, words, dataset, systems, fields in (
        (InvalidDataset, "None of the 3 rows of 'bare' has a reference", bare.id, ["one"], {}),
        (InvalidDataset, "None of the 2 rows of 'half'", half.id, ["one"], {"select": "[2:4]"}),
        (DataMismatch, f"The summaries of {done} are about 'data'", half.id, [f"a=job:{done}"], {}),
        (InvalidSpec, "is of kind evaluate and has no summaries", data.id, [f"a=job:{scored}"], {}),
        (InvalidSpec, "are made already", data.id, [{"name": "a", "model": f"job:{done}", "prompt": "none"}], {}),
        (UnknownJob, "no job 'job_nope'", data.id, ["job:job_nope"], {}),
        (InvalidSpec, "baseline 'three' is not among one, two", data.id, ["one", "two"], {"baseline": "three"}),
        (InvalidSpec, "'one' is there twice", data.id, ["one", "one"], {}),
        (InvalidSpec, "name either models, or predictions", data.id, [], {}),
        (InvalidSpec, "no name of a metric", data.id, ["one"], {"metrics": ["../rouge"]}),
        (InvalidSpec, "no name of a metric", data.id, ["one"], {"metrics": ["/etc/passwd"]}),
        (InvalidSpec, "a metric is named twice", data.id, ["one"], {"metrics": ["rouge", "rouge"]}),
    ):
        with pytest.raises(error, match=words):
            lab.submit(dataset, *systems, **fields)
    assert kinds(lab) == before


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_summaries_of_a_job_that_was_lost_are_refused_until_it_is_retried(lab: Lab, state: str) -> None:
    data = lab.load(dialogues(2))
    job_id = lab.summarize(data.id, "one")
    lab.database.transact(lambda connection: connection.execute(update(jobs).where(jobs.c.id == job_id).values(state=state)))
    with pytest.raises(InvalidSpec, match=f"{job_id} is {state}. Retry it first"):
        lab.submit(data.id, f"a=job:{job_id}")


def test_jobs_and_evaluations_of_another_tenant_do_not_exist(lab: Lab) -> None:
    data = lab.load(dialogues(2))
    theirs = lab.summarize(data.id, "one")
    evaluation = lab.submit(data.id, "one")
    other = lab.database.transact(lambda connection: add(connection, tenants, name="other"))
    own = lab.load(dialogues(2), tenant=other)
    with pytest.raises(UnknownJob):
        submit_job(lab.database, other, parse_evaluate_spec({"dataset": own.id, "models": [f"a=job:{theirs}"]}))
    with pytest.raises(UnknownComparison):
        submit_rescore(lab.database, other, [evaluation], {})


def test_predictions_have_the_columns_and_as_many_rows_as_the_data_beside_them(lab: Lab) -> None:
    rows = [{"gold": "Ann is in.", "a": "Ann", "b": "is"} for _ in range(3)]
    predictions = lab.load_predictions(rows, "a", "b")
    wanted = {"predictions": predictions.id, "columns": ["a", "b"]}
    with pytest.raises(InvalidDataset, match=r"'predictions' have 3 rows and the data 'data' has 4"):
        submit(lab, dataset=lab.load(dialogues(4)).id, **wanted)
    with pytest.raises(InvalidSpec, match=r"not uploaded with summaries in a column 'c'"):
        submit(lab, dataset=predictions.id, **wanted | {"columns": ["a", "c"]})
    bare = lab.load_predictions([{"a": "Ann", "b": str(n)} for n in range(3)], "a", "b", references=())
    with pytest.raises(InvalidDataset, match="--reference-column"):
        submit(lab, dataset=bare.id, predictions=bare.id, columns=["a", "b"])
    beside = lab.load(dialogues(3), name="beside")
    assert submit(lab, dataset=beside.id, predictions=bare.id, columns=["a", "b"])


def submit(lab: Lab, **fields: Any) -> str:
    return submit_job(lab.database, lab.tenant, parse_evaluate_spec(fields))[0]


def test_one_idempotency_key_makes_one_evaluation_and_one_set_of_jobs(lab: Lab) -> None:
    spec = parse_evaluate_spec({"dataset": lab.load(dialogues(2)).id, "models": ["one"]})
    first = submit_job(lab.database, lab.tenant, spec, idempotency_key="k")
    assert submit_job(lab.database, lab.tenant, spec, idempotency_key="k") == (first[0], False)
    assert kinds(lab) == ["summarize", "evaluate"]


def test_rescoring_takes_the_same_summaries_and_refuses_other_data_or_rows(lab: Lab) -> None:
    data = lab.load(dialogues(4))
    changed = lab.load([{**row, "summary": f"{row['summary']} Yes."} for row in dialogues(4)], name="changed")
    first = lab.submit(data.id, "one", "two", baseline="two")
    second = lab.submit(data.id, "third=one", prompt="none")
    other, part = lab.submit(changed.id, "x=one"), lab.submit(data.id, "x=one", select="[0:2]")
    before = kinds(lab).count("summarize")
    new, _ = submit_rescore(lab.database, lab.tenant, [first, second], {"stemming": False})
    assert sources(lab, new) == [*sources(lab, first), *sources(lab, second)]
    assert (lab.view(new).baseline, kinds(lab).count("summarize")) == ("two", before)
    for error, words, ids, changes in (
        (DataMismatch, "'data' .digest .* about 'changed'", [first, other], {}),
        (DataMismatch, "takes the rows all and .* the rows .0:2.", [first, part], {}),
        (UnknownComparison, "no evaluation 'job_nope'", ["job_nope"], {}),
        (InvalidSpec, "'models' cannot be changed", [first], {"models": ["one"]}),
        (InvalidSpec, "the baseline 'none' is not among", [first], {"baseline": "none"}),
    ):
        with pytest.raises(error, match=words):
            submit_rescore(lab.database, lab.tenant, ids, changes)
    named = lab.submit(data.id, "one", prompt="none")
    with pytest.raises(InvalidSpec, match="call different summaries 'one'"):
        submit_rescore(lab.database, lab.tenant, [first, named], {})


def test_evaluation_fails_with_a_job_that_it_needs_and_goes_on_when_that_is_retried(lab: Lab) -> None:
    job_id = lab.submit(lab.load(dialogues(2)).id, "one", "two")
    need = str(sources(lab, job_id)[0])
    control.cancel(lab.database, lab.tenant, need)
    view = lab.view(job_id)
    assert (view.state, (view.error or {})["code"]) == ("failed", "dependency_failed")
    assert need in (view.error or {})["message"]
    control.retry(lab.database, lab.tenant, need)
    lab.work()
    assert (lab.view(job_id).state, lab.view(job_id).counts) == ("completed", {"scored": 2})

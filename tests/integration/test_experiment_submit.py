"""An experiment as it is submitted: one transaction for the whole graph, or nothing at all."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, func, select

from gistmill.db import experiments
from gistmill.db.session import Database
from gistmill.db.tables import experiment_steps, job_dependencies, jobs, prompts
from gistmill.errors import (
    GistmillError,
    IdempotencyMismatch,
    InvalidDataset,
    InvalidSelection,
    InvalidSpec,
    UnknownDataset,
    UnknownModel,
    UnsupportedModel,
)
from gistmill.specs import parse_experiment_spec
from gistmill.submit import submit_job
from tests.support.finetune import Model, add_model, load_pairs
from tests.support.jobs import first_tenant

ROWS = 40
PAIRS = [(f"dialogue number {number}", f"summary {number}") for number in range(ROWS)]


@pytest.fixture
def data(database: Database, tmp_path: Path) -> str:
    """A dataset of 40 rows with references, and a base model."""
    add_model(database)
    return load_pairs(database, tmp_path, PAIRS).id


def submit(database: Database, data: str, *, key: str | None = None, resolved: Model | None = None, **fields: Any) -> int:
    """Submit an experiment; return its key."""
    spec = parse_experiment_spec({"dataset": data, "model": "tiny", **fields})
    resolve = None if resolved is None else lambda reference: resolved
    job_id, _ = submit_job(database, first_tenant(database), spec, idempotency_key=key, resolve_model=resolve)
    with database.read() as connection:
        return int(connection.execute(select(jobs.c.key).where(jobs.c.id == job_id)).scalar_one())


def steps_of(database: Database, job: int) -> dict[str, Any]:
    """Return the steps by name."""
    with database.read() as connection:
        return {step.step_name: step for step in experiments.list_steps(connection, job)}


def row_of(database: Database, job: int) -> Any:
    """Return the job's row."""
    with database.read() as connection:
        return connection.execute(select(jobs).where(jobs.c.key == job)).one()


def needs_of(database: Database, job: int) -> set[int]:
    """Return the keys of the jobs that this one needs."""
    with database.read() as connection:
        query = select(job_dependencies.c.needs_key).where(job_dependencies.c.job_key == job)
        return set(connection.execute(query).scalars())


def count(database: Database, table: Table) -> int:
    """Count the rows of a table."""
    with database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)


def test_experiment_is_one_graph_of_named_steps_in_the_order_of_the_notebook(database: Database, data: str) -> None:
    experiment = submit(database, data, sample=5, sweep={"greedy": {}, "beams": {"num_beams": 4}})
    assert list(steps_of(database, experiment)) == [
        "prompt: none",
        "prompt: instruction",
        "prompt: one-shot",
        "prompt: few-shot",
        "comparison of the prompts",
        "generation: beams",
        "comparison of the generation parameters",
        "full tuning",
        "LoRA tuning",
        "model: original",
        "model: full",
        "model: lora",
        "comparison of the models",
    ]
    row = row_of(database, experiment)
    assert (row.kind, row.state, row.chunks, row._mapping["items"]) == ("experiment", "waiting", 0, 0)
    assert count(database, jobs) == 14


def test_job_that_two_evaluations_need_is_written_once(database: Database, data: str) -> None:
    steps = steps_of(database, submit(database, data, sweep={"greedy": {}, "beams": {"num_beams": 4}}))
    shared = steps["prompt: instruction"].key
    for name in ("comparison of the prompts", "comparison of the generation parameters"):
        assert shared in needs_of(database, steps[name].key)


def test_summaries_of_tuned_models_wait_for_their_trainings(database: Database, data: str) -> None:
    experiment = submit(database, data, sample=5)
    steps = steps_of(database, experiment)
    for name, tuning in (("model: full", "full tuning"), ("model: lora", "LoRA tuning")):
        made, maker = steps[name], steps[tuning]
        assert (made.state, made.model_job_key, made.spec["model"]) == ("waiting", maker.key, f"job:{maker.id}")
        assert needs_of(database, made.key) == {maker.key}
    assert steps["model: original"].state == "queued"
    names = ("comparison of the prompts", "comparison of the generation parameters", "comparison of the models")
    assert needs_of(database, experiment) >= {steps[name].key for name in names}


def test_last_tenth_is_kept_to_test_on_and_never_trained_on(database: Database, data: str) -> None:
    steps = steps_of(database, submit(database, data, sample=5))
    assert steps["full tuning"].spec["select"] == steps["LoRA tuning"].spec["select"] == "[0:30]"
    assert (steps["model: lora"].row_start, steps["model: lora"].row_stop) == (30, 40)
    assert (steps["prompt: few-shot"].row_start, steps["prompt: few-shot"].row_stop) == (30, 35)


def test_selection_is_split_and_shots_come_from_its_training_rows(database: Database, data: str) -> None:
    experiment = submit(database, data, select="[1::2]", few_shot="[5,9]")
    steps = steps_of(database, experiment)
    assert steps["full tuning"].spec["select"] == "[1:21:2]"
    assert steps["model: full"].spec["select"] == "[21:41:2]"
    with database.read() as connection:
        shown = {row.name: [example["row"] for example in row.examples] for row in connection.execute(select(prompts))}
    assert shown == {"notebook-one-shot": [1], "notebook-few-shot": [5, 9]}
    assert row_of(database, experiment).spec["select"] == "[1:21:2]"


def test_test_data_of_its_own_is_tested_on(database: Database, data: str, tmp_path: Path) -> None:
    other = load_pairs(database, tmp_path, [(f"other {number}", "s") for number in range(3)], name="other")
    steps = steps_of(database, submit(database, data, test="other"))
    assert steps["full tuning"].spec["select"] is None
    assert steps["model: full"].spec["dataset"] == other.id
    assert steps["model: full"].spec["select"] is None
    # A sample of everything asks for the same summaries.
    assert steps["prompt: instruction"].spec["select"] is None


def test_overrides_reach_their_training_only(database: Database, data: str) -> None:
    steps = steps_of(database, submit(database, data, full={"max_steps": 2}, lora={"rank": 4, "name": "mine"}))
    assert (steps["full tuning"].spec["max_steps"], steps["LoRA tuning"].spec["max_steps"]) == (2, None)
    assert (steps["LoRA tuning"].spec["rank"], steps["LoRA tuning"].spec["name"]) == (4, "mine")


def test_same_key_is_the_same_experiment_and_another_body_is_refused(database: Database, data: str) -> None:
    first = submit(database, data, key="k")
    written = Counter({table.name: count(database, table) for table in (jobs, prompts, experiment_steps)})
    assert submit(database, data, key="k") == first
    with pytest.raises(IdempotencyMismatch):
        submit(database, data, key="k", sample=5)
    assert Counter({table.name: count(database, table) for table in (jobs, prompts, experiment_steps)}) == written


def test_requests_with_one_key_at_once_make_one_experiment(database: Database, data: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        keys = set(pool.map(lambda _: submit(database, data, key="k", sweep={}, sample=5), range(4)))
    (experiment,) = keys
    assert count(database, jobs) == len(steps_of(database, experiment)) + 1
    assert count(database, prompts) == 2


def test_second_experiment_takes_the_prompts_of_the_first(database: Database, data: str) -> None:
    submit(database, data)
    submit(database, data)
    assert count(database, prompts) == 2


WRONG: list[tuple[dict[str, Any], type[GistmillError], str]] = [
    ({"dataset": "nowhere"}, UnknownDataset, "nowhere"),
    ({"model": "nothing"}, UnknownModel, "nothing"),
    ({"select": "[0:15]"}, InvalidDataset, "15 rows"),
    ({"sample": 11}, InvalidSpec, "takes 11 rows, and the test part has 10"),
    ({"one_shot": "[35]"}, InvalidSelection, "row 35 is not among them"),
    ({"one_shot": "[1,2]"}, InvalidSelection, "one-shot shows one row"),
    ({"test": "pairs"}, InvalidSpec, "40 rows of 'pairs'"),
    ({"test": "copies"}, InvalidDataset, "All 2 dialogues"),
    ({"dataset": "bare"}, InvalidDataset, "None of the 20 training rows"),
    ({"test": "bare"}, InvalidDataset, "None of the"),
    ({"lora": {"name": "tiny"}}, GistmillError, "There is a model 'tiny'"),
]


@pytest.mark.parametrize(("fields", "error", "message"), WRONG)
def test_nothing_is_written_when_something_is_wrong(
    database: Database, data: str, tmp_path: Path, fields: dict[str, Any], error: type[GistmillError], message: str
) -> None:
    load_pairs(database, tmp_path, PAIRS[:2], name="copies")
    load_pairs(database, tmp_path, [(f"bare {number}", None) for number in range(30)], name="bare")
    with pytest.raises(error, match=message):
        submit(database, data, **fields)
    assert [count(database, table) for table in (jobs, prompts, experiment_steps)] == [0, 0, 0]


def test_adapter_is_no_base(database: Database, data: str) -> None:
    adapter = add_model(database, "lora", digest="c" * 64, kind="adapter")
    with pytest.raises(UnsupportedModel):
        submit(database, data, resolved=Model(adapter.key, adapter.digest, "c" * 64))
    assert count(database, jobs) == 0


def test_dialogues_on_both_sides_are_counted(database: Database, tmp_path: Path) -> None:
    add_model(database)
    data = load_pairs(database, tmp_path, [("bare", None), *PAIRS, ("dialogue number 0", "again")])
    overlap, bare = row_of(database, submit(database, data.id)).warnings
    assert overlap.startswith("1 of 10 dialogues of the test part are also trained on")
    assert bare == "1 of 32 rows have no reference and are left out."

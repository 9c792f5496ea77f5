"""A request becomes one job with chunks that hold each selected dialogue once, or nothing at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, update

from gistmill.db import speed
from gistmill.db.check import check
from gistmill.db.claim import Claim
from gistmill.db.pending import load_pending
from gistmill.db.session import Database
from gistmill.db.speed import Measurement, Work
from gistmill.db.tables import chunks, datasets, job_rows, jobs, models, recipes
from gistmill.errors import (
    DatasetLoading,
    GistmillError,
    IdempotencyMismatch,
    InvalidInput,
    InvalidSelection,
    InvalidSpec,
    UnknownDataset,
    UnknownModel,
    UnknownPrompt,
)
from gistmill.specs import GenerationParameters, SummarizeSpec
from gistmill.submit import submit_job
from tests.support.jobs import chunk_rows_of, first_tenant, make_dataset, make_worker, take
from tests.support.rows import add

MODEL_DIGEST = "b" * 64


@dataclass(frozen=True)
class Model:
    """A model version as the resolver gives it."""

    key: int
    digest: str


@pytest.fixture
def resolve(database: Database) -> Callable[[str], Model]:
    """Know one model, called tiny."""
    values: dict[str, Any] = {
        "tenant_key": first_tenant(database), "name": "tiny", "version": 1, "digest": MODEL_DIGEST, "manifest": {},
        "weight_bytes": 1, "source": "test", "created_at": 0.0,
    }  # fmt: skip
    key = database.transact(lambda connection: add(connection, models, **values))

    def resolve_model(reference: str) -> Model:
        if reference != "tiny":
            raise UnknownModel(f"There is no model '{reference}'.")
        return Model(key, MODEL_DIGEST)

    return resolve_model


def spec_of(**values: Any) -> SummarizeSpec:
    return SummarizeSpec.model_validate({"dataset": "test", "model": "tiny"} | values)


def test_model_that_no_engine_runs_in_int8_is_refused(database: Database) -> None:
    make_dataset(database, ["a"])
    tenant = first_tenant(database)
    for kind in ("t5", "bart"):
        values: dict[str, Any] = {
            "tenant_key": tenant, "name": kind, "version": 1, "digest": MODEL_DIGEST, "manifest": {"model_type": kind},
            "weight_bytes": 1, "source": "test", "created_at": 0.0,
        }  # fmt: skip
        database.transact(lambda connection, values=values: add(connection, models, **values))  # type: ignore[misc]

    submit_job(database, tenant, spec_of(model="t5", precision="int8"))
    submit_job(database, tenant, spec_of(model="bart"))

    with pytest.raises(InvalidSpec, match=r"/precision: int8 is offered for T5 models only, and bart is a bart model"):
        submit_job(database, tenant, spec_of(model="bart", precision="int8"))


def job_of(database: Database, job_id: str) -> Any:
    with database.read() as connection:
        return connection.execute(select(jobs).where(jobs.c.id == job_id)).one()


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def claim_all(database: Database) -> list[int]:
    """Claim every chunk and return the rows of their items, sorted."""
    worker = make_worker(database, "worker")
    rows: list[int] = []
    while (claimed := take(database, worker)) is not None:
        rows += pending_rows(database, claimed)
    return sorted(rows)


def pending_rows(database: Database, claimed: Claim) -> list[int]:
    with database.read() as connection:
        units = load_pending(connection, claimed, limit=10_000, is_sampling=False)
    assert len(units) == claimed.dialogues
    return [row for unit in units for row in unit.rows]


def test_a_job_without_selection_takes_every_row_once(database: Database, resolve: Callable[[str], Model]) -> None:
    make_dataset(database, [f"dialogue {number % 100}" for number in range(150)])
    rung: list[str] = []

    job_id, is_new = submit_job(
        database, first_tenant(database), spec_of(labels={"team": "a"}), resolve_model=resolve, ring=rung.append
    )

    job = job_of(database, job_id)
    assert (is_new, rung) == (True, ["summarize"])
    assert (job.state, job.items, job.distinct_dialogues, job.chunks, job.chunks_left) == ("queued", 150, 100, 4, 4)
    assert (job.row_start, job.row_stop, job.row_step, job.labels) == (0, 150, 1, {"team": "a"})
    assert (job.model_digest, job.spec["prompt"], job.claimed_at is not None) == (MODEL_DIGEST, "instruction", True)
    ranges = [(chunk.ordinal, chunk.first_rank, chunk.last_rank, chunk.dialogues) for chunk in chunk_rows_of(database, job.key)]
    assert ranges == [(0, 0, 24, 25), (1, 25, 49, 25), (2, 50, 74, 25), (3, 75, 99, 25)]
    assert claim_all(database) == list(range(150))
    assert check(database) == []


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("[::100]", list(range(0, 300, 100))),
        ("[0:10]", list(range(10))),
        ("[7:290:3]", list(range(7, 290, 3))),
        ("[10,20,30]", [10, 20, 30]),
        ("[299]", [299]),
        ("[:]", list(range(300))),
    ],
)
def test_a_selection_takes_exactly_its_rows(
    database: Database, resolve: Callable[[str], Model], selection: str, expected: list[int]
) -> None:
    texts = [f"{'x' * (number % 7)} dialogue {number % 120}" for number in range(300)]
    make_dataset(database, texts)

    job_id, _ = submit_job(database, first_tenant(database), spec_of(select=selection), resolve_model=resolve)

    job = job_of(database, job_id)
    assert job.items == len(expected)
    assert job.distinct_dialogues == len({texts[row] for row in expected})
    assert claim_all(database) == expected
    assert check(database) == []


def test_a_listed_selection_is_frozen_row_by_row(database: Database, resolve: Callable[[str], Model]) -> None:
    make_dataset(database, [f"dialogue {number}" for number in range(50)])

    job_id, _ = submit_job(database, first_tenant(database), spec_of(select="[40,2,30]"), resolve_model=resolve)

    assert job_of(database, job_id).row_step == 0
    with database.read() as connection:
        assert sorted(connection.execute(select(job_rows.c.row_number)).scalars()) == [2, 30, 40]


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"dataset": "tset"}, UnknownDataset, "Did you mean 'test'"),
        ({"dataset": "ds_00"}, UnknownDataset, "ds_00"),
        ({"model": "tinny"}, UnknownModel, "tinny"),
        ({"prompt": "instructions"}, UnknownPrompt, "instruction"),
        ({"select": "[2:2]"}, InvalidSelection, "2"),
        ({"select": "[3]"}, InvalidSelection, "3"),
        ({"select": "[1,1]"}, InvalidSelection, "1"),
        ({"select": "the first ten"}, InvalidSelection, "the first ten"),
    ],
)
def test_a_request_that_cannot_run_writes_nothing_and_rings_nothing(
    database: Database,
    resolve: Callable[[str], Model],
    values: dict[str, Any],
    error: type[GistmillError],
    words: str,
) -> None:
    make_dataset(database, ["a", "b", "c"])
    rung: list[str] = []

    with pytest.raises(error, match=words):
        submit_job(database, first_tenant(database), spec_of(**values), resolve_model=resolve, ring=rung.append)

    assert rung == []
    assert [count(database, table) for table in (jobs, chunks, job_rows, recipes)] == [0, 0, 0, 0]


def test_a_dataset_that_is_loading_asks_to_try_again(database: Database, resolve: Callable[[str], Model]) -> None:
    make_dataset(database, ["a"])
    database.transact(lambda connection: connection.execute(update(datasets).values(state="loading")))

    with pytest.raises(DatasetLoading) as caught:
        submit_job(database, first_tenant(database), spec_of(), resolve_model=resolve)

    assert caught.value.retryable


def test_a_name_means_its_newest_dataset_and_an_id_exactly_one(database: Database, resolve: Callable[[str], Model]) -> None:
    older = make_dataset(database, ["a"])
    newer = make_dataset(database, ["a", "b"])
    with database.read() as connection:
        older_id = connection.execute(select(datasets.c.id).where(datasets.c.key == older)).scalar_one()

    by_name, _ = submit_job(database, first_tenant(database), spec_of(), resolve_model=resolve)
    by_id, _ = submit_job(database, first_tenant(database), spec_of(dataset=older_id), resolve_model=resolve)

    assert job_of(database, by_name).dataset_key == newer
    assert job_of(database, by_id).dataset_key == older


def test_equal_recipes_are_one(database: Database, resolve: Callable[[str], Model]) -> None:
    make_dataset(database, ["a", "b"])
    tenant = first_tenant(database)

    first, _ = submit_job(database, tenant, spec_of(priority=1), resolve_model=resolve)
    second, _ = submit_job(database, tenant, spec_of(select="[0:1]"), resolve_model=resolve)
    third, _ = submit_job(database, tenant, spec_of(generation={"num_beams": 2}), resolve_model=resolve)

    keys = [job_of(database, job_id).recipe_key for job_id in (first, second, third)]
    assert keys[0] == keys[1] != keys[2]


def test_a_key_that_comes_again_brings_the_first_job_and_rings_again(
    database: Database, resolve: Callable[[str], Model]
) -> None:
    make_dataset(database, ["a", "b"])
    rung: list[str] = []

    def submit() -> tuple[str, bool]:
        return submit_job(
            database, first_tenant(database), spec_of(), idempotency_key="k", resolve_model=resolve, ring=rung.append
        )

    first, second = submit(), submit()

    assert first[0] == second[0]
    assert (first[1], second[1], rung) == (True, False, ["summarize", "summarize"])
    assert count(database, jobs) == 1


def test_a_key_with_another_body_is_refused(database: Database, resolve: Callable[[str], Model]) -> None:
    make_dataset(database, ["a", "b"])
    tenant = first_tenant(database)
    submit_job(database, tenant, spec_of(), idempotency_key="k", resolve_model=resolve)

    with pytest.raises(IdempotencyMismatch, match="'k'"):
        submit_job(database, tenant, spec_of(priority=1), idempotency_key="k", resolve_model=resolve)

    assert count(database, jobs) == 1


@pytest.mark.parametrize("key", ["", "k" * 201])
def test_a_key_has_a_sensible_length(database: Database, resolve: Callable[[str], Model], key: str) -> None:
    with pytest.raises(InvalidInput, match="Idempotency-Key"):
        submit_job(database, first_tenant(database), spec_of(), idempotency_key=key, resolve_model=resolve)


def test_fifty_requests_with_one_key_make_one_job(database: Database, resolve: Callable[[str], Model]) -> None:
    make_dataset(database, [f"dialogue {number}" for number in range(40)])
    tenant = first_tenant(database)
    # All have looked for an earlier job before the first one writes.
    all_are_in = threading.Barrier(50, timeout=60)
    answers: list[tuple[str, bool]] = []

    def resolve_together(reference: str) -> Model:
        all_are_in.wait()
        return resolve(reference)

    def run() -> None:
        answers.append(submit_job(database, tenant, spec_of(), idempotency_key="k", resolve_model=resolve_together))

    threads = [threading.Thread(target=run) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(answers) == 50
    assert len({job_id for job_id, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1
    assert (count(database, jobs), count(database, chunks)) == (1, job_of(database, answers[0][0]).chunks)


def test_chunks_follow_the_measured_speed(database: Database, resolve: Callable[[str], Model]) -> None:
    make_dataset(database, [f"dialogue {number}" for number in range(1000)])
    tenant = first_tenant(database)
    slow = note_speed(MODEL_DIGEST, dialogues_per_s=1.0)

    def size_of(**fields: Any) -> int:
        job_id, _ = submit_job(database, tenant, spec_of(**fields), resolve_model=resolve)
        return int(chunk_rows_of(database, job_of(database, job_id).key)[0].dialogues)

    assert size_of() == 250
    database.transact(slow)
    assert size_of() == 31
    # Nobody has measured beams yet.
    assert size_of(generation={"num_beams": 2}) == 250
    assert size_of(precision="float32") == 250


def test_speed_of_live_workers_counts_more_than_that_of_workers_that_left(
    database: Database, resolve: Callable[[str], Model]
) -> None:
    make_dataset(database, [f"dialogue {number}" for number in range(1000)])
    database.transact(note_speed(MODEL_DIGEST, dialogues_per_s=1.0, device_name="cpu"))
    database.transact(note_speed(MODEL_DIGEST, dialogues_per_s=3.0, device_name="left"))
    make_worker(database, "alive")
    make_worker(database, "scoring", kinds=("evaluate",))

    job_id, _ = submit_job(database, first_tenant(database), spec_of(), resolve_model=resolve)

    assert chunk_rows_of(database, job_of(database, job_id).key)[0].dialogues == 31


def note_speed(model_digest: str, *, dialogues_per_s: float, device_name: str = "CPU") -> Callable[[Connection], None]:
    """Return what notes that a worker is so fast with the default parameters."""
    work = Work.of(model_digest, "native", GenerationParameters())
    took = Measurement(work, model_digest, "fake", device_name, "none", 100, 1000, 100, 100 / dialogues_per_s)
    return lambda connection: speed.record(connection, took)

"""A finetune request becomes one job with one chunk, or a clear error and nothing at all."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from gistmill.control import Missing, cancel, retry
from gistmill.db import chunks as chunk_rows
from gistmill.db import crashes
from gistmill.db.check import check
from gistmill.db.chunks import Budgets
from gistmill.db.session import Database
from gistmill.db.tables import chunks, jobs, training_metrics
from gistmill.db.training import Point, record
from gistmill.errors import GistmillError, InvalidDataset, InvalidSpec, LeaseLost, NameTaken, NothingToRetry, UnsupportedModel
from gistmill.readback import get_job, iterate_metrics, read_metrics
from tests.support.finetune import Model, add_model, load_pairs, submit_finetune
from tests.support.jobs import expire_leases, first_tenant, make_worker, take

PAIRS = [(f"Ann: hello {number}", f"Ann says hello {number}.") for number in range(20)]
NOW = Budgets(max_failures=3, max_crashes=3, retry_base_s=1e-6)


@pytest.fixture
def base(database: Database) -> Model:
    """A whole model."""
    return add_model(database)


@pytest.fixture
def data(database: Database, tmp_path: Path) -> str:
    """The id of a dataset whose rows have references."""
    return load_pairs(database, tmp_path, PAIRS).id


def row_of(database: Database, job_id: str) -> Any:
    with database.read() as connection:
        return connection.execute(select(jobs).where(jobs.c.id == job_id)).one()


def claimed(database: Database) -> Any:
    found = take(database, make_worker(database, uuid.uuid4().hex, kinds=("finetune",)))
    assert found is not None
    return found


def test_job_has_one_chunk_no_items_and_the_name_of_its_model(database: Database, base: Model, data: str) -> None:
    job_id = submit_finetune(database, base, data, method="full")
    job = row_of(database, job_id)
    assert (job.kind, job.chunks, job._mapping["items"], job.spec["name"]) == ("finetune", 1, 0, "tiny-full")
    assert check(database) == []
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(chunks)) == 1


def test_worker_of_another_kind_does_not_get_it(database: Database, base: Model, data: str) -> None:
    submit_finetune(database, base, data)
    assert take(database, make_worker(database, "writer", kinds=("summarize",))) is None
    assert claimed(database).model_key == base.key


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"name": "other"}, NameTaken, "no job has made"),
        ({"name": "a..b"}, InvalidSpec, "'..'"),
        ({"rank": 0}, InvalidSpec, "/rank"),
        ({"method": "full", "rank": 8}, InvalidSpec, "only with method lora"),
        ({"early_stop": "rouge_l"}, InvalidSpec, "validation"),
        ({"early_stop": "accuracy", "validation": 0.1}, InvalidSpec, "rouge_lsum"),
        ({"batch_size": 0}, InvalidSpec, "1 to 65,536"),
        ({"learning_rate": 0}, InvalidSpec, "/learning_rate"),
    ],
)
def test_bad_requests_are_refused_and_write_nothing(
    database: Database, base: Model, data: str, fields: dict[str, Any], error: type[GistmillError], words: str
) -> None:
    add_model(database, "other", digest="c" * 64)
    with pytest.raises(error, match=words):
        submit_finetune(database, base, data, **fields)
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(jobs)) == 0


def test_data_without_references_is_refused(database: Database, base: Model, tmp_path: Path) -> None:
    bare = load_pairs(database, tmp_path, [("Ann: hi", None), ("Bob: ho", None)], name="bare")
    with pytest.raises(InvalidDataset, match=r"None of the 2 rows of .* has a reference"):
        submit_finetune(database, base, bare.id)


def test_adapter_cannot_be_a_base(database: Database, base: Model, data: str) -> None:
    adapter = Model(base.key, base.digest, adapter_digest="d" * 64)
    with pytest.raises(UnsupportedModel, match="is an adapter on another model"):
        submit_finetune(database, adapter, data)


def test_rows_without_references_and_a_small_batch_are_warned_of(database: Database, base: Model, tmp_path: Path) -> None:
    mixed = load_pairs(database, tmp_path, [*PAIRS[:3], ("Cy: no summary", None)], name="mixed")
    warnings = row_of(database, submit_finetune(database, base, mixed.id, batch_size=8)).warnings
    assert [warning.split(" ")[0] for warning in warnings] == ["1", "The"]


def test_validation_data_that_is_trained_on_is_counted_by_digest(database: Database, base: Model, tmp_path: Path) -> None:
    training = load_pairs(database, tmp_path, PAIRS)
    overlapping = load_pairs(database, tmp_path, [*PAIRS[:3], ("Zed: new", "Zed.")], name="overlapping")
    job = row_of(database, submit_finetune(database, base, training.id, validation=overlapping.id))
    assert job.warnings == ["3 dialogues of the validation data 'overlapping' are also trained on: its scores will flatter."]
    assert job.spec["validation"] == overlapping.id
    clean = row_of(database, submit_finetune(database, base, training.id, validation=overlapping.id, select="[5:]"))
    assert clean.warnings == []


def test_points_are_written_once_and_only_under_the_lease(database: Database, base: Model, data: str) -> None:
    job_id = submit_finetune(database, base, data)
    claim = claimed(database)
    first = [Point("train", step, step / 10, loss=1.0 / step) for step in (1, 2)]
    again = [Point("train", step, step / 10, loss=9.0) for step in (2, 3)]
    state = {"step": 3, "total_steps": 10}
    for points in (first, [*again, Point("eval", 2, 0.2, loss=0.4, rouge1=0.5)]):
        database.transact(lambda connection, points=points: record(connection, claim, points, training=state, is_saved=False))
    curve = list(iterate_metrics(database, first_tenant(database), job_id))
    assert [(point.kind, point.step, point.loss) for point in curve] == [
        ("train", 1, 1.0), ("eval", 2, 0.4), ("train", 2, 0.5), ("train", 3, 9.0)
    ]  # fmt: skip
    assert get_job(database, first_tenant(database), job_id).training == state
    behind = read_metrics(database, first_tenant(database), job_id, after=curve[1].cursor, limit=1)
    assert [point.step for point in behind] == [2]
    expire_leases(database)
    database.transact(lambda connection: crashes.reap(connection, NOW))
    with pytest.raises(LeaseLost):
        database.transact(lambda connection: record(connection, claim, again, training=None, is_saved=False))


def test_chunk_that_fails_three_times_fails_the_job_and_a_retry_runs_it_again(
    database: Database, base: Model, data: str
) -> None:
    job_id = submit_finetune(database, base, data)
    for _ in range(3):
        with database.write() as connection:
            connection.execute(update(chunks).values(run_at=0.0))
        claim = claimed(database)
        database.transact(lambda connection, claim=claim: chunk_rows.fail(connection, claim, GistmillError("broken"), NOW))
    job = row_of(database, job_id)
    assert (job.state, job.error["code"], job.chunks_left) == ("failed", "chunk_failed", 0)
    assert "broken" in job.error["message"]
    assert retry(database, first_tenant(database), job_id, Missing()) == 0
    assert (row_of(database, job_id).state, claimed(database).failures) == ("queued", 0) or row_of(
        database, job_id
    ).attempt == 2
    assert check(database) == []


@pytest.mark.parametrize("is_saved", [True, False])
def test_crash_counts_only_without_a_checkpoint(database: Database, base: Model, data: str, is_saved: bool) -> None:
    job_id = submit_finetune(database, base, data)
    for _ in range(3):
        with database.write() as connection:
            connection.execute(update(chunks).values(run_at=0.0))
        claim = claimed(database)
        database.transact(lambda connection, claim=claim: record(connection, claim, [], training=None, is_saved=is_saved))
        expire_leases(database)
        database.transact(lambda connection: crashes.reap(connection, NOW))
    assert row_of(database, job_id).state == ("running" if is_saved else "failed")
    if not is_saved:
        assert row_of(database, job_id).error["code"] == "worker_crashed"


def test_completed_training_is_not_run_again_and_a_cancelled_one_is(database: Database, base: Model, data: str) -> None:
    done, stopped = submit_finetune(database, base, data), submit_finetune(database, base, data, seed=1)
    claim = claimed(database)
    database.transact(lambda connection: chunk_rows.finish(connection, claim))
    assert row_of(database, done).state == "completed"
    with pytest.raises(NothingToRetry):
        retry(database, first_tenant(database), done, Missing())
    cancel(database, first_tenant(database), stopped)
    assert row_of(database, stopped).state == "cancelled"
    retry(database, first_tenant(database), stopped, Missing())
    assert claimed(database).job_id == stopped


def test_cursor_that_cannot_be_read_is_an_error(database: Database, base: Model, data: str) -> None:
    job_id = submit_finetune(database, base, data)
    with pytest.raises(GistmillError, match="is not a cursor"):
        read_metrics(database, first_tenant(database), job_id, after="m:x:train")
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(training_metrics)) == 0

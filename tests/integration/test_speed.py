"""Measured speeds: written with the end of a chunk, and read for the size of the next job's chunks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import event, func, select, text

from gistmill.db import chunks as chunk_rows
from gistmill.db import speed
from gistmill.db.session import Database
from gistmill.db.speed import KEPT, Measurement, Work
from gistmill.db.tables import chunks, measured_speeds, models
from gistmill.errors import LeaseLost
from gistmill.specs import GenerationParameters
from tests.support.bench import TEXTS, Bench, work_until_completed
from tests.support.jobs import MODEL_DIGEST, expire_leases, first_tenant, job_row, make_job, make_worker, take, tick

WORK = Work.of(MODEL_DIGEST, "native", GenerationParameters())
TOOK = Measurement(
    work=WORK,
    version_digest=MODEL_DIGEST,
    engine="fake",
    device_name="CPU",
    dtype="none",
    dialogues=10,
    tokens_in=1000,
    tokens_out=200,
    seconds=4.0,
    load_s=2.0,
    warmup_s=0.5,
)


def note(database: Database, *measurements: Measurement) -> None:
    """Write these measurements, each at a later moment than the one before."""
    for measurement in measurements:
        database.transact(lambda connection, made=measurement: speed.record(connection, made))
        tick(database)


def found(database: Database, work: Work = WORK) -> list[speed.Speed]:
    """Return what is known of this work."""
    with database.read() as connection:
        return speed.find(connection, work)


def test_speed_is_dialogues_and_tokens_over_the_seconds_in_the_engine(database: Database) -> None:
    note(database, TOOK)
    (one,) = found(database)
    assert (one.dialogues_per_s, one.tokens_per_s, one.tokens_out_per_dialogue) == (2.5, 300.0, 20.0)
    assert (one.engine, one.device_name, one.load_s, one.warmup_s) == ("fake", "CPU", 2.0, 0.5)


def test_older_chunks_count_less_and_a_warm_chunk_keeps_the_last_load(database: Database) -> None:
    note(database, TOOK, replace(TOOK, dialogues=40, seconds=8.0, load_s=None, warmup_s=None))
    (one,) = found(database)
    assert one.dialogues_per_s == pytest.approx((10 * KEPT + 40) / (4.0 * KEPT + 8.0))
    assert (one.load_s, one.warmup_s) == (2.0, 0.5)


def test_other_parameters_models_and_precisions_are_other_work(database: Database) -> None:
    note(database, TOOK)
    for other in (
        Work.of(MODEL_DIGEST, "native", GenerationParameters(max_new_tokens=40)),
        Work.of(MODEL_DIGEST, "native", GenerationParameters(num_beams=4)),
        Work.of(MODEL_DIGEST, "native", GenerationParameters(do_sample=True)),
        Work.of(MODEL_DIGEST, "float32", GenerationParameters()),
        Work.of("c" * 64, "native", GenerationParameters()),
    ):
        assert found(database, other) == []


def test_each_device_has_the_engine_that_ran_last(database: Database) -> None:
    note(database, TOOK, replace(TOOK, engine="other"), replace(TOOK, device_name="GPU"))
    assert [(one.device_name, one.engine) for one in found(database)] == [("GPU", "fake"), ("CPU", "other")]


def test_load_without_a_measured_micro_batch_is_no_speed(database: Database) -> None:
    note(database, replace(TOOK, dialogues=0, tokens_in=0, tokens_out=0, seconds=0.0))
    assert found(database) == []


def test_worker_measures_its_chunks_with_one_statement_each(bench: Bench) -> None:
    seen: list[str] = []
    event.listen(
        bench.database.engine, "before_cursor_execute", lambda _connection, _cursor, statement, *_rest: seen.append(statement)
    )
    job = make_job(bench.database, TEXTS * 2, per_chunk=6)
    work_until_completed(bench, job)
    with bench.database.read() as connection:
        row = connection.execute(select(measured_speeds)).one()
    assert (row.model_digest, row.engine, row.device_name, row.chunks) == (MODEL_DIGEST, "fake", "CPU", 2)
    # The first chunk is one micro-batch, and that was the warm-up.
    assert (row.dialogues, row.warmup_s) == (6.0, None)
    assert row.load_s is not None
    assert sum("measured_speeds" in statement for statement in seen if statement.startswith("INSERT")) == 2


def test_chunk_of_stored_summaries_measures_nothing(bench: Bench) -> None:
    work_until_completed(bench, make_job(bench.database, TEXTS))
    with bench.database.read() as connection:
        before = connection.execute(select(measured_speeds)).one()
    work_until_completed(bench, make_job(bench.database, TEXTS))
    with bench.database.read() as connection:
        assert connection.execute(select(measured_speeds)).one() == before


def test_worker_that_lost_its_chunk_notes_no_speed(database: Database) -> None:
    job = make_job(database, TEXTS)
    claim = take(database, make_worker(database, "zombie"))
    assert claim is not None
    expire_leases(database)
    with database.write() as connection:
        connection.execute(chunks.update().values(epoch=chunks.c.epoch + 1))
    with pytest.raises(LeaseLost):
        database.transact(partial(chunk_rows.finish, claim=claim, last_words=partial(speed.record, measurement=TOOK)))
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(measured_speeds)) == 0
    assert job_row(database, job)["state"] == "running"


def test_view_names_the_versions_that_ran(database: Database) -> None:
    note(database, TOOK)
    tenant_key = first_tenant(database)
    with database.write() as connection:
        connection.execute(
            models.insert().values(
                tenant_key=tenant_key, name="tiny", version=1, digest=MODEL_DIGEST, manifest={}, weight_bytes=1,
                source="built-in", created_at=1.0,
            )
        )  # fmt: skip
        row = connection.execute(text("SELECT * FROM v_speed")).one()
    assert (row.model, row.engine, row.device_name, row.max_new_tokens) == ("tiny@1", "fake", "CPU", 128)
    assert (row.dialogues_per_s, row.tokens_per_s, row.tokens_in_mean, row.tokens_out_mean) == (2.5, 300.0, 100.0, 20.0)
    assert (row.load_s, row.warmup_s, row.chunks) == (2.0, 0.5, 1)

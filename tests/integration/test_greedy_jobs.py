"""Jobs on one whole model and an adapter of it, on a CPU worker: each row tells the engine that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from gistmill.db.session import Database
from gistmill.db.tables import datasets, generations
from gistmill.readback import iterate_results
from gistmill.specs import parse_spec
from gistmill.submit import submit_job
from models_store.store import Store
from tests.integration.test_adapter_jobs import TEXTS, alone, load, store
from tests.support.bench import running_bench
from tests.support.jobs import first_tenant, make_dataset
from workers.engine.loading import load_greedy_engine
from workers.residence import Residence

__all__ = ["store"]


@pytest.mark.parametrize(
    ("reference", "generation", "precision", "engine", "dtype"),
    [
        ("small", {}, "native", "ctranslate2", "float32"),
        ("small", {"num_beams": 2}, "native", "transformers", "float32"),
        ("small", {"do_sample": True, "seed": 1}, "native", "transformers", "float32"),
        ("small+first", {}, "native", "ctranslate2", "float32"),
        ("small+first", {"num_beams": 2}, "native", "transformers", "float32"),
        ("small", {}, "int8", "ctranslate2", "int8"),
    ],
    ids=["greedy", "beams", "sampled", "adapter", "adapter with beams", "int8"],
)
def test_rows_record_the_engine_that_ran(
    sqlite_only: Database,
    redis_url: str,
    tmp_path: Path,
    store: Store,
    reference: str,
    generation: dict[str, int],
    precision: str,
    engine: str,
    dtype: str,
) -> None:
    tenant = first_tenant(sqlite_only)
    key = make_dataset(sqlite_only, TEXTS)
    with sqlite_only.read() as connection:
        dataset = connection.scalar(select(datasets.c.id).where(datasets.c.key == key))
    parameters = {"max_new_tokens": 16} | generation
    spec = parse_spec({"dataset": dataset, "model": reference, "precision": precision, "generation": parameters})
    job_id = submit_job(sqlite_only, tenant, spec)[0]

    with running_bench(sqlite_only, redis_url, tmp_path) as bench:
        bench.handler.residence = Residence(
            lambda digest, ticker: store.get(digest),
            load,
            load_greedy=lambda directory, precision, adapter: load_greedy_engine(
                "auto", directory, store, device="cpu", precision=precision, adapter=adapter, threads=1
            ),
            limit_bytes=2**30,
            device_bytes=2**30,
            load_stall_s=60,
        )
        bench.runner.work()
        bench.handler.residence.clear()

    with sqlite_only.read() as connection:
        recorded = connection.execute(select(generations.c.engine, generations.c.device, generations.c.dtype)).all()
    assert [tuple(row) for row in recorded] == [(engine, "cpu", dtype)] * len(TEXTS)
    if not generation and dtype == "float32":
        summaries = [item.summary for item in iterate_results(sqlite_only, tenant, job_id, order="input")]
        assert summaries == alone(sqlite_only, store, reference)

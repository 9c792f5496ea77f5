"""Jobs over two adapters of one base, carried out by one worker: one load of the base, and each job's own texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from gistmill import prompts
from gistmill.db import models
from gistmill.db.session import Database
from gistmill.db.tables import datasets
from gistmill.readback import iterate_results
from gistmill.specs import Precision, parse_spec
from gistmill.submit import submit_job
from models_store.importing import import_directory
from models_store.store import Store
from tests.integration.test_engine_conformance import complete, prompts_of
from tests.support.adapters import make_adapter
from tests.support.bench import running_bench
from tests.support.jobs import first_tenant, make_dataset
from tests.support.models import dialogues, make_tiny_t5
from workers.engine.base import Completion, Engine
from workers.engine.loading import load_engine
from workers.engine.transformers import TransformersEngine
from workers.residence import Residence

TEXTS = dialogues(4, most_words=10)


def load(directory: Path, precision: Precision) -> Engine:
    return load_engine("transformers", directory, device="cpu", precision=precision)


@pytest.fixture
def store(tmp_path: Path, sqlite_only: Database) -> Store:
    """A store with a base and two adapters of it, all in SQL too."""
    store = Store(tmp_path / "store")
    base = import_directory(store, make_tiny_t5(tmp_path / "base"), label="base")
    manifests = {"small": base}
    for seed, name in enumerate(("first", "second"), start=1):
        source = make_adapter(store.get(base.digest), tmp_path / name, seed=seed)
        manifests[name] = import_directory(store, source, label=name, base_digest=base.digest)
    for name, manifest in manifests.items():
        models.register(
            sqlite_only,
            first_tenant(sqlite_only),
            manifest.model_dump(mode="json"),
            name=name,
            digest=manifest.digest,
            weight_bytes=manifest.weight_bytes,
            source="upload",
            kind=manifest.kind,
            base_digest=manifest.base_digest,
        )
    return store


def alone(database: Database, store: Store, reference: str) -> list[str]:
    """The texts of a model on an engine of its own."""
    version = models.resolve(database, first_tenant(database), reference)
    engine = load(store.get(version.base_digest), "float32")
    assert isinstance(engine, TransformersEngine)
    runs: Engine = engine
    if version.adapter_digest is not None:
        engine.add_adapter(version.adapter_digest, store.get(version.adapter_digest))
        runs = engine.adapted(version.adapter_digest)
    template = prompts.get("instruction")
    generation = parse_spec({"dataset": "x", "generation": {"max_new_tokens": 16}}).generation
    outcomes = complete(runs, prompts_of([template.render(text) for text in TEXTS]), generation)
    return [outcome.text for _, outcome in sorted(outcomes.items()) if isinstance(outcome, Completion)]


def submit(database: Database, reference: str, texts: list[str]) -> str:
    """Submit a job over these texts and return its id."""
    key = make_dataset(database, texts)
    with database.read() as connection:
        dataset = connection.scalar(select(datasets.c.id).where(datasets.c.key == key))
    spec = parse_spec({"dataset": dataset, "model": reference, "generation": {"max_new_tokens": 16}})
    return submit_job(database, first_tenant(database), spec)[0]


def read_summaries(database: Database, job_id: str) -> list[str]:
    return [item.summary for item in iterate_results(database, first_tenant(database), job_id, order="input")]


def test_jobs_over_two_adapters_alternate_without_loading_the_base_again(
    sqlite_only: Database, redis_url: str, tmp_path: Path, store: Store
) -> None:
    loads: list[str] = []

    def find(digest: str, _ticker: object) -> Path:
        loads.append(digest)
        return store.get(digest)

    wanted = {name: alone(sqlite_only, store, name) for name in ("small", "small+first", "small+second")}
    assert len({tuple(texts) for texts in wanted.values()}) == 3

    with running_bench(sqlite_only, redis_url, tmp_path) as bench:
        bench.handler.residence = Residence(find, load, limit_bytes=2**30, device_bytes=2**30, load_stall_s=60)
        # Each round has rows of its own: the texts of earlier ones would be found and not made again.
        for rows in (slice(0, 2), slice(2, 4)):
            for reference, texts in wanted.items():
                job_id = submit(sqlite_only, reference, TEXTS[rows])
                bench.runner.work()
                assert read_summaries(sqlite_only, job_id) == texts[rows]
        assert len(bench.handler.residence.resident()) == 3

    versions = [models.resolve(sqlite_only, first_tenant(sqlite_only), reference) for reference in wanted]
    assert loads == [versions[0].digest, *(version.adapter_digest for version in versions[1:])]

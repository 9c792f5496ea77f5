"""A finetune chunk with a real training child: its curve, its model, and what pause, cancel and death leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from gistmill.control import cancel, pause, resume
from gistmill.db.clock import db_now
from gistmill.db.session import Database
from gistmill.db.tables import jobs, models
from gistmill.readback import get_job, iterate_metrics
from gistmill.views import MetricView
from models_store import catalog
from models_store.builtin.dialogues import generate
from models_store.store import Store
from tests.support.bench import FAST, Bench, running_bench
from tests.support.finetune import Model, add_model, load_pairs, submit_finetune
from tests.support.jobs import first_tenant, make_worker
from tests.support.servers import wait_until
from workers.handlers.finetune import FinetuneHandler, TrainingHost
from workers.publishing import Publisher
from workers.runner import Runner

ROWS = 64
STEPS = 12
FIELDS: dict[str, Any] = {"method": "lora", "rank": 4, "batch_size": 8, "max_steps": STEPS, "checkpoint_every": 3}


@dataclass
class Recorder(Publisher):
    """Registers what is published as the api would, and remembers it."""

    database: Database
    published: list[dict[str, Any]] = field(default_factory=list)

    def publish(self, directory: Path, *, name: str, job: dict[str, Any], tick: Callable[[], None]) -> dict[str, Any]:
        """Write the row that the api writes."""
        self.published.append(job | {"files": sorted(path.name for path in directory.iterdir())})
        with self.database.write() as connection:
            key = connection.scalar(select(jobs.c.key).where(jobs.c.id == job["job_id"]))
            values = {"tenant_key": first_tenant(self.database), "name": name, "version": 1, "digest": "e" * 64}
            values |= {"manifest": {}, "weight_bytes": 1, "source": "job", "kind": job["kind"], "lineage": job["lineage"]}
            connection.execute(insert(models).values(**values, job_key=key, created_at=db_now()))
        return {"name": name, "version": 1, "digest": "e" * 64}


@dataclass
class Trainer:
    """A bench whose worker trains, with a base model and data."""

    bench: Bench
    runner: Runner
    recorder: Recorder
    base: Model
    data: str
    root: Path

    @property
    def database(self) -> Database:
        """The database."""
        return self.bench.database

    def submit(self, **fields: Any) -> str:
        """Submit a short training."""
        return submit_finetune(self.database, self.base, self.data, **(FIELDS | fields))

    def view(self, job_id: str) -> Any:
        """Return the job as users see it."""
        return get_job(self.database, first_tenant(self.database), job_id)

    def curve(self, job_id: str) -> list[MetricView]:
        """Return the points of the job."""
        return list(iterate_metrics(self.database, first_tenant(self.database), job_id))

    def losses(self, job_id: str) -> list[tuple[int, float | None]]:
        """Return step and loss of every step."""
        return [(point.step, point.loss) for point in self.curve(job_id) if point.kind == "train"]

    def work_aside(self) -> threading.Thread:
        """Work in another thread."""
        thread = threading.Thread(target=self.runner.work)
        thread.start()
        return thread


@pytest.fixture
def trainer(database: Database, redis_url: str, tmp_path: Path) -> Iterator[Trainer]:
    """A worker that takes finetune jobs, and gist-tiny to tune."""
    with running_bench(database, redis_url, tmp_path) as bench:
        store = Store(tmp_path / "store")
        manifest = catalog.import_builtin(store, "gist-tiny")
        recorder = Recorder(database)
        root = tmp_path / "training"
        handler = FinetuneHandler(
            database,
            bench.handler.residence,
            FAST,
            find_files=lambda digest, ticker: store.get(digest),
            publisher=recorder,
            host=TrainingHost(root, "cpu"),
        )
        claimant = make_worker(database, "trainer", kinds=("finetune",))
        bench.heartbeat.worker = "trainer"
        runner = Runner(
            database, claimant, {"finetune": handler}, heartbeat=bench.heartbeat, bells=bench.runner.bells,
            settings=FAST, drain=bench.drain,
        )  # fmt: skip
        pairs = [(example.dialogue, example.summary) for example in generate(ROWS, seed=3, split="train")]
        data = load_pairs(database, tmp_path, pairs).id
        yield Trainer(bench, runner, recorder, add_model(database, digest=manifest.digest), data, root)


def test_training_makes_one_model_with_lineage_and_a_whole_curve(trainer: Trainer) -> None:
    job_id = trainer.submit(validation=0.25, evaluate_every=6)
    trainer.runner.work()
    view = trainer.view(job_id)
    assert (view.state, view.produced, view.error) == ("completed", "tiny+tiny-lora@1", None)
    assert [step for step, _ in trainer.losses(job_id)] == list(range(1, STEPS + 1))
    evaluations = [point for point in trainer.curve(job_id) if point.kind == "eval"]
    assert [point.step for point in evaluations] == [6, 12]
    assert all(point.loss is not None and 0 <= (point.rougel or 0) <= 1 for point in evaluations)
    assert 0 < view.training["trainable_parameters"] < view.training["total_parameters"]
    (published,) = trainer.recorder.published
    assert published["files"] == ["adapter_config.json", "adapter_model.safetensors"]
    lineage = published["lineage"]
    assert (lineage["base"], lineage["base_digest"], lineage["job"]) == ("tiny@1", trainer.base.digest, job_id)
    assert (lineage["rows"], lineage["validation_rows"], lineage["dataset"]) == (48, 16, trainer.data)
    assert not (trainer.root / job_id).exists()


def test_paused_training_goes_on_from_its_checkpoint_as_if_never_stopped(trainer: Trainer) -> None:
    whole = trainer.submit(name="whole")
    trainer.runner.work()
    stopped = trainer.submit(name="stopped")
    thread = trainer.work_aside()
    wait_until(lambda: bool(trainer.losses(stopped)), timeout_s=60, what="a first step")
    pause(trainer.database, first_tenant(trainer.database), stopped)
    thread.join(timeout=60)
    done = len(trainer.losses(stopped))
    assert trainer.view(stopped).state in ("queued", "running")
    resume(trainer.database, first_tenant(trainer.database), stopped)
    trainer.runner.work()
    assert trainer.view(stopped).state == "completed"
    assert 0 < done <= STEPS
    assert trainer.losses(stopped) == trainer.losses(whole)


def test_cancelled_training_ends_within_five_seconds_and_leaves_nothing(trainer: Trainer) -> None:
    job_id = trainer.submit(max_steps=100_000, epochs=1)
    thread = trainer.work_aside()
    wait_until(lambda: bool(trainer.losses(job_id)), timeout_s=60, what="a first step")
    asked_at = time.monotonic()
    cancel(trainer.database, first_tenant(trainer.database), job_id)
    thread.join(timeout=60)
    assert time.monotonic() - asked_at < 5
    assert trainer.view(job_id).state == "cancelled"
    assert trainer.recorder.published == []
    assert not (trainer.root / job_id).exists()


def test_model_that_was_published_before_a_crash_is_not_trained_again(trainer: Trainer) -> None:
    job_id = trainer.submit()
    with trainer.database.write() as connection:
        key = connection.scalar(select(jobs.c.key).where(jobs.c.id == job_id))
        connection.execute(update(models).values(job_key=key))
    trainer.runner.work()
    assert trainer.view(job_id).state == "completed"
    assert (trainer.recorder.published, trainer.losses(job_id)) == ([], [])


def test_unknown_targets_fail_the_job_and_name_those_that_exist(trainer: Trainer) -> None:
    job_id = trainer.submit(targets=("q", "query"))
    trainer.runner.work()
    view = trainer.view(job_id)
    assert (view.state, view.error["code"]) == ("failed", "unknown_targets")
    assert "query" in view.error["message"]
    assert "wi_0" in view.error["message"]


def test_part_that_leaves_nothing_to_train_on_fails_the_job(trainer: Trainer) -> None:
    job_id = trainer.submit(select="[0:1]", validation=0.5)
    trainer.runner.work()
    assert trainer.view(job_id).error["code"] == "invalid_dataset"

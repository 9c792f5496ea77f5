"""A finetune chunk with a real training child: its curve, its model, and what pause, cancel and death leave.

In the first test the child is a program of its own, as a worker starts it; in others it is a fork (tests/support/nursery.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, update

from gistmill.control import cancel, pause, resume
from gistmill.db.models import ModelVersion, resolve
from gistmill.db.session import Database
from gistmill.db.tables import jobs, models
from gistmill.readback import get_job, iterate_metrics
from gistmill.views import MetricView
from models_store.builtin.dialogues import generate
from models_store.store import Store
from tests.support.api import TOKEN, api_settings, listening_api
from tests.support.bench import FAST, Bench, running_bench
from tests.support.finetune import load_pairs, submit_finetune
from tests.support.jobs import first_tenant, make_worker
from tests.support.servers import wait_until
from tests.support.trainings import WAIT_AT
from workers.checkpoints import Courier
from workers.handlers.finetune import FinetuneHandler, TrainingHost
from workers.publishing import Publisher
from workers.runner import Runner

ROWS = 64
STEPS = 12
FIELDS: dict[str, Any] = {"method": "lora", "rank": 4, "batch_size": 8, "max_steps": STEPS, "checkpoint_every": 3}


@dataclass
class Trainer:
    """A bench whose worker trains, with a base model and data."""

    bench: Bench
    api: httpx2.Client
    runner: Runner
    store: Store
    base: ModelVersion
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

    def lineages(self, job_id: str) -> list[Any]:
        """Return the lineage of every model that the job made."""
        query = select(models.c.lineage).join(jobs, jobs.c.key == models.c.job_key).where(jobs.c.id == job_id)
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())

    def work_aside(self) -> threading.Thread:
        """Work in another thread."""
        thread = threading.Thread(target=self.runner.work)
        thread.start()
        return thread


@pytest.fixture
def trainer(database: Database, redis_url: str, tmp_path: Path) -> Iterator[Trainer]:
    """A worker that takes finetune jobs, an api that keeps its models, and gist-tiny to tune."""
    settings = api_settings(tmp_path / "api")
    with listening_api(database, settings) as api, running_bench(database, redis_url, tmp_path) as bench:
        made = make_trainer(bench, api, tmp_path / "training", Store(settings.store_dir))
        pairs = [(example.dialogue, example.summary) for example in generate(ROWS, seed=3, split="train")]
        made.data = load_pairs(database, tmp_path, pairs).id
        yield made


def make_trainer(bench: Bench, api: httpx2.Client, root: Path, store: Store) -> Trainer:
    url = str(api.base_url)
    handler = FinetuneHandler(
        bench.database,
        bench.handler.residence,
        FAST,
        find_files=lambda digest, ticker: store.get(digest),
        publisher=Publisher(url, TOKEN),
        courier=Courier(url, TOKEN, every_s=0),
        host=TrainingHost(root, "cpu"),
    )
    claimant = make_worker(bench.database, root.name, kinds=("finetune",))
    runner = Runner(
        bench.database, claimant, {"finetune": handler}, heartbeat=bench.heartbeat, bells=bench.runner.bells,
        settings=FAST, drain=bench.drain,
    )  # fmt: skip
    base = resolve(bench.database, first_tenant(bench.database), "gist-tiny")
    return Trainer(bench, api, runner, store, base, "", root)


def test_training_makes_one_model_with_lineage_and_a_whole_curve(trainer: Trainer) -> None:
    job_id = trainer.submit(validation=0.25, evaluate_every=6)
    trainer.runner.work()
    view = trainer.view(job_id)
    assert (view.state, view.produced, view.error) == ("completed", "gist-tiny+gist-tiny-lora@1", None)
    assert [step for step, _ in trainer.losses(job_id)] == list(range(1, STEPS + 1))
    evaluations = [point for point in trainer.curve(job_id) if point.kind == "eval"]
    assert [point.step for point in evaluations] == [6, 12]
    assert all(point.loss is not None and 0 <= (point.rougel or 0) <= 1 for point in evaluations)
    assert 0 < view.training["trainable_parameters"] < view.training["total_parameters"]
    model = resolve(trainer.database, first_tenant(trainer.database), view.produced)
    assert model.adapter_digest is not None
    files = {path.name for path in trainer.store.get(model.adapter_digest).iterdir()}
    assert files >= {"adapter_config.json", "adapter_model.safetensors"}
    (lineage,) = trainer.lineages(job_id)
    assert (lineage["base"], lineage["base_digest"], lineage["job"]) == ("gist-tiny@1", trainer.base.digest, job_id)
    assert (lineage["rows"], lineage["validation_rows"], lineage["dataset"]) == (48, 16, trainer.data)
    assert not (trainer.root / job_id).exists()


@pytest.mark.usefixtures("forked_trainings")
def test_paused_training_goes_on_from_its_checkpoint_as_if_never_stopped(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer.submit(name="whole")
    trainer.runner.work()
    stopped = trainer.submit(name="stopped")
    monkeypatch.setenv(WAIT_AT, "4")
    thread = trainer.work_aside()
    wait_until(lambda: bool(trainer.losses(stopped)), timeout_s=60, what="a first step")
    pause(trainer.database, first_tenant(trainer.database), stopped)
    thread.join(timeout=60)
    assert len(trainer.losses(stopped)) == 5
    assert trainer.view(stopped).state in ("queued", "running")
    monkeypatch.delenv(WAIT_AT)
    resume(trainer.database, first_tenant(trainer.database), stopped)
    trainer.runner.work()
    assert trainer.view(stopped).state == "completed"
    assert trainer.losses(stopped) == trainer.losses(whole)


@pytest.mark.usefixtures("forked_trainings")
def test_cancelled_training_ends_within_five_seconds_and_leaves_nothing(trainer: Trainer) -> None:
    job_id = trainer.submit(max_steps=100_000, epochs=1)
    thread = trainer.work_aside()
    wait_until(lambda: bool(trainer.losses(job_id)), timeout_s=60, what="a first step")
    asked_at = time.monotonic()
    cancel(trainer.database, first_tenant(trainer.database), job_id)
    thread.join(timeout=60)
    assert time.monotonic() - asked_at < 5
    assert trainer.view(job_id).state == "cancelled"
    assert trainer.lineages(job_id) == []
    assert not (trainer.root / job_id).exists()


def test_model_that_was_published_before_a_crash_is_not_trained_again(trainer: Trainer) -> None:
    job_id = trainer.submit()
    with trainer.database.write() as connection:
        key = connection.scalar(select(jobs.c.key).where(jobs.c.id == job_id))
        connection.execute(update(models).where(models.c.digest == trainer.base.digest).values(job_key=key))
    trainer.runner.work()
    assert trainer.view(job_id).state == "completed"
    assert trainer.losses(job_id) == []


@pytest.mark.usefixtures("forked_trainings")
def test_another_host_goes_on_from_the_checkpoint_that_the_api_has(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trainer.submit(name="whole")
    trainer.runner.work()
    stopped = trainer.submit(name="stopped")
    monkeypatch.setenv(WAIT_AT, "7")
    thread = trainer.work_aside()
    wait_until(lambda: len(trainer.losses(stopped)) >= 4, timeout_s=60, what="a step behind the first checkpoint")
    trainer.bench.drain.set()
    thread.join(timeout=60)
    trainer.bench.drain.clear()
    monkeypatch.delenv(WAIT_AT)
    kept = trainer.api.get(f"/v1/jobs/{stopped}/checkpoints").json()
    assert kept[0]["step"] >= 4
    # The first host is gone with its disk.
    other = make_trainer(trainer.bench, trainer.api, tmp_path / "other", trainer.store)
    other.runner.work()
    assert trainer.view(stopped).state == "completed"
    assert trainer.losses(stopped) == trainer.losses(whole)
    digests = {
        name: resolve(trainer.database, first_tenant(trainer.database), f"gist-tiny+{name}").adapter_digest
        for name in ("whole", "stopped")
    }
    assert digests["whole"] == digests["stopped"]


@pytest.mark.usefixtures("forked_trainings")
def test_files_of_a_training_that_another_host_has_ended_go(trainer: Trainer) -> None:
    failed, other = trainer.submit(targets=("nothing",)), trainer.submit(name="other")
    cancel(trainer.database, first_tenant(trainer.database), other)
    trainer.runner.work()
    assert trainer.view(failed).state == "failed"
    left = [trainer.root / name for name in (failed, other, "job_of_another_database")]
    for directory in left:
        directory.mkdir(parents=True, exist_ok=True)
    trainer.submit(targets=("nothing",), name="next")
    trainer.runner.work()
    assert [directory.exists() for directory in left] == [True, False, False]


@pytest.mark.usefixtures("forked_trainings")
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

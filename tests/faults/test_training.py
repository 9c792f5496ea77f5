"""Trainings whose worker or child dies, hangs or wakes as a zombie: one model or none, and a curve without gaps or doubles."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gistmill.control import cancel
from gistmill.db.models import ModelVersion, resolve
from gistmill.db.session import Database
from gistmill.db.tables import jobs, models
from gistmill.readback import get_job, iterate_metrics
from models_store import manifest as manifests
from models_store.builtin.dialogues import generate
from models_store.store import Store
from tests.support.api import TOKEN, api_settings, listening_api
from tests.support.faults import kill_at, stop_at
from tests.support.finetune import load_pairs, submit_finetune
from tests.support.fleet import Fleet, WorkerProcess
from tests.support.jobs import first_tenant
from tests.support.nursery import Nursery
from tests.support.servers import wait_until
from tests.support.trainings import ADDRESS

STEPS = 8
FIELDS: dict[str, Any] = {"method": "lora", "rank": 4, "batch_size": 8, "max_steps": STEPS, "checkpoint_every": 2}
# A child imports torch and transformers first, on a machine that runs other tests.
TRAINING_S = 90.0


@dataclass
class Training:
    """A fleet on which nothing is shared but SQL, Redis and the api, with a job to train."""

    database: Database
    fleet: Fleet
    store: Store
    base: ModelVersion
    data: str

    def submit(self, **fields: Any) -> str:
        """Submit a short training."""
        return submit_finetune(self.database, self.base, self.data, name="result", **(FIELDS | fields))

    def start(self, *blows: Any) -> WorkerProcess:
        """Start a worker that meets these blows."""
        return self.fleet.start(drill=blows)

    def state(self, job_id: str) -> str:
        """Return the job's state."""
        return get_job(self.database, first_tenant(self.database), job_id).state

    def steps(self, job_id: str) -> list[int]:
        """Return the steps of the curve, in order."""
        curve = iterate_metrics(self.database, first_tenant(self.database), job_id)
        return [point.step for point in curve if point.kind == "train"]

    def wait_for_end(self, job_id: str) -> None:
        """Wait until the job has ended."""
        wait_until(lambda: self.state(job_id) in ("completed", "failed", "cancelled"), timeout_s=TRAINING_S, what="its end")

    def models(self, job_id: str) -> list[str]:
        """Return the digests of what the job made."""
        query = select(models.c.digest).join(jobs, jobs.c.key == models.c.job_key).where(jobs.c.id == job_id)
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())

    def assert_whole(self, job_id: str) -> None:
        """Make sure that the job made one model of valid files, and left a curve without gaps or doubles."""
        assert self.state(job_id) == "completed", self.fleet.logs()
        assert self.steps(job_id) == list(range(1, STEPS + 1))
        (digest,) = self.models(job_id)
        directory = self.store.get(digest)
        manifests.verify(directory, manifests.load(directory))


@pytest.fixture
def training(
    database: Database, database_url: str, redis_url: str, tmp_path: Path, training_nursery: Nursery
) -> Iterator[Training]:
    """The fleet without workers yet."""
    settings = api_settings(tmp_path / "api")
    with listening_api(database, settings) as api:
        environment = {
            "GISTMILL_API__URL": str(api.base_url),
            "GISTMILL_API__TOKEN": TOKEN,
            "GISTMILL_WORKER__ENGINE": "transformers",
            "GISTMILL_WORKER__CHECKPOINT_SEND_S": "0",
            "GISTMILL_WORKER__THREADS": "1",
            ADDRESS: str(training_nursery.address),
        }
        fleet = Fleet(tmp_path / "fleet", database_url, redis_url, environment)
        pairs = [(example.dialogue, example.summary) for example in generate(32, seed=5, split="train")]
        data = load_pairs(database, tmp_path, pairs).id
        base = resolve(database, first_tenant(database), "gist-tiny")
        yield Training(database, fleet, Store(settings.store_dir), base, data)
        fleet.stop()
        print(fleet.logs())


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("point", "nth"), [("checkpoint.committed", 2), ("publish.begun", 1), ("publish.committed", 1), ("ending.begun", 1)]
)
def test_worker_killed_while_it_trains_loses_and_doubles_nothing(training: Training, point: str, nth: int) -> None:
    job_id = training.submit()
    victim = training.start(kill_at(point, nth=nth))
    assert victim.wait(TRAINING_S) == -signal.SIGKILL
    training.start()
    training.wait_for_end(job_id)
    training.assert_whole(job_id)


@pytest.mark.timeout(240)
def test_worker_stopped_past_its_lease_wakes_and_changes_nothing(training: Training) -> None:
    job_id = training.submit()
    zombie = training.start(stop_at("checkpoint.committed", nth=2))
    wait_until(lambda: bool(training.fleet.ledger.blows()), timeout_s=TRAINING_S, what="the blow")
    training.start()
    training.wait_for_end(job_id)
    zombie.send(signal.SIGCONT)
    wait_until(lambda: "lease_lost" in zombie.log.read_text(), timeout_s=30, what="the zombie noticing")
    training.assert_whole(job_id)


@pytest.mark.timeout(240)
def test_child_that_is_killed_is_started_again_from_its_checkpoint(training: Training) -> None:
    # Here a child is a program of its own, and the worker's; elsewhere it is a fork.
    del training.fleet.environment[ADDRESS]
    job_id = training.submit(max_steps=STEPS)
    worker = training.start()
    wait_until(lambda: len(training.steps(job_id)) >= 1, timeout_s=TRAINING_S, what="a first step")
    for child in children_of(worker):
        os.kill(child, signal.SIGKILL)
    training.wait_for_end(job_id)
    training.assert_whole(job_id)


@pytest.mark.timeout(240)
def test_training_cancelled_in_an_evaluation_makes_no_model(training: Training) -> None:
    job_id = training.submit(validation=0.5, evaluate_every=1, max_steps=500)
    training.start()
    wait_until(lambda: len(training.steps(job_id)) >= 2, timeout_s=TRAINING_S, what="a second step")
    cancel(training.database, first_tenant(training.database), job_id)
    wait_until(lambda: training.state(job_id) == "cancelled", timeout_s=5, what="the end of a cancelled training")
    assert training.models(job_id) == []
    steps = training.steps(job_id)
    assert steps == list(range(1, len(steps) + 1))


def children_of(worker: WorkerProcess) -> list[int]:
    """Return the training children of a worker."""
    listed = Path(f"/proc/{worker.process.pid}/task").glob("*/children")
    children = [int(pid) for path in listed for pid in read_while_it_lives(path).split()]
    return [pid for pid in children if b"workers.training" in read_while_it_lives(Path(f"/proc/{pid}/cmdline"))]


def read_while_it_lives(path: Path) -> bytes:
    """Return a file of a process or thread, nothing when that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return path.read_bytes()
    return b""

"""An experiment from submit to report, over the api and with a real worker, on the built-in base and two steps of training."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from gistmill.db.session import Database
from gistmill.db.tables import comparisons, jobs, score_means
from gistmill.queue import Bells
from gistmill.sweep import Sweeper
from models_store.builtin.dialogues import generate
from models_store.store import Store
from tests.support.api import TOKEN, api_settings, listening_api
from tests.support.bench import FAST
from tests.support.finetune import load_pairs
from tests.support.jobs import make_worker
from workers.checkpoints import Courier
from workers.engine.base import Engine
from workers.engine.loading import load_engine
from workers.handlers.evaluate import EvaluateHandler
from workers.handlers.finetune import FinetuneHandler, TrainingHost
from workers.handlers.summarize import SummarizeHandler
from workers.heartbeat import Heartbeat
from workers.publishing import Publisher
from workers.residence import Residence
from workers.runner import Runner

ROWS = 24
KINDS = ("summarize", "finetune", "evaluate")
SHORT: dict[str, Any] = {"max_steps": 2, "batch_size": 4}
BODY: dict[str, Any] = {
    "kind": "experiment",
    "model": "gist-tiny-base",
    "sample": 3,
    "generation": {"max_new_tokens": 16},
    "sweep": {"greedy": {"max_new_tokens": 16}, "hot": {"max_new_tokens": 16, "do_sample": True, "temperature": 0.5}},
    "full": SHORT,
    "lora": SHORT | {"rank": 4},
    "resamples": 200,
}


@dataclass
class Stage:
    """An api, a worker that takes every kind in this process, and data."""

    database: Database
    api: httpx2.Client
    runner: Runner
    data: str

    def submit(self, **fields: Any) -> str:
        """Submit a small experiment; return its id."""
        answer = self.api.post("/v1/jobs", json=BODY | {"dataset": self.data} | fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def view(self, experiment: str) -> dict[str, Any]:
        """Return the experiment as users see it."""
        found: dict[str, Any] = self.api.get(f"/v1/experiments/{experiment}").raise_for_status().json()
        return found

    def states(self, experiment: str) -> dict[str, str]:
        """Return the states of its steps by name."""
        return {step["name"]: step["state"] for step in self.view(experiment)["steps"]}

    def work(self) -> None:
        """Work until nothing can be claimed."""
        self.runner.work()


@pytest.fixture
def stage(sqlite_only: Database, redis_url: str, tmp_path: Path) -> Iterator[Stage]:
    """An api on a port, a worker beside it, and 24 generated dialogues with summaries."""
    settings = api_settings(tmp_path / "api")
    with listening_api(sqlite_only, settings) as api:
        pairs = [(example.dialogue, example.summary) for example in generate(ROWS, seed=5, split="train")]
        data = load_pairs(sqlite_only, tmp_path, pairs).id
        drain, bells = threading.Event(), Bells(redis_url, "test:")
        heartbeat = Heartbeat(sqlite_only, "all", FAST, Sweeper(sqlite_only, bells, FAST), drain)
        runner = make_runner(sqlite_only, str(api.base_url), Store(settings.store_dir), tmp_path, heartbeat, bells, drain)
        heartbeat.start()
        yield Stage(sqlite_only, api, runner, data)
        heartbeat.stop()
        bells.close()


def make_runner(
    database: Database, url: str, store: Store, root: Path, heartbeat: Heartbeat, bells: Bells, drain: threading.Event
) -> Runner:
    """Return a worker of all kinds that has the store of the api on its own disk."""

    def load(directory: Path, precision: Any) -> Engine:
        return load_engine("transformers", directory, device="cpu", precision=precision, threads=1, batch_tokens=4096)

    def find(digest: str, ticker: object) -> Path:
        return store.get(digest)

    residence = Residence(find, load, limit_bytes=2**30, device_bytes=2**30, load_stall_s=60)
    handlers = {
        "summarize": SummarizeHandler(database, residence, FAST),
        "evaluate": EvaluateHandler(database, FAST),
        "finetune": FinetuneHandler(
            database, residence, FAST, find_files=find, publisher=Publisher(url, TOKEN),
            courier=Courier(url, TOKEN, every_s=60), host=TrainingHost(root / "training", "cpu"),
        ),
    }  # fmt: skip
    claimant = make_worker(database, "all", kinds=KINDS)
    return Runner(database, claimant, handlers, heartbeat=heartbeat, bells=bells, settings=FAST, drain=drain)


def test_whole_notebook_runs_to_a_report_whose_figures_are_those_of_sql(stage: Stage) -> None:
    experiment = stage.submit()
    stage.work()
    view = stage.view(experiment)
    assert (view["state"], view["error"]) == ("completed", None)
    assert set(stage.states(experiment).values()) == {"completed"}
    produced = {step["name"]: step["produced"] for step in view["steps"] if step["produced"]}
    assert produced == {"full tuning": "gist-tiny-base-full@1", "LoRA tuning": "gist-tiny-base+gist-tiny-base-lora@1"}
    report = stage.api.get(f"/v1/experiments/{experiment}/report")
    assert report.headers["content-type"].startswith("text/markdown")
    for figure in figures_of(stage.database, view["comparisons"].values()):
        assert figure in report.text
    for step in view["steps"]:
        assert step["job"] in report.text
    assert "not done yet" not in report.text


def test_prompt_that_leaves_no_room_for_a_dialogue_is_refused_before_anything_is_written(stage: Stage) -> None:
    answer = stage.api.post("/v1/jobs", json=BODY | {"dataset": stage.data, "max_input_tokens": 100})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert "The 3 examples alone take" in answer.json()["detail"]
    assert stage.api.get("/v1/jobs").json()["data"] == []
    assert {prompt["is_built_in"] for prompt in stage.api.get("/v1/prompts").json()["data"]} == {True}


def test_fields_that_do_not_fit_are_named_by_their_place(stage: Stage) -> None:
    for fields, pointer in (({"full": {"rank": 4}}, "/full"), ({"sample": 0}, "/sample"), ({"name": "thesis"}, "/name")):
        answer = stage.api.post("/v1/jobs", json=BODY | {"dataset": stage.data} | fields)
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def figures_of(database: Database, evaluations: Any) -> list[str]:
    """Return every mean of these evaluations as the report writes it, and the differences of the last."""
    of = select(jobs.c.key).where(jobs.c.id.in_(list(evaluations)))
    with database.read() as connection:
        means = connection.execute(select(score_means.c.fmeasure).where(score_means.c.job_key.in_(of))).scalars().all()
        last = select(jobs.c.key).where(jobs.c.id == list(evaluations)[-1])
        deltas = connection.execute(select(comparisons.c.delta).where(comparisons.c.job_key.in_(last))).scalars().all()
    assert len(means) == 4 * (4 + 2 + 3)
    assert len(deltas) == 4 * 3
    return [f"{100 * mean:.2f}" for mean in means] + [f"{100 * delta:+.2f}".replace("+0.00", "0.00") for delta in deltas]

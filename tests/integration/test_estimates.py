"""A dry run over HTTP: what the job would do, with the errors of the real submit, and without a job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from gistmill.db import speed
from gistmill.db.models import resolve
from gistmill.db.session import Database
from gistmill.db.speed import Measurement, Work
from gistmill.db.tables import jobs, models
from gistmill.specs import GenerationParameters
from gistmill.submit import estimating
from tests.support.api import api_settings, running_api
from tests.support.bench import Bench, work_until_completed
from tests.support.finetune import add_model
from tests.support.jobs import make_worker
from workers.engine.fake import FakeEngine

TEXTS = [f"Ann: {'hello ' * (number % 4 + 1)}" for number in range(8)]


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[TestClient]:
    """A service with eight rows of four dialogues, as the dataset `calls`."""
    with running_api(database, api_settings(tmp_path / "home")) as client:
        lines = b"".join(json.dumps({"dialogue": text}).encode() + b"\n" for text in TEXTS)
        assert client.post("/v1/datasets", content=lines, params={"filename": "calls.jsonl"}).status_code == 201
        yield client


def estimate(api: TestClient, **fields: Any) -> dict[str, Any]:
    """Return the estimate of a job."""
    answer = api.post("/v1/estimates", json={"dataset": "calls", "model": "gist-tiny", **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def digest_of_model(database: Database, name: str) -> str:
    """Return the sha256 of a model's files."""
    with database.read() as connection:
        digest = connection.scalar(select(models.c.digest).where(models.c.name == name))
    assert digest is not None
    return digest


def note_speed(database: Database, digest: str, *, seconds: float, load_s: float | None = None) -> None:
    """Note that ten dialogues of 900 tokens took so long with this model, with a hundred tokens out."""
    work = Work.of(digest, "native", GenerationParameters())
    took = Measurement(work, digest, "ctranslate2", "cpu", "float32", 10, 900, 100, seconds, load_s=load_s)
    database.transact(partial(speed.record, measurement=took))


def test_estimate_counts_and_submits_nothing(api: TestClient, database: Database) -> None:
    view = estimate(api)
    assert (view["rows"], view["distinct"], view["stored"], view["to_generate"], view["chunks"]) == (8, 4, 0, 4, 1)
    assert (view["live_workers"], view["expected_s"], view["basis"]) == (0, None, "not measured yet on this fleet")
    shown = [
        api.post(
            "/v1/prompts/render",
            json={"prompt": "instruction", "dataset": "calls", "row": row, "tokens": True, "model": "gist-tiny"},
        ).json()
        for row in range(4)
    ]
    lengths = sorted(len(text["token_ids"]) for text in shown)
    tokens = view["tokens_in"]
    assert (tokens["total"], tokens["p50"], tokens["max"]) == (sum(lengths), lengths[1], lengths[3])
    assert (tokens["counted"], tokens["is_sample"], view["warnings"]) == (4, False, [])
    with database.read() as connection:
        assert connection.scalar(select(func.count()).select_from(jobs)) == 0


def test_rows_over_the_limit_are_named_with_what_becomes_of_them(api: TestClient) -> None:
    longest = estimate(api)["tokens_in"]["max"]
    failing = estimate(api, max_input_tokens=longest - 1)
    assert failing["tokens_in"]["over_limit_rows"] == 2
    assert "they will fail" in failing["warnings"][0]
    assert "they will be cut" in estimate(api, max_input_tokens=longest - 1, on_overflow="truncate")["warnings"][0]
    assert estimate(api, max_input_tokens=longest)["warnings"] == []


def test_selected_rows_only_are_counted_and_a_sample_says_so(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    view = estimate(api, select="[0:2]", max_input_tokens=1)
    assert (view["rows"], view["distinct"], view["tokens_in"]["over_limit_rows"]) == (2, 2, 2)
    monkeypatch.setattr(estimating, "MOST_COUNTED", 2)
    tokens = estimate(api)["tokens_in"]
    assert (tokens["counted"], tokens["is_sample"]) == (2, True)


def test_time_follows_the_speed_of_the_live_workers(api: TestClient, database: Database) -> None:
    note_speed(database, digest_of_model(database, "gist-tiny"), seconds=10.0, load_s=1.5)
    make_worker(database, "alive")
    view = estimate(api)
    # 100 tokens/s, of which each summary takes 10.
    assert view["expected_s"] == pytest.approx((view["tokens_in"]["total"] + 4 * 10) / 100)
    assert view["live_workers"] == 1
    assert view["basis"].startswith("measured: 100 tokens/s on cpu with ctranslate2, last 20")
    assert (view["speeds"][0]["load_s"], view["speeds"][0]["warmup_s"]) == (1.5, None)
    assert estimate(api, generation={"num_beams": 2})["expected_s"] is None


@pytest.mark.parametrize(("generation", "stored", "left"), [({}, 2, 2), ({"do_sample": True}, 4, 4)])
def test_stored_summaries_are_not_made_again(
    bench: Bench, api: TestClient, generation: dict[str, Any], stored: int, left: int
) -> None:
    bench.engine = FakeEngine
    body = {"dataset": "calls", "model": "gist-tiny", "generation": generation, "select": "[0,1,4,5]"}
    assert api.post("/v1/jobs", json=body).status_code == 201
    with bench.database.read() as connection:
        key = connection.scalar(select(jobs.c.key))
    assert key is not None
    work_until_completed(bench, key)
    view = estimate(api, generation=generation)
    assert (view["stored"], view["to_generate"]) == (stored, left)
    assert estimate(api, generation=generation, select="[0,1]")["to_generate"] == 0
    assert estimate(api, generation=generation, prompt="none")["stored"] == 0


@pytest.mark.parametrize(
    "body",
    [
        {"model": "nosuch"},
        {"prompt": "instructoin"},
        {"dataset": "cals"},
        {"select": "[9:1"},
        {"generation": {"max_new_tokens": 0}},
        {"precision": "fp16"},
        {"nosuch": 1},
        {"model": "job:job_nosuch"},
    ],
)
def test_bad_input_gets_the_error_of_the_real_submit(api: TestClient, body: dict[str, Any]) -> None:
    whole = {"dataset": "calls", "model": "gist-tiny"} | body
    tried, real = api.post("/v1/estimates", json=whole), api.post("/v1/jobs", json=whole | {"kind": "summarize"})
    assert tried.status_code >= 400
    assert (tried.status_code, tried.json()["code"]) == (real.status_code, real.json()["code"])


PAIRS = b"".join(
    json.dumps({"dialogue": f"Ann: hello {number}", "summary": "Hello."}).encode() + b"\n" for number in range(600)
)


@pytest.fixture
def training(api: TestClient) -> str:
    """The id of a job that tunes gist-tiny on 600 pairs, which are the dataset `pairs`."""
    assert api.post("/v1/datasets", content=PAIRS, params={"filename": "pairs.jsonl"}).status_code == 201
    answer = api.post("/v1/jobs", json={"kind": "finetune", "dataset": "pairs", "model": "gist-tiny", "name": "tuned"})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_model_that_is_still_to_be_made_has_the_tokens_and_the_speed_of_its_base(
    api: TestClient, database: Database, training: str
) -> None:
    view = estimate(api, dataset="pairs", model=f"job:{training}")
    assert (view["tokens_in"]["counted"], view["expected_s"]) == (600, None)
    assert view["warnings"] == ["The model is not made yet: tokens and speed are those of the model that it is tuned from."]
    note_speed(database, digest_of_model(database, "gist-tiny"), seconds=10.0)
    make_worker(database, "alive")
    measured = estimate(api, dataset="pairs", model=f"job:{training}")
    assert measured["expected_s"] == pytest.approx((view["tokens_in"]["total"] + 600 * 10) / 100)
    assert measured["basis"].startswith("measured with the model that it is tuned from: 100 tokens/s on cpu")
    # One dialogue a second, where a chunk of an unknown speed has many.
    assert measured["chunks"] > view["chunks"]
    job = api.post("/v1/jobs", json={"dataset": "pairs", "model": f"job:{training}"}).json()
    assert job["chunks_left"] == measured["chunks"]


def test_nothing_is_known_of_a_model_whose_base_was_removed_before_it_was_made(
    api: TestClient, database: Database, training: str
) -> None:
    database.transact(lambda connection: connection.execute(update(models).values(removed_at=1.0)))
    view = estimate(api, dataset="pairs", model=f"job:{training}")
    assert (view["tokens_in"], view["expected_s"], view["rows"]) == (None, None, 600)
    assert "what it is tuned from was removed" in view["warnings"][0]


@pytest.mark.parametrize("name", ["an-adapter", "gist-tiny"])
def test_model_that_never_ran_is_as_fast_as_its_base_until_it_has(api: TestClient, database: Database, name: str) -> None:
    base = digest_of_model(database, "gist-tiny")
    add_model(database, "an-adapter", digest="d" * 64, kind="adapter", base_digest=base)
    if name == "gist-tiny":
        base = "e" * 64
        tuned = update(models).where(models.c.name == "gist-tiny").values(lineage={"base_digest": base})
        database.transact(lambda connection: connection.execute(tuned))
    note_speed(database, base, seconds=10.0)
    assert estimate(api, model=name)["basis"].startswith("measured with the model that it is tuned from: 100 tokens/s")
    note_speed(database, resolve(database, 1, name).digest, seconds=1.0)
    assert estimate(api, model=name)["basis"].startswith("measured: 1,000 tokens/s")

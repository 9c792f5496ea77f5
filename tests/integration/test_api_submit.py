"""Over HTTP from a file to a job: uploads, idempotency, and what is refused before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from gistmill.db.check import check
from gistmill.db.models import register
from gistmill.db.session import Database
from gistmill.settings import Settings
from tests.support.api import api_settings, running_api

FIVE = b"".join(json.dumps({"id": f"c{i}", "dialogue": f"Ann: hello {i % 3}"}).encode() + b"\n" for i in range(5))


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    return api_settings(tmp_path / "home", redis_url=redis_url)


def add_model(database: Database) -> None:
    register(database, 1, {"architecture": "T5"}, name="mine", digest="d" * 64, weight_bytes=1, source="test")


@pytest.fixture
def api(database: Database, settings: Settings) -> Iterator[TestClient]:
    add_model(database)
    with running_api(database, settings) as client:
        yield client
    assert not any((settings.data_dir / "uploads").iterdir())
    assert check(database) == []


@pytest.fixture
def sqlite_api(sqlite_only: Database, tmp_path: Path) -> Iterator[TestClient]:
    """A service whose Redis is away."""
    add_model(sqlite_only)
    settings = api_settings(tmp_path / "home", max_line_bytes=1000)
    with running_api(sqlite_only, settings) as client:
        yield client
    assert not any((settings.data_dir / "uploads").iterdir())


def upload(api: TestClient, content: bytes = FIVE, **params: str):
    return api.post("/v1/datasets", content=content, params={"filename": "calls.jsonl", **params})


def test_file_is_uploaded_once_and_found_by_name_and_id(api: TestClient) -> None:
    answer = upload(api)
    dataset = answer.json()
    assert answer.status_code == 201
    assert (dataset["name"], dataset["state"], dataset["rows"], dataset["dialogues"]) == ("calls", "ready", 5, 3)
    again = upload(api, name="another")
    assert (again.status_code, again.json()) == (200, dataset)
    for reference in ("calls", dataset["id"]):
        assert api.get(f"/v1/datasets/{reference}").json() == dataset
    assert api.get("/v1/datasets").json()["data"] == [dataset]


def test_columns_are_mapped_and_formats_found_by_name(api: TestClient) -> None:
    csv = b"who,transcript\nAnn,hello there\nBen,bye\n"
    assert "There is no column 'dialogue'" in upload(api, csv, filename="calls.csv").json()["detail"]
    answer = api.post("/v1/datasets", content=csv, params=[("filename", "calls.csv"), ("column", "dialogue=transcript")])
    assert (answer.status_code, answer.json()["format"], answer.json()["rows"]) == (201, "csv", 2)


def test_same_key_and_body_replay_the_job_and_another_body_is_refused(api: TestClient) -> None:
    upload(api)
    body = {"dataset": "calls", "model": "mine", "labels": {"a": "b"}}
    first = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k1"})
    assert first.status_code == 201
    assert "idempotent-replay" not in first.headers
    job = first.json()
    assert (job["state"], job["model"], job["counts"]["items"], job["counts"]["distinct"]) == ("queued", "mine@1", 5, 3)
    assert "no worker is running" in job["waits_for"]
    second = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k1"})
    assert (second.status_code, second.headers["idempotent-replay"], second.json()["id"]) == (200, "true", job["id"])
    other = api.post("/v1/jobs", json=body | {"priority": 1}, headers={"Idempotency-Key": "k1"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert api.post("/v1/jobs", json=body).json()["id"] != job["id"]
    assert len(api.get("/v1/jobs").json()["data"]) == 2


def test_job_is_accepted_while_redis_is_away(sqlite_api: TestClient) -> None:
    upload(sqlite_api)
    assert sqlite_api.post("/v1/jobs", json={"dataset": "calls", "model": "mine"}).status_code == 201


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": "nosuch"}, 404, "unknown_model"),
        ({"model": "google/flan-t5-base"}, 404, "unknown_model"),
        ({"model": "../mine"}, 404, "unknown_model"),
        ({"prompt": "instructoin"}, 404, "unknown_prompt"),
        ({"dataset": "cals"}, 404, "unknown_dataset"),
        ({"select": "[9:1"}, 422, "invalid_selection"),
        ({"generation": {"max_new_tokens": 0}}, 422, "invalid_spec"),
        ({"generation": {"num_beams": 10**9}}, 422, "invalid_spec"),
        ({"generation": {"temperature": 0.5}}, 422, "invalid_spec"),
        ({"precision": "fp16"}, 422, "invalid_spec"),
        ({"precision": "int8", "generation": {"do_sample": True}}, 422, "invalid_spec"),
        ({"nosuch": 1}, 422, "invalid_spec"),
    ],
)
def test_job_that_cannot_run_is_refused_and_not_written(
    sqlite_api: TestClient, body: dict[str, object], status: int, code: str
) -> None:
    upload(sqlite_api)
    answer = sqlite_api.post("/v1/jobs", json={"dataset": "calls", "model": "mine"} | body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert sqlite_api.get("/v1/jobs").json()["data"] == []


def test_default_model_that_cannot_be_fetched_names_the_ways_out(sqlite_api: TestClient) -> None:
    upload(sqlite_api)
    detail = sqlite_api.post("/v1/jobs", json={"dataset": "calls"}).json()["detail"]
    assert "gistmill models add DIR --name flan-t5-base" in detail
    assert "--model gist-tiny" in detail


@pytest.mark.parametrize(
    ("content", "params", "said"),
    [
        (b"", {}, "empty"),
        (b'{"dialogue": "a"}\n{broken\n', {}, "Line 2"),
        (b'{"dialogue": "\xff"}\n', {}, "UTF-8"),
        (b'{"transcript": "a"}\n', {}, "'transcript'"),
        (b'{"dialogue": " "}\n', {}, "empty"),
        (b'{"id": "a", "dialogue": "x"}\n{"id": "a", "dialogue": "y"}\n', {}, "line 1"),
        (b'{"dialogue": "' + b"x" * 2000 + b'"}\n', {}, "Line 1"),
        (b"\x89PNG....", {}, "PNG"),
        (b'{"dialogue": "a"}\n', {"column": "dialog=a"}, "--column"),
    ],
)
def test_file_that_cannot_be_used_is_refused_and_not_kept(
    sqlite_api: TestClient, content: bytes, params: dict[str, str], said: str
) -> None:
    answer = upload(sqlite_api, content, **params)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert sqlite_api.get("/v1/datasets").json()["data"] == []


def test_lines_that_are_wrong_are_listed(sqlite_api: TestClient) -> None:
    body = upload(sqlite_api, b'{"dialogue": "a"}\n{"dialogue": ""}\n[1]\n').json()
    assert [error["line"] for error in body["errors"]] == [2, 3]


@pytest.mark.parametrize("name", ["../../etc/passwd", "..\\x.jsonl", "/abs.jsonl", "a\0b.jsonl", ".", "..", "x" * 299])
def test_file_name_cannot_leave_the_upload_folder(sqlite_api: TestClient, tmp_path: Path, name: str) -> None:
    before = {path for path in tmp_path.rglob("*") if "home" not in path.parts}
    assert upload(sqlite_api, filename=name).status_code in (201, 422)
    assert {path for path in tmp_path.rglob("*") if "home" not in path.parts} == before


def test_dataset_name_that_could_be_a_path_is_refused(sqlite_api: TestClient) -> None:
    for name in ("../up", "a/../b", "..", " x", "a//b"):
        answer = upload(sqlite_api, name=name)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_name")


def test_hub_that_cannot_be_reached_is_said_so(sqlite_api: TestClient) -> None:
    answer = sqlite_api.post("/v1/datasets/hub", json={"hub_id": "acme/nosuch", "split": None, "name": None})
    assert (answer.status_code, answer.json()["retryable"]) == (503, True)
    assert sqlite_api.post("/v1/datasets/hub", json={"hub_id": "../etc"}).status_code == 422


def test_dataset_over_the_limit_is_refused(sqlite_only: Database, tmp_path: Path) -> None:
    with running_api(sqlite_only, api_settings(tmp_path / "home", max_upload_bytes=50)) as api:
        answer = upload(api)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

"""Steering over HTTP: one job, a selection, and fifty clients that submit the same request at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from gistmill.db import models
from gistmill.db.session import Database
from gistmill.db.tables import jobs
from tests.support.api import api_settings, listening_api, running_api
from tests.support.jobs import first_tenant, job_row, make_dataset, make_job, make_worker, take

TEXTS = [f"dialogue number {number:02}" for number in range(4)]


def add_model(database: Database) -> None:
    manifest = {"architecture": "T5ForConditionalGeneration", "parameters": 1, "dtype": "float32"}
    models.register(database, first_tenant(database), manifest, name="mine", digest="c" * 64, weight_bytes=1, source="a test")


@pytest.fixture
def api(sqlite_only: Database, tmp_path: Path) -> Iterator[TestClient]:
    with running_api(sqlite_only, api_settings(tmp_path / "home")) as client:
        yield client


def test_pause_resume_cancel_retry_show_the_job_as_it_is_then(api: TestClient, sqlite_only: Database) -> None:
    path = f"/v1/jobs/{job_row(sqlite_only, make_job(sqlite_only, TEXTS))['id']}"
    paused = api.post(f"{path}/pause")
    assert (paused.status_code, paused.json()["paused"], paused.json()["waits_for"]) == (202, True, "it is paused")
    assert api.post(f"{path}/resume").json()["paused"] is False
    refused = api.post(f"{path}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_over")
    assert api.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert api.post(f"{path}/pause").json()["code"] == "job_is_over"
    again = api.post(f"{path}/retry", json={"retryable": True}).json()
    assert (again["state"], again["attempt"], again["counts"]["not_run"]) == ("queued", 2, 0)


def test_retry_with_changes_answers_with_the_new_job(api: TestClient, sqlite_only: Database) -> None:
    add_model(sqlite_only)
    job = make_job(sqlite_only, TEXTS, spec={"model": "mine"})
    path = f"/v1/jobs/{job_row(sqlite_only, job)['id']}"
    api.post(f"{path}/cancel")
    nothing = api.post(f"{path}/retry", json={"set": {"max_input_tokens": 99}})
    assert (nothing.status_code, nothing.json()["code"]) == (409, "nothing_to_retry")
    wrong = api.post(f"{path}/retry", json={"sets": {}})
    assert wrong.status_code == 422


def test_selection_is_counted_first_and_then_steered(api: TestClient, sqlite_only: Database) -> None:
    for _ in range(3):
        make_job(sqlite_only, TEXTS[:1], labels={"team": "support"})
    make_job(sqlite_only, TEXTS[:1])
    body = {"action": "cancel", "where": ["label.team=support"], "state": "queued"}
    found = api.post("/v1/jobs/steer", json=body | {"preview": True}).json()
    assert (found["matched"], found["changed"]) == (3, 0)
    make_job(sqlite_only, TEXTS[:1], labels={"team": "support"})
    done = api.post("/v1/jobs/steer", json=body | {"up_to": found["up_to"]}).json()
    assert (done["matched"], done["changed"], done["refused"]) == (3, 3, 0)
    assert len(api.get("/v1/jobs", params={"state": "queued"}).json()["data"]) == 2


def test_refused_jobs_are_named_with_their_reason(api: TestClient, sqlite_only: Database) -> None:
    job = make_job(sqlite_only, TEXTS[:1], labels={"a": "b"})
    # Its chunk still runs: the service's own sweep would close one that waits.
    assert take(sqlite_only, make_worker(sqlite_only, "ada"))
    sqlite_only.transact(lambda c: c.execute(update(jobs).where(jobs.c.key == job).values(state="failed", not_run=1)))
    done = api.post("/v1/jobs/steer", json={"action": "retry", "where": ["label.a=b"]}).json()
    assert (done["changed"], done["refused"], done["refusals"][0]["code"]) == (0, 1, "job_not_over")


@pytest.mark.parametrize(
    "body", [{}, {"action": "explode", "state": "queued"}, {"action": "cancel"}, {"action": "cancel", "x": 1}]
)
def test_steering_request_that_does_not_fit_is_refused(api: TestClient, body: dict[str, object]) -> None:
    assert api.post("/v1/jobs/steer", json=body).status_code == 422


def test_fifty_clients_with_one_idempotency_key_make_one_job(database: Database, tmp_path: Path) -> None:
    add_model(database)
    make_dataset(database, TEXTS)
    body = {"dataset": "test", "model": "mine"}
    with listening_api(database, api_settings(tmp_path / "home")) as client:

        def submit(_: int) -> tuple[int, str]:
            answer = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "one"})
            return answer.status_code, answer.json()["id"]

        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(submit, range(50)))
    assert len({job_id for _, job_id in answers}) == 1
    assert sorted(status for status, _ in answers) == [200] * 49 + [201]
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(jobs)).scalar_one() == 1

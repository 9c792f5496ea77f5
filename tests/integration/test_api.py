"""The HTTP contract: who is let in, what errors look like, and what each page answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text, update
from starlette.testclient import TestClient

from gistmill.db.models import register
from gistmill.db.session import Database, open_database
from gistmill.db.tables import jobs
from gistmill.settings import Settings
from tests.support.api import NO_REDIS, TOKEN, api_settings, listening_api, running_api
from tests.support.rows import write_history

PROBLEM = {"type", "title", "status", "detail", "code", "retryable", "request_id", "errors"}


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    return api_settings(tmp_path / "home", redis_url=redis_url)


@pytest.fixture
def api(database: Database, settings: Settings) -> Iterator[TestClient]:
    with running_api(database, settings) as client:
        yield client


@pytest.fixture
def sqlite_api(sqlite_only: Database, tmp_path: Path) -> Iterator[TestClient]:
    """A service on SQLite without Redis, for what depends on neither."""
    with running_api(sqlite_only, api_settings(tmp_path / "home")) as client:
        yield client


def assert_problem(answer, status: int, code: str) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == PROBLEM
    assert (answer.status_code, body["status"], body["code"]) == (status, status, code)
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["detail"]
    return body


def test_without_the_token_nothing_is_answered(sqlite_api: TestClient) -> None:
    wrong = (None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é")
    for path in ("/v1/jobs", "/v1/datasets", "/v1/models", "/v1/workers", "/nosuch", "/docs"):
        for token in wrong:
            answer = sqlite_api.get(path, headers={"Authorization": b"" if token is None else token.encode()})
            body = assert_problem(answer, 401, "unauthorized")
            assert "GISTMILL_API__TOKEN" in str(body["detail"])
            assert answer.headers["www-authenticate"] == "Bearer"


def test_posts_without_the_token_are_refused_before_their_body_is_read(sqlite_api: TestClient) -> None:
    for path in ("/v1/jobs", "/v1/query", "/v1/datasets", "/v1/models/uploads"):
        assert_problem(sqlite_api.post(path, content=b"{broken", headers={"Authorization": "Bearer x"}), 401, "unauthorized")


def test_foreign_host_is_refused(sqlite_api: TestClient) -> None:
    for host in ("evil.example", "localhost.evil.example", "localhost@evil", "127.0.0.2", "", "[::2]:80"):
        for path in ("/v1/jobs", "/healthz", "/readyz", "/openapi.json"):
            body = assert_problem(sqlite_api.get(path, headers={"Host": host}), 421, "foreign_host")
            assert "GISTMILL_API__HOSTS" in str(body["detail"])


def test_configured_and_local_hosts_are_served(sqlite_only: Database, tmp_path: Path) -> None:
    with running_api(sqlite_only, api_settings(tmp_path / "home", hosts="Gist.example, other")) as client:
        for host in ("gist.example", "GIST.example:8321", "other", "localhost:1", "127.0.0.1", "[::1]:8321"):
            assert client.get("/healthz", headers={"Host": host}).json() == {"status": "ok"}


def test_health_and_openapi_need_no_token(sqlite_api: TestClient) -> None:
    del sqlite_api.headers["Authorization"]
    assert sqlite_api.get("/healthz").status_code == 200
    paths = sqlite_api.get("/openapi.json").json()["paths"]
    assert {"/v1/jobs", "/v1/datasets", "/v1/query", "/v1/jobs/{job_id}/results"} <= set(paths)
    assert_problem(sqlite_api.get("/docs"), 401, "unauthorized")


@pytest.mark.usefixtures("patient_bells")
def test_ready_tells_of_database_redis_and_workers(database: Database, settings: Settings, tmp_path: Path) -> None:
    with running_api(database, settings) as client:
        assert client.get("/readyz").json() == {"database": True, "redis": True, "consuming": True}
        write_history(database, state="queued")
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["consuming"]) == (200, False)
    with running_api(database, api_settings(tmp_path / "home", redis_url=NO_REDIS)) as client:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["redis"]) == (503, False)


def test_unknown_things_are_problems_that_say_what_to_do(sqlite_api: TestClient) -> None:
    assert "gistmill jobs list" in str(assert_problem(sqlite_api.get("/v1/jobs/job_x"), 404, "unknown_job")["detail"])
    assert_problem(sqlite_api.get("/v1/jobs/job_x/results"), 404, "unknown_job")
    assert_problem(sqlite_api.get("/v1/jobs/job_x/errors"), 404, "unknown_job")
    assert_problem(sqlite_api.post("/v1/jobs/job_x/cancel"), 404, "unknown_job")
    assert_problem(sqlite_api.get("/v1/datasets/nosuch"), 404, "unknown_dataset")
    assert_problem(sqlite_api.get("/v1/models/nosuch"), 404, "unknown_model")
    assert_problem(sqlite_api.get("/v1/models/by-digest/" + "0" * 64 + "/manifest"), 404, "unknown_model")
    assert_problem(sqlite_api.get("/v1/nosuch"), 404, "not_found")
    assert_problem(sqlite_api.delete("/v1/jobs"), 405, "method_not_allowed")


def test_fields_that_do_not_fit_are_named_by_pointer(sqlite_api: TestClient) -> None:
    body = assert_problem(
        sqlite_api.post("/v1/jobs", json={"dataset": "calls", "generation": {"max_new_tokens": -1}}), 422, "invalid_spec"
    )
    assert [error["pointer"] for error in body["errors"]] == ["/generation/max_new_tokens"]  # type: ignore[attr-defined]
    body = assert_problem(sqlite_api.post("/v1/jobs", json={"dataset": "calls", "precision": "fp16"}), 422, "invalid_spec")
    assert "T5 models overflow" in str(body["detail"])
    assert_problem(sqlite_api.post("/v1/jobs", content=b"{broken"), 422, "invalid_spec")
    assert_problem(sqlite_api.post("/v1/query", json={"sql": 5}), 422, "invalid_input")
    assert_problem(sqlite_api.get("/v1/jobs?limit=0"), 422, "invalid_input")
    assert_problem(sqlite_api.get("/v1/jobs?state=asleep"), 422, "invalid_input")


def test_database_that_is_away_is_503_and_worth_a_retry(tmp_path: Path) -> None:
    database = open_database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    from api.app import create_app
    from gistmill.queue import Bells

    app = create_app(api_settings(tmp_path / "home"), database, Bells(NO_REDIS, "gistmill:"))
    # Without its start-up, which needs the database, the service is in the state of one whose database went away.
    client = TestClient(app, base_url="http://localhost", headers={"Authorization": f"Bearer {TOKEN}"})
    for answer in (
        client.get("/v1/jobs"),
        client.post("/v1/jobs", json={"dataset": "calls"}),
        client.post("/v1/query", json={"sql": "select 1"}),
        client.get("/v1/workers"),
    ):
        assert assert_problem(answer, 503, "store_unavailable")["retryable"] is True
        assert answer.headers["retry-after"] == "1"
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"database": False, "redis": False, "consuming": False})


def test_our_own_mistakes_are_500_with_a_request_id(
    sqlite_only: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a secret of the server")

    monkeypatch.setattr("gistmill.readback.list_workers", broken)
    with running_api(sqlite_only, api_settings(tmp_path / "home")) as client:
        body = assert_problem(client.get("/v1/workers"), 500, "internal_error")
    assert "secret" not in json.dumps(body)


def test_jobs_are_listed_shown_and_cancelled(api: TestClient, database: Database) -> None:
    done = write_history(database, failed=frozenset({1}))
    queued = write_history(database, state="queued", name="more")
    page = api.get("/v1/jobs?limit=1").json()
    assert ([job["id"] for job in page["data"]], page["has_more"]) == ([queued.job_id], True)
    assert [job["id"] for job in api.get(f"/v1/jobs?after={page['next']}").json()["data"]] == [done.job_id]
    job = api.get(f"/v1/jobs/{done.job_id}").json()
    assert job["counts"] == {
        "items": 6,
        "distinct": 6,
        "generated": 5,
        "shared": 0,
        "succeeded": 5,
        "failed": 1,
        "not_run": 0,
        "truncated": 0,
        "cut_off": 0,
    }
    answer = api.post(f"/v1/jobs/{queued.job_id}/cancel")
    assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    assert_problem(api.post(f"/v1/jobs/{done.job_id}/cancel"), 409, "job_is_over")


def test_results_and_errors_are_lines_that_can_be_resumed(api: TestClient, database: Database) -> None:
    history = write_history(database, failed=frozenset({1}))
    answer = api.get(f"/v1/jobs/{history.job_id}/results")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["row"] for line in lines] == [0, 2, 3, 4, 5]
    rest = api.get(f"/v1/jobs/{history.job_id}/results", params={"after": lines[1]["cursor"], "limit": 2}).text
    assert [json.loads(line) for line in rest.splitlines()] == lines[2:4]
    by_arrival = api.get(f"/v1/jobs/{history.job_id}/results?order=arrival").text
    assert [json.loads(line)["row"] for line in by_arrival.splitlines()] == [4, 5, 2, 3, 0]
    errors = api.get(f"/v1/jobs/{history.job_id}/errors").text
    assert [json.loads(line)["code"] for line in errors.splitlines()] == ["input_too_long"]
    assert api.get(f"/v1/jobs/{history.job_id}/results?limit=0").text == ""
    assert_problem(api.get(f"/v1/jobs/{history.job_id}/results?after=nonsense"), 422, "invalid_input")
    assert_problem(api.get(f"/v1/jobs/{history.job_id}/errors?after=a:1:2"), 422, "invalid_input")


def test_stream_that_follows_a_job_ends_when_the_job_does(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.routes.jobs.KEEP_ALIVE_S", 0.0)
    monkeypatch.setattr("api.routes.jobs.POLL_S", 0.02)
    history = write_history(database, items=3, state="running")
    with (
        listening_api(database, settings) as client,
        client.stream("GET", f"/v1/jobs/{history.job_id}/results?follow=true") as answer,
    ):
        lines = answer.iter_lines()
        assert [json.loads(next(lines))["row"] for _ in range(3)] == [1, 2, 0]
        assert next(lines) == ""
        database.transact(lambda connection: connection.execute(update(jobs).values(state="completed")))
        assert set(lines) <= {""}


def test_sql_reads_the_views_and_nothing_else(api: TestClient, database: Database) -> None:
    write_history(database)
    answer = api.post("/v1/query", json={"sql": "select item_id, summary from v_summaries order by 1", "limit": 1})
    assert answer.json() == {"columns": ["item_id", "summary"], "rows": [["call-0", "Secret 0 of 1."]], "truncated": True}
    for attack in ("select * from dialogues", "delete from results", "drop view v_jobs", "select 1; select 2"):
        body = assert_problem(api.post("/v1/query", json={"sql": attack}), 422, "query_refused")
        assert "database refused" in str(body["detail"])
    with database.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM results")) == 6


def test_server_s_row_limit_holds_whatever_is_asked(sqlite_only: Database, tmp_path: Path) -> None:
    write_history(sqlite_only)
    with running_api(sqlite_only, api_settings(tmp_path / "home", query_max_rows=2, query_timeout_s=0.3)) as client:
        answer = client.post("/v1/query", json={"sql": "select 1 from v_summaries", "limit": 99}).json()
        assert (len(answer["rows"]), answer["truncated"]) == (2, True)
        endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
        assert_problem(client.post("/v1/query", json={"sql": endless}), 422, "query_timeout")


def test_models_and_workers_are_listed(api: TestClient, database: Database) -> None:
    assert api.get("/v1/workers").json()["data"] == []
    register(database, 1, {"architecture": "T5"}, name="mine", digest="d" * 64, weight_bytes=1, source="hub:acme/mine")
    assert [model["name"] for model in api.get("/v1/models").json()["data"] if model["source"] != "built-in"] == ["mine"]
    for reference in ("mine", "mine@1", "acme/mine"):
        assert api.get(f"/v1/models/{reference}").json()["version"] == 1

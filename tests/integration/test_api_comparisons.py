"""Comparisons over HTTP and through the client: read, streamed, scored anew, refused with reasons, and of one tenant only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from gistmill.client import Client
from gistmill.db.session import Database
from gistmill.db.tables import jobs, tenants
from gistmill.errors import DataMismatch, InvalidDataset, InvalidInput, InvalidSpec
from tests.support.api import TOKEN, api_settings, listening_api, running_api
from tests.support.evaluations import Lab, dialogues, echo, first_words
from tests.support.rows import add

RESULTS = "gold,full,lora\n" + "".join(f"Ann asks for part {n}.,Ann asks part {n}.,Ben\n" for n in range(5))


@pytest.fixture
def lab(sqlite_only: Database, tmp_path: Path) -> Lab:
    """A database with two models, the second of which is silent about a dialogue."""
    made = Lab(sqlite_only, tmp_path)
    made.add("one", first_words)
    made.add("two", lambda unit: None if "part 4" in unit.text else echo(unit))
    return made


@pytest.fixture
def api(lab: Lab, tmp_path: Path) -> Iterator[TestClient]:
    with running_api(lab.database, api_settings(tmp_path / "home")) as client:
        yield client


@pytest.fixture
def client(lab: Lab, tmp_path: Path) -> Iterator[Client]:
    with listening_api(lab.database, api_settings(tmp_path / "home")) as http, Client(str(http.base_url), TOKEN) as made:
        yield made


def lines(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_evaluation_is_shown_listed_and_streamed(lab: Lab, api: TestClient) -> None:
    view = lab.evaluate(lab.load(dialogues(6)).id, "one", "two")
    base = f"/v1/comparisons/{view.id}"
    assert api.get(base).json() == view.model_dump(mode="json")
    assert [found["id"] for found in api.get("/v1/comparisons").json()["data"]] == [view.id]
    every = lines(api.get(f"{base}/items"))
    assert [line["row"] for line in every] == list(range(6))
    assert lines(api.get(f"{base}/items", params={"after": every[1]["cursor"], "limit": 2})) == every[2:4]
    worst = lines(api.get(f"{base}/items", params={"order": "worst"}))
    assert [line["delta"] for line in worst] == sorted(line["delta"] for line in every if line["delta"] is not None)
    assert lines(api.get(f"{base}/items", params={"order": "worst", "limit": 2, "after": worst[0]["cursor"]})) == worst[1:3]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"order": "worst", "by": "rouge9"}, 422, "no measure"),
        ({"system": "three"}, 422, "no system"),
        ({"after": "x"}, 422, "not a cursor"),
        ({"order": "worst", "after": "x"}, 422, "not a cursor"),
        ({"order": "sideways"}, 422, "order"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_before_the_stream_begins(
    lab: Lab, api: TestClient, query: dict[str, str], status: int, words: str
) -> None:
    view = lab.evaluate(lab.load(dialogues(2)).id, "one")
    answer = api.get(f"/v1/comparisons/{view.id}/items", params=query)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text


def test_rescore_is_accepted_once_and_refused_with_a_code(lab: Lab, api: TestClient) -> None:
    view = lab.evaluate(lab.load(dialogues(3)).id, "one")
    path, body = f"/v1/comparisons/{view.id}/rescore", {"set": {"stemming": False}}
    first = api.post(path, json=body, headers={"Idempotency-Key": "k"})
    again = api.post(path, json=body, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code, again.headers["Idempotent-Replay"]) == (201, 200, "true")
    assert first.json()["id"] == again.json()["id"]
    other = lab.evaluate(lab.load(dialogues(4), name="other").id, "one")
    refused: tuple[tuple[dict[str, Any], int, str], ...] = (
        ({"also": [other.id]}, 409, "data_mismatch"),
        ({"set": {"models": ["two"]}}, 422, "invalid_spec"),
        ({"set": {"metrics": ["../x"]}}, 422, "invalid_spec"),
        ({"also": ["job_nope"]}, 404, "unknown_comparison"),
    )
    for wrong, status, code in refused:
        answer = api.post(path, json=wrong)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert api.post("/v1/comparisons/job_nope/rescore", json={}).status_code == 404


def test_another_tenants_evaluation_is_not_there_and_not_in_the_views(lab: Lab, api: TestClient) -> None:
    view = lab.evaluate(lab.load(dialogues(3)).id, "one", "two")
    counts = (
        "select (select count(*) from v_scores) s, (select count(*) from v_rouge) r, (select count(*) from v_comparisons) c"
    )
    counts += ", (select count(*) from v_side_by_side) b"
    assert all(api.post("/v1/query", json={"sql": counts}).json()["rows"][0])
    other = lab.database.transact(lambda connection: add(connection, tenants, name="other"))
    lab.database.transact(lambda connection: connection.execute(update(jobs).values(tenant_key=other)))
    assert api.get("/v1/comparisons").json()["data"] == []
    for path in ("", "/items", "/items?order=worst"):
        answer = api.get(f"/v1/comparisons/{view.id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_comparison")
    assert api.post(f"/v1/comparisons/{view.id}/rescore", json={}).status_code == 404
    assert api.post("/v1/query", json={"sql": counts}).json()["rows"] == [[0, 0, 0, 0]]


def test_client_evaluates_models_and_ranks_scores_anew_and_judges(lab: Lab, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in dialogues(6)))
    comparison = client.evaluate(path, models=["one", "echo=two"], limit=5, resamples=200)
    lab.work()
    view = comparison.refresh().view
    assert (view.state, view.select, view.counts) == ("completed", "[0:5]", {"scored": 4, "failed": 1})
    assert "echo" in comparison.table()
    assert [case.delta for case in comparison.worst(limit=2)] == sorted(
        case.delta for case in comparison.items() if case.delta is not None
    )[:2]
    assert comparison.gate("echo.rouge1 - one.rouge1 > -100 @95%").is_met
    new = comparison.rescore(references="each")
    lab.work()
    assert new.refresh().view.signature.count("references:each") == 1


def test_client_evaluates_columns_of_a_file(lab: Lab, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text(RESULTS)
    comparison = client.evaluate(
        predictions=file, prediction_columns=["full", "lora"], reference_columns=["gold"], resamples=200
    )
    lab.work()
    view = comparison.refresh().view
    assert [(system.name, system.column, system.model) for system in view.systems] == [
        ("full", "full", None),
        ("lora", "lora", None),
    ]
    assert view.systems[0].scores["rouge1"].fmeasure == pytest.approx(2 * 4 / (4 + 5))


def test_what_is_wrong_is_found_before_anything_is_uploaded(lab: Lab, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text(RESULTS)
    known = len(list(client.list_datasets()))
    for error, words, arguments in (
        (InvalidInput, "Name data and the models", {}),
        (InvalidInput, "describe a file of predictions", {"data": file, "models": ["one"], "case_column": "x"}),
        (InvalidInput, "selected twice", {"data": f"{file}[0:1]", "models": ["one"], "limit": 2}),
        (InvalidSpec, "baseline 'x'", {"data": file, "models": ["one"], "baseline": "x"}),
        (InvalidSpec, "no name of a metric", {"data": file, "models": ["one"], "metrics": ["/x"]}),
        (InvalidDataset, "no column 'peft'", {"predictions": file, "prediction_columns": ["peft"]}),
    ):
        with pytest.raises(error, match=words):
            client.evaluate(**arguments)  # type: ignore[arg-type]
    assert len(list(client.list_datasets())) == known


def test_columns_of_another_length_than_the_data_are_refused(lab: Lab, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text(RESULTS)
    data = lab.load(dialogues(4))
    with pytest.raises(InvalidDataset, match="have 5 rows and the data 'data' has 4"):
        client.evaluate(data.id, predictions=file, prediction_columns=["full"], reference_columns=["gold"])
    first = lab.evaluate(data.id, "one")
    other = lab.evaluate(lab.load(dialogues(3), name="other").id, "one")
    with pytest.raises(DataMismatch):
        client.comparison(first.id).rescore(also=[other.id])

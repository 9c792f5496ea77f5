"""Prompts over HTTP: added once, shown with a row in them, counted as workers count, and refused with reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from gistmill.client import Client
from gistmill.db.session import Database, open_database
from gistmill.errors import InvalidInput
from models_store.builtin.dialogues import generate
from models_store.catalog import DIRECTORY
from tests.support.api import TOKEN, api_settings, listening_api, running_api
from tests.support.databases import SQLiteFiles

ROWS: list[dict[str, Any]] = [
    {"id": f"r{number}", "dialogue": example.dialogue, "summary": example.summary}
    for number, example in enumerate(generate(30, seed=5, split="held_out"))
]
ROWS += [
    {"id": "bare", "dialogue": "Ann: nobody wrote a summary of this"},
    {"dialogue": "Änne: {dialogue} 你好 🙂", "summary": "x"},
    {"dialogue": "x" * 100_000, "summary": "x"},
]
SHOTS = {"name": "my-shots", "kind": "few-shot", "dataset": "train", "select": "[10,20]"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, sqlite_files: SQLiteFiles) -> Iterator[TestClient]:
    """A service with data, which these tests add prompts of different names to."""
    directory = tmp_path_factory.mktemp("prompts")
    database: Database = open_database(sqlite_files.make_migrated(directory))
    with running_api(database, api_settings(directory / "home")) as client:
        content = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
        assert client.post("/v1/datasets", content=content, params={"filename": "train.jsonl"}).status_code == 201
        yield client
    database.close()


def render(api: TestClient, **body: Any) -> Any:
    answer = api.post("/v1/prompts/render", json={"prompt": "instruction", "dataset": "train"} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_prompt_is_added_once_and_read_back(shared: TestClient) -> None:
    mine = SHOTS | {"name": "added-once"}
    first = shared.post("/v1/prompts", json=mine)
    again = shared.post("/v1/prompts", json=mine)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert [example["row"] for example in first.json()["examples"]] == [10, 20]
    for reference in ("added-once", "added-once@1"):
        assert shared.get(f"/v1/prompts/{reference}").json() == first.json()
    names = [view["name"] for view in shared.get("/v1/prompts").json()["data"]]
    assert names[:3] == ["none", "instruction", "instruction-dialogue"]
    assert "added-once" in names


def test_render_shows_the_prompt_of_a_real_row(shared: TestClient) -> None:
    shared.post("/v1/prompts", json=SHOTS)
    view = render(shared, prompt="my-shots", row=31)
    assert (view["prompt"], view["row"], view["id"], view["tokens"]) == ("my-shots@1", 31, "32", None)
    parts = [f"Dialogue:\n{ROWS[row]['dialogue']}\nSummarize the dialogue.\n{ROWS[row]['summary']}\n\n" for row in (10, 20)]
    assert view["text"] == "".join(parts) + f"Dialogue:\n{ROWS[31]['dialogue']}\nSummarize the dialogue.\n"


def test_tokens_are_those_that_a_worker_reads(shared: TestClient) -> None:
    shared.post("/v1/prompts", json=SHOTS)
    # As workers/engine/checkpoint.py loads it, in Python; the service has the `tokenizers` library alone.
    of_worker = AutoTokenizer.from_pretrained(DIRECTORY / "gist-tiny", local_files_only=True)
    for prompt, row in (("my-shots", 3), ("none", 31), ("instruction", 0)):
        view = render(shared, prompt=prompt, row=row, tokens=True, model="gist-tiny")
        assert view["token_ids"] == of_worker([view["text"]])["input_ids"][0]
        assert view["tokens"] == of_worker.convert_ids_to_tokens(view["token_ids"])
        assert view["decoded"] == of_worker.decode(view["token_ids"], skip_special_tokens=True)
        assert (view["tokens"][-1], view["budget"]) == ("</s>", 2048)


def test_round_trip_keeps_the_words_and_loses_line_breaks(shared: TestClient) -> None:
    view = render(shared, prompt="instruction", row=0, tokens=True, model="gist-tiny")
    assert view["decoded"].split() == view["text"].split()
    assert "\n" in view["text"]
    assert "\n" not in view["decoded"]


def test_budget_of_examples_is_checked_with_figures(shared: TestClient) -> None:
    body = SHOTS | {"name": "counted", "model": "gist-tiny", "max_input_tokens": 20}
    answer = shared.post("/v1/prompts", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    words = answer.json()["detail"].split()
    assert words[:5] == ["The", "2", "examples", "alone", "take"]
    count = int(words[5])
    assert "may have 20" in answer.json()["detail"]
    assert shared.get("/v1/prompts/counted").status_code == 404
    assert shared.post("/v1/prompts", json=body | {"max_input_tokens": count}).status_code == 422
    assert shared.post("/v1/prompts", json=body | {"max_input_tokens": count + 1}).status_code == 201


@pytest.mark.parametrize(
    ("body", "status", "code", "said"),
    [
        ({"template": ""}, 422, "invalid_input", "empty"),
        ({"template": "no place"}, 422, "invalid_input", "no place"),
        ({"template": "{dialogue} and {dialogue}"}, 422, "invalid_input", "2 places"),
        ({"template": "x" * 100_001 + "{dialogue}"}, 422, "invalid_input", "100000 are allowed"),
        ({"template": "\x00{dialogue}"}, 422, "invalid_input", "NUL"),
        ({"template": "\ud800{dialogue}"}, 422, "invalid_input", "surrogate"),
        ({"template": "{dialogue}", "name": "../../etc/passwd"}, 422, "invalid_name", "not a name"),
        ({"template": "{dialogue}", "name": "a/b"}, 422, "invalid_name", "not a name"),
        ({"template": "{dialogue}", "name": "instruction"}, 409, "name_taken", "built-in"),
        ({"template": "{dialogue}", "kind": "few-shot", "dataset": "train"}, 422, "invalid_input", "either a template"),
        ({"template": "{dialogue}", "select": "[0]"}, 422, "invalid_input", "one-shot or few-shot"),
        ({}, 422, "invalid_input", "either a template"),
        ({"kind": "few-shot"}, 422, "invalid_input", "together"),
        ({"kind": "many-shot", "dataset": "train"}, 422, "invalid_input", "/kind"),
        ({"kind": "few-shot", "dataset": "train"}, 422, "invalid_selection", "Name the rows"),
        ({"kind": "few-shot", "dataset": "train", "select": "[33]"}, 422, "invalid_selection", "rows 0 to 32"),
        ({"kind": "few-shot", "dataset": "train", "select": "[1"}, 422, "invalid_selection", "']' is missing"),
        ({"kind": "one-shot", "dataset": "train", "select": "[0:2]"}, 422, "invalid_selection", "chooses 2"),
        ({"kind": "few-shot", "dataset": "train", "select": "[29:31]"}, 422, "invalid_dataset", "row 30 (id 'bare')"),
        ({"kind": "few-shot", "dataset": "train", "select": "[0,32]"}, 422, "invalid_input", "100000 are allowed"),
        ({"kind": "few-shot", "dataset": "trian", "select": "[0]"}, 404, "unknown_dataset", "Did you mean 'train'"),
        ({"template": "{dialogue}", "model": "nosuch"}, 404, "unknown_model", "nosuch"),
    ],
)
def test_prompt_that_cannot_be_used_is_refused_and_not_kept(
    shared: TestClient, body: dict[str, Any], status: int, code: str, said: str
) -> None:
    # Not by the client's own encoder, which refuses half of a surrogate pair.
    content = json.dumps({"name": "refused"} | body)
    answer = shared.post("/v1/prompts", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert said in answer.json()["detail"]
    assert shared.get("/v1/prompts/refused").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"row": 33}, 422, "invalid_selection"),
        ({"row": -1}, 422, "invalid_input"),
        ({"row": 10**30}, 422, "invalid_input"),
        ({"prompt": "few-shot"}, 404, "unknown_prompt"),
        ({"prompt": "a" * 301}, 422, "invalid_input"),
        ({"dataset": "nosuch"}, 404, "unknown_dataset"),
        ({"tokens": True, "model": "nosuch"}, 404, "unknown_model"),
        ({"tokens": True, "max_input_tokens": 0}, 422, "invalid_input"),
        ({"nosuch": 1}, 422, "invalid_input"),
    ],
)
def test_row_that_cannot_be_rendered_is_refused(shared: TestClient, body: dict[str, Any], status: int, code: str) -> None:
    answer = shared.post("/v1/prompts/render", json={"prompt": "none", "dataset": "train"} | body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_page_that_does_not_exist_is_refused(shared: TestClient) -> None:
    assert shared.get("/v1/prompts", params={"after": "nonsense"}).json()["code"] == "invalid_input"
    assert shared.get("/v1/prompts/..%2F..%2Fetc").status_code == 404


def test_client_adds_lists_and_renders(tmp_path: Path, sqlite_only: Database) -> None:
    train = tmp_path / "train.jsonl"
    train.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS))
    with (
        listening_api(sqlite_only, api_settings(tmp_path / "home")) as http,
        Client(str(http.base_url), TOKEN) as client,
    ):
        view = client.add_prompt("shots", kind="few-shot", data=f"{train}[1,2]", model="gist-tiny")
        assert client.add_prompt("shots", kind="few-shot", data=train, select="[1,2]") == view
        assert client.get_prompt("shots") == view
        assert [prompt.name for prompt in client.prompts()] == ["none", "instruction", "instruction-dialogue", "shots"]
        seen = client.render("shots", train, row=4, tokens=True, model="gist-tiny")
        assert seen.text.endswith(f"Dialogue:\n{ROWS[4]['dialogue']}\nSummarize the dialogue.\n")
        assert seen.token_ids
        for wrong in (
            {},
            {"template": "{dialogue}", "kind": "few-shot", "data": train},
            {"kind": "few-shot"},
            {"kind": "few-shot", "data": f"{train}[1]", "select": "[2]"},
            {"kind": "few-shot", "data": tmp_path / "nosuch.jsonl", "select": "[2]"},
        ):
            with pytest.raises(InvalidInput):
                client.add_prompt("wrong", **wrong)
        with pytest.raises(InvalidInput, match="one row"):
            client.render("shots", f"{train}[1]")

"""Models over HTTP: uploaded file by file, published whole or not at all, handed to workers by digest."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from gistmill.db.session import Database
from models_store.fetch import fetch
from models_store.store import Store
from tests.support.api import TOKEN, api_settings, listening_api, running_api


def safetensors(value: int) -> bytes:
    """Return a file with one tensor of four bytes."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<I", value)


def model_files(value: int = 7) -> dict[str, bytes]:
    config = {"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]}
    return {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}", "model.safetensors": safetensors(value)}


def begin(api: TestClient, name: str = "mine") -> str:
    answer = api.post("/v1/models/uploads", json={"name": name})
    assert answer.status_code == 201
    return str(answer.json()["upload"])


def upload(api: TestClient, files: dict[str, bytes], *, name: str = "mine") -> str:
    started = begin(api, name)
    for path, content in files.items():
        assert api.put(f"/v1/models/uploads/{started}/files/{path}", content=content).status_code == 204
    return started


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def api(sqlite_only: Database, home: Path) -> Iterator[TestClient]:
    with running_api(sqlite_only, api_settings(home)) as client:
        yield client


def code_of(answer) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def left_over(home: Path) -> list[Path]:
    return [*(home / "models" / "incoming").glob("*"), *(home / "uploads").glob("*")]


def test_uploaded_files_become_a_version(api: TestClient, home: Path) -> None:
    for value, version in ((7, 1), (8, 2), (7, 1)):
        answer = api.post(f"/v1/models/uploads/{upload(api, model_files(value))}/publish", json={})
        assert answer.status_code == 201
        model = answer.json()
        assert (model["name"], model["version"], model["parameters"], model["dtype"]) == ("mine", version, 1, "float32")
    manifest = api.get(f"/v1/models/by-digest/{model['digest']}/manifest").json()
    assert {file["path"] for file in manifest["files"]} == set(model_files())
    file = api.get(f"/v1/models/by-digest/{model['digest']}/files/model.safetensors")
    assert file.content == safetensors(7)
    assert left_over(home) == []


def test_model_whose_files_the_store_lost_is_unknown(api: TestClient, home: Path) -> None:
    digest = api.post(f"/v1/models/uploads/{upload(api, model_files())}/publish", json={}).json()["digest"]
    shutil.rmtree(home / "models" / "models" / digest)
    for what in ("manifest", "files/config.json"):
        assert code_of(api.get(f"/v1/models/by-digest/{digest}/{what}")) == (404, "unknown_model")


def test_published_upload_is_over(api: TestClient) -> None:
    started = upload(api, model_files())
    assert api.post(f"/v1/models/uploads/{started}/publish", json={}).status_code == 201
    assert code_of(api.post(f"/v1/models/uploads/{started}/publish", json={})) == (404, "not_found")
    assert code_of(api.put(f"/v1/models/uploads/{started}/files/config.json", content=b"")) == (404, "not_found")


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a..b", "-x", "x" * 101])
def test_model_name_that_could_leave_the_store_is_refused(api: TestClient, name: str) -> None:
    assert code_of(api.post("/v1/models/uploads", json={"name": name})) == (422, "invalid_name")
    assert code_of(api.post("/v1/models", json={"hub_id": "acme/x", "name": name or "/"})) == (422, "invalid_name")


@pytest.mark.parametrize("path", ["..%2Fconfig.json", "%2Fetc%2Fpasswd", "a/config.json", "a..b", "..x", "x.safetensors%00"])
def test_file_name_that_could_leave_the_upload_is_refused(api: TestClient, home: Path, path: str) -> None:
    started = begin(api)
    assert code_of(api.put(f"/v1/models/uploads/{started}/files/{path}", content=b"x")) == (422, "invalid_name")
    assert [path.name for path in (home / "models" / "incoming" / started).iterdir()] == [".name"]


def test_files_that_are_no_part_of_a_model_are_let_go(api: TestClient, home: Path) -> None:
    others = dict.fromkeys((".name", ".gitattributes", "run.py", "tf_model.h5", "training args.txt"), b"import os")
    started = upload(api, others | model_files())
    kept = {path.name: path.read_bytes() for path in (home / "models" / "incoming" / started).iterdir()}
    assert kept == model_files() | {".name": b"mine", "tf_model.h5": b""}
    model = api.post(f"/v1/models/uploads/{started}/publish", json={}).json()
    assert (home / "models" / "models" / model["digest"]).is_dir()
    assert not list((home / "models").rglob("tf_model.h5"))


@pytest.mark.parametrize("started", ["upload-" + "0" * 32, "..", "%2e%2e", "..%2f..%2fmodels"])
def test_unknown_upload_is_not_found(api: TestClient, started: str) -> None:
    assert api.put(f"/v1/models/uploads/{started}/files/config.json", content=b"x").status_code in (404, 405)
    assert api.post(f"/v1/models/uploads/{started}/publish", json={}).status_code in (404, 405)


def test_pickles_and_broken_models_are_refused_and_nothing_is_left(api: TestClient, home: Path) -> None:
    whole = model_files()
    cases = (
        ({}, "model_unreadable"),
        ({"config.json": whole["config.json"], "model.pkl": b"x"}, "unsafe_model"),
        ({"config.json": whole["config.json"], "pytorch_model.bin": b"x"}, "unsafe_model"),
        ({name: content for name, content in whole.items() if name != "model.safetensors"}, "model_unreadable"),
        ({name: content for name, content in whole.items() if name != "tokenizer.json"}, "model_unreadable"),
        (whole | {"model.safetensors": safetensors(1)[:-1]}, "model_unreadable"),
        (whole | {"config.json": b'{"is_encoder_decoder": false}'}, "unsupported_model"),
        (whole | {"config.json": b'{"is_encoder_decoder": true, "auto_map": {}}'}, "unsupported_model"),
    )
    for files, code in cases:
        assert code_of(api.post(f"/v1/models/uploads/{upload(api, files)}/publish", json={})) == (422, code)
    assert left_over(home) == []
    assert [model for model in api.get("/v1/models").json()["data"] if model["source"] != "built-in"] == []


def test_manifest_that_does_not_fit_the_files_is_refused(api: TestClient) -> None:
    published = api.post(f"/v1/models/uploads/{upload(api, model_files())}/publish", json={}).json()
    manifest = api.get(f"/v1/models/by-digest/{published['digest']}/manifest").content
    started = upload(api, model_files(value=8) | {"manifest.json": manifest})
    assert code_of(api.post(f"/v1/models/uploads/{started}/publish", json={})) == (422, "digest_mismatch")


def test_file_larger_than_allowed_is_refused(sqlite_only: Database, home: Path) -> None:
    def in_pieces() -> Iterator[bytes]:
        yield from [b"x" * 60, b"x" * 60]

    with running_api(sqlite_only, api_settings(home, max_upload_bytes=100)) as api:
        started = begin(api)
        for body in (b"x" * 101, in_pieces()):
            answer = api.put(f"/v1/models/uploads/{started}/files/model.safetensors", content=body)
            assert code_of(answer) == (413, "too_large")
        assert [path.name for path in (home / "models" / "incoming" / started).iterdir()] == [".name"]


def test_hub_that_cannot_be_reached_is_said_so(api: TestClient) -> None:
    assert code_of(api.post("/v1/models", json={"hub_id": "acme/nosuch"})) == (503, "model_unavailable")
    assert code_of(api.post("/v1/models", json={"hub_id": "../etc"})) == (422, "invalid_name")


def test_worker_fetches_a_model_by_digest(sqlite_only: Database, home: Path, tmp_path: Path) -> None:
    with listening_api(sqlite_only, api_settings(home)) as api:
        digest = api.post(f"/v1/models/uploads/{upload(api, model_files())}/publish", json={}).json()["digest"]  # type: ignore[arg-type]
        directory = fetch(Store(tmp_path / "worker"), digest, base_url=str(api.base_url), token=TOKEN)
    assert (directory / "model.safetensors").read_bytes() == safetensors(7)


def test_only_files_of_known_models_are_handed_out(api: TestClient) -> None:
    digest = api.post(f"/v1/models/uploads/{upload(api, model_files())}/publish", json={}).json()["digest"]
    for path in ("manifest.json", "..%2f..%2fgistmill.db", "nosuch", ".name"):
        assert api.get(f"/v1/models/by-digest/{digest}/files/{path}").status_code == 404
    for other in ("0" * 64, "..", "%2e%2e%2fx"):
        assert api.get(f"/v1/models/by-digest/{other}/files/config.json").status_code == 404

"""Adapters over HTTP, from the client and from the command line: added, named, removed, exported, published by workers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from starlette.testclient import TestClient

from gistmill.client import Client
from gistmill.db.session import Database
from gistmill.errors import (
    Conflict,
    DigestMismatch,
    GistmillError,
    InvalidInput,
    LeaseLost,
    ModelUnreadable,
    NameTaken,
    UnknownModel,
    UnsafeModel,
    UnsupportedModel,
)
from gistmill.specs import combined_digest
from gistmill.transport import problem
from models_store import converting
from models_store.fetch import fetch
from models_store.store import Store
from tests.support.adapters import make_adapter
from tests.support.api import TOKEN, api_settings, listening_api, running_api
from tests.support.checkpoints import make_checkpoint
from tests.support.cli import Done, Home
from tests.support.hands import claimed
from tests.support.jobs import make_job

NAME = "encoder.block.0.layer.0.SelfAttention.q.weight"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = make_checkpoint(tmp_path / "base")
    numbers = np.random.default_rng(0)
    save_file({NAME: numbers.normal(size=(6, 8)).astype(np.float32)}, directory / "model.safetensors")
    return directory


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return make_adapter(base, tmp_path / "adapter", target_modules=["q"])


@pytest.fixture
def api(sqlite_only: Database, home: Path) -> Iterator[TestClient]:
    with running_api(sqlite_only, api_settings(home)) as client:
        yield client


@pytest.fixture
def client(sqlite_only: Database, home: Path) -> Iterator[Client]:
    """A Python client of a service that listens, with nothing added."""
    with listening_api(sqlite_only, api_settings(home)) as listening, Client(str(listening.base_url), TOKEN) as client:
        yield client


@pytest.fixture
def stocked(client: Client, base: Path, adapter: Path) -> Client:
    client.add_model(base, name="small")
    client.add_model(adapter, name="lora", base="small")
    return client


def upload(api: TestClient, directory: Path, *, name: str) -> str:
    started = str(api.post("/v1/models/uploads", json={"name": name}).json()["upload"])
    for path in directory.iterdir():
        assert api.put(f"/v1/models/uploads/{started}/files/{path.name}", content=path.read_bytes()).status_code == 204
    return started


def publish(api: TestClient, directory: Path, *, name: str, **body: Any) -> Any:
    return api.post(f"/v1/models/uploads/{upload(api, directory, name=name)}/publish", json=body)


def refused(answer: Any) -> GistmillError:
    """The error of an answer, as a worker's or a user's transport raises it."""
    assert answer.is_error
    return problem(answer)


def test_adapter_is_added_with_its_base_and_meant_by_reference(stocked: Client) -> None:
    view = stocked.get_model("small+lora@1")
    assert (view.name, view.version, view.kind, view.base, view.source) == ("lora", 1, "adapter", "small@1", "upload")
    assert view == stocked.get_model("lora")
    listed = {(view.name, view.kind, view.base) for view in stocked.list_models()}
    assert {("small", "model", None), ("lora", "adapter", "small@1")} <= listed
    with pytest.raises(InvalidInput, match=r"made for small@1, not for gist-tiny@1\. Write small@1\+lora@1"):
        stocked.get_model("gist-tiny+lora")


def test_adapter_that_cannot_be_used_is_refused_and_nothing_is_left(
    client: Client, base: Path, adapter: Path, home: Path, tmp_path: Path
) -> None:
    client.add_model(base, name="small")
    client.add_model(adapter, name="lora", base="small")
    before = sorted(path.name for path in (home / "models" / "models").iterdir())
    pickled = Path(shutil.copytree(adapter, tmp_path / "pickled"))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    foreign = make_adapter(base, tmp_path / "foreign", target_modules=["q"], r=3)
    (foreign / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    for source, name, named, kind, match in (
        (adapter, "a", None, UnsupportedModel, "with --base"),
        (adapter, "a", "nosuch", UnknownModel, "There is no model 'nosuch'"),
        (adapter, "a", "lora", UnsupportedModel, "'lora' is itself an adapter"),
        (adapter, "a", "small+lora", UnsupportedModel, "itself an adapter"),
        (adapter, "a", "gist-tiny", ModelUnreadable, "does not fit its base"),
        (adapter, "small", "small", NameTaken, "name of a model already"),
        (pickled, "a", "small", UnsafeModel, "--convert"),
        (foreign, "a", "small", ModelUnreadable, "does not fit its base"),
    ):
        with pytest.raises(kind, match=match):
            client.add_model(source, name=name, base=named)
    assert sorted(path.name for path in (home / "models" / "models").iterdir()) == before
    assert list((home / "models" / "incoming").iterdir()) == []


def test_worker_fetches_base_and_adapter_by_their_digests(stocked: Client, base: Path, adapter: Path, tmp_path: Path) -> None:
    view = stocked.get_model("lora")
    store = Store(tmp_path / "worker")
    assert view.base_digest is not None
    for digest, source, name in (
        (view.base_digest, base, "model.safetensors"),
        (view.digest, adapter, "adapter_model.safetensors"),
    ):
        directory = fetch(store, digest, base_url=stocked.transport.url, token=TOKEN)
        assert (directory / name).read_bytes() == (source / name).read_bytes()
    assert store.get_manifest(view.digest).base_digest == view.base_digest


def test_alias_is_set_moved_and_deleted(stocked: Client) -> None:
    assert stocked.set_alias("live", "small+lora@1").aliases == ["live"]
    assert stocked.get_model("live").name == "lora"
    stocked.set_alias("live", "small")
    assert stocked.get_model("live").name == "small"
    with pytest.raises(NameTaken):
        stocked.set_alias("small", "lora")
    with pytest.raises(GistmillError, match="is not a name"):
        stocked.set_alias("../x", "lora")
    stocked.delete_alias("live")
    with pytest.raises(UnknownModel):
        stocked.get_model("live")


def test_removed_version_is_gone_for_users_and_there_for_workers(stocked: Client, tmp_path: Path) -> None:
    view = stocked.get_model("lora")
    with pytest.raises(Conflict, match="The adapter lora@1 stands on small@1"):
        stocked.remove_model("small@1")
    assert stocked.remove_model("lora@1").removed_at is not None
    with pytest.raises(UnknownModel):
        stocked.get_model("small+lora")
    assert fetch(Store(tmp_path / "worker"), view.digest, base_url=stocked.transport.url, token=TOKEN).is_dir()
    with pytest.raises(InvalidInput):
        stocked.remove_model("small")
    assert stocked.remove_model("small@1").name == "small"


def test_removed_built_in_model_does_not_come_back_at_the_next_start(sqlite_only: Database, home: Path) -> None:
    with running_api(sqlite_only, api_settings(home)) as api:
        assert api.delete("/v1/models/gist-tiny@1").status_code == 200
    with running_api(sqlite_only, api_settings(home)) as api:
        assert "gist-tiny" not in {model["name"] for model in api.get("/v1/models").json()["data"]}


def test_lineage_names_what_a_version_was_made_from(stocked: Client) -> None:
    assert [(view.name, view.kind) for view in stocked.list_lineage("small+lora")] == [("lora", "adapter"), ("small", "model")]


def test_export_writes_the_files_of_what_is_named(stocked: Client, base: Path, adapter: Path, tmp_path: Path) -> None:
    for reference, source in (("small", base), ("small+lora", adapter)):
        directory = stocked.export_model(reference, tmp_path / "out" / reference)
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
            path.name: path.read_bytes() for path in source.iterdir()
        }
        assert [path.name for path in directory.parent.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(InvalidInput, match="is not an empty directory"):
        stocked.export_model("small", base)
    (tmp_path / "empty").mkdir()
    assert (stocked.export_model("small", tmp_path / "empty") / "config.json").is_file()
    with pytest.raises(UnknownModel):
        stocked.export_model("nosuch", tmp_path / "nosuch")
    assert not (tmp_path / "nosuch").exists()


def test_export_of_a_changed_file_leaves_nothing(stocked: Client, home: Path, tmp_path: Path) -> None:
    digest = stocked.get_model("small").digest
    (home / "models" / "models" / digest / "config.json").write_text("{}")
    with pytest.raises(DigestMismatch, match=r"config\.json did not arrive"):
        stocked.export_model("small", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merged_export_is_a_whole_model(stocked: Client, base: Path, adapter: Path, tmp_path: Path) -> None:
    directory = stocked.export_model("small+lora@1", tmp_path / "merged", merge=True)
    change = load_file(adapter / "adapter_model.safetensors")
    a, b = (change[f"base_model.model.{NAME.removesuffix('.weight')}.lora_{side}.weight"] for side in "AB")
    before, after = (load_file(path / "model.safetensors")[NAME] for path in (base, directory))
    np.testing.assert_allclose(after, before + 2.0 * b @ a, rtol=1e-5, atol=1e-6)
    assert {path.name for path in directory.iterdir()} == {path.name for path in base.iterdir()}
    assert stocked.add_model(directory, name="merged").kind == "model"
    with pytest.raises(InvalidInput, match="nothing to merge: export it without --merge"):
        stocked.export_model("small", tmp_path / "other", merge=True)


def test_host_without_torch_says_that_it_cannot_merge(stocked: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converting.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    with pytest.raises(GistmillError, match="needs torch"):
        stocked.export_model("small+lora", tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged").exists()


def test_only_merged_files_are_handed_out(api: TestClient, base: Path, adapter: Path) -> None:
    digest = publish(api, base, name="small").json()["digest"]
    own = publish(api, adapter, name="lora", base="small").json()["digest"]
    for path in (
        f"{digest}/{own}/files/config.json",
        f"{own}/{digest}/files/x",
        f"{digest}/{'0' * 64}/files/x",
        "../x/files/y",
    ):
        assert api.get(f"/v1/models/merged/{path}").status_code == 404
    made = api.post("/v1/models/merged", params={"reference": "lora"}).json()
    assert (made["base_digest"], made["adapter_digest"]) == (digest, own)
    assert api.get(f"/v1/models/merged/{digest}/{own}/files/config.json").status_code == 200
    assert api.get(f"/v1/models/merged/{digest}/{own}/files/manifest.json").status_code == 404


@pytest.fixture
def lease(sqlite_only: Database) -> dict[str, Any]:
    """What a worker that holds the only chunk of a job says when it publishes."""
    make_job(sqlite_only, ["a"])
    claim = claimed(sqlite_only)
    return {"job_id": claim.job_id, "chunk_key": claim.chunk_key, "epoch": claim.epoch, "lineage": {"dataset": "calls"}}


def test_worker_publishes_an_adapter_once_under_its_lease(
    api: TestClient, base: Path, adapter: Path, lease: dict[str, Any]
) -> None:
    digest = publish(api, base, name="small").json()["digest"]
    job = lease | {"kind": "adapter", "base_digest": digest}

    first = publish(api, adapter, name="tuned", job=job)
    again = publish(api, adapter, name="tuned", job=job)

    assert first.status_code == 201
    assert first.json() == again.json()
    view = first.json()
    assert (view["name"], view["version"], view["base"], view["job"]) == ("tuned", 1, "small@1", lease["job_id"])
    assert view["lineage"] == {"dataset": "calls"}
    manifest = api.get(f"/v1/models/by-digest/{view['digest']}/manifest").json()
    assert {name: manifest[name] for name in ("job_id", "chunk_key", "epoch")} == {
        name: lease[name] for name in ("job_id", "chunk_key", "epoch")
    }
    lost = publish(api, adapter, name="tuned", job=job | {"epoch": lease["epoch"] + 1})
    assert lost.status_code == 409
    assert isinstance(refused(lost), LeaseLost)
    assert [model["version"] for model in api.get("/v1/models").json()["data"] if model["name"] == "tuned"] == [1]


def test_worker_publishes_a_whole_model(api: TestClient, base: Path, lease: dict[str, Any]) -> None:
    view = publish(api, base, name="tuned", job=lease | {"kind": "model"}).json()
    assert (view["kind"], view["base"], view["source"]) == ("model", None, f"job:{lease['job_id']}")


def test_publication_that_does_not_fit_is_refused(api: TestClient, base: Path, adapter: Path, lease: dict[str, Any]) -> None:
    digest = publish(api, base, name="small").json()["digest"]
    for directory, job, kind in (
        (adapter, lease | {"kind": "adapter"}, InvalidInput),
        (adapter, lease | {"kind": "adapter", "base_digest": "0" * 64}, UnknownModel),
        (adapter, lease | {"kind": "model", "base_digest": digest}, UnsupportedModel),
        (adapter, lease | {"kind": "other"}, InvalidInput),
        (base, lease | {"kind": "adapter", "base_digest": digest}, ModelUnreadable),
        (base, lease | {"job_id": "job_nosuch"}, GistmillError),
    ):
        assert isinstance(refused(publish(api, directory, name="tuned", job=job)), kind)
    assert "tuned" not in {model["name"] for model in api.get("/v1/models").json()["data"]}


def test_job_over_an_adapter_is_that_of_both_parts(stocked: Client, sqlite_only: Database, tmp_path: Path) -> None:
    data = tmp_path / "calls.jsonl"
    data.write_text('{"id": "1", "dialogue": "hello there"}\n')
    job = stocked.summarize(data, model="small+lora@1")
    view = stocked.get_model("lora")
    assert view.base_digest is not None
    rows = stocked.sql("select model, model_digest from v_jobs").rows
    assert rows == [["lora@1", combined_digest(view.base_digest, view.digest)]]
    with pytest.raises(Conflict, match=f"The job {job.view.id} uses lora@1"):
        stocked.remove_model("lora@1")


def test_command_line_does_it_all(client: Client, base: Path, adapter: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "user", {"GISTMILL_API__URL": client.transport.url, "GISTMILL_API__TOKEN": TOKEN})

    def run(*arguments: str) -> Done:
        done = home.run("models", *arguments)
        assert done.status == 0, done.err
        return done

    run("add", str(base), "--name", "small")
    added = run("add", str(adapter), "--name", "lora", "--base", "small")
    assert added.out == "lora@1\n"
    assert "--model small+lora" in added.err
    run("alias", "live", "small+lora@1")
    listed = {row["name"]: row for row in run("list", "--json").json}
    assert (listed["lora"]["base"], listed["lora"]["aliases"]) == ("small@1", ["live"])
    assert run("show", "live", "--json").json["kind"] == "adapter"
    assert [line for line in run("lineage", "live").out.splitlines() if line[0] != " "] == ["lora@1", "small@1"]
    assert run("export", "live", str(tmp_path / "out")).out == f"{tmp_path / 'out'}\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    run("alias", "live", "--delete")
    assert "is removed" in run("remove", "lora@1").err
    for arguments, said in (
        (("alias", "live"), "Write 'gistmill models alias NAME REFERENCE'"),
        (("remove", "small"), "write NAME@VERSION"),
        (("add", str(adapter), "--name", "x"), "with --base"),
    ):
        done = home.run("models", *arguments)
        assert done.status != 0
        assert said in done.err

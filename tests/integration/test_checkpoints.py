"""Checkpoints in the api: only the holder of the lease sends them, whole, and they go when the job needs them no more."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from api.deps import Service
from api.upkeep import STALE_UPLOAD_S, tidy_up
from gistmill.db.claim import Claim
from gistmill.db.session import Database
from gistmill.db.tables import jobs
from gistmill.errors import LeaseLost, ModelUnavailable, ModelUnreadable
from gistmill.queue import Bells
from models_store import manifest as manifests
from models_store.checkpoints import pack, unpack
from models_store.store import Store
from tests.support.api import TOKEN, api_settings, listening_api, running_api
from tests.support.checkpoints import make_checkpoint
from tests.support.finetune import add_model, load_pairs, submit_finetune
from tests.support.jobs import make_worker, take
from workers.checkpoints import Courier


@pytest.fixture
def api(database: Database, tmp_path: Path) -> Iterator[TestClient]:
    """The service in this process."""
    with running_api(database, api_settings(tmp_path / "api")) as client:
        yield client


@pytest.fixture
def claim(database: Database, tmp_path: Path) -> Claim:
    """The claimed chunk of a finetune job."""
    data = load_pairs(database, tmp_path, [("Ann: hi", "Ann greets.")]).id
    submit_finetune(database, add_model(database), data, name="result")
    found = take(database, make_worker(database, "trainer", kinds=("finetune",)))
    assert found is not None
    return found


@pytest.fixture
def service(database: Database, tmp_path: Path) -> Iterator[Service]:
    """The parts of that service, for a look past HTTP."""
    settings = api_settings(tmp_path / "api")
    bells = Bells(settings.redis_url, settings.redis.key_prefix)
    yield Service(settings, database, bells, Store(settings.store_dir))
    bells.close()


def publish(store: Store, *, seed: int) -> str:
    """Put a model into the store and return its digest."""
    with store.staging() as staged:
        manifest = manifests.describe(make_checkpoint(staged, seed=seed), source="test")
        store.publish(staged, manifest)
    return manifest.digest


def make_files(directory: Path, **texts: str) -> Path:
    directory.mkdir()
    for name, text in texts.items():
        (directory / name).write_text(text)
    return directory


def put(api: TestClient, claim: Claim, step: int, content: bytes = b"x" * 1024, **changes: Any) -> int:
    params = {"chunk_key": claim.chunk_key, "epoch": claim.epoch} | changes
    return api.put(f"/v1/jobs/{claim.job_id}/checkpoints/{step}", params=params, content=content).status_code


def steps(api: TestClient, claim: Claim) -> list[int]:
    return [entry["step"] for entry in api.get(f"/v1/jobs/{claim.job_id}/checkpoints").json()]


def test_newest_two_are_kept_and_come_back_as_they_were(api: TestClient, claim: Claim, tmp_path: Path) -> None:
    source = make_files(tmp_path / "checkpoint", weights="w" * 3_000, state="", manifest="{}")
    archive = b"".join(pack(source))
    assert [put(api, claim, step, archive) for step in (3, 6, 9)] == [204, 204, 204]
    assert steps(api, claim) == [9, 6]
    answer = api.get(f"/v1/jobs/{claim.job_id}/checkpoints/9")
    target = tmp_path / "fetched"
    target.mkdir()
    unpack(io.BytesIO(answer.content), target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        path.name: path.read_text() for path in source.iterdir()
    }


def test_only_the_holder_of_the_lease_may_send(api: TestClient, claim: Claim, service: Service) -> None:
    assert put(api, claim, 3, epoch=claim.epoch + 1) == 409
    assert put(api, claim, 3, chunk_key=claim.chunk_key + 1) == 409
    assert steps(api, claim) == []
    assert list((service.store.root / "incoming").glob("*")) == []


@pytest.mark.parametrize("path", ["job_missing/checkpoints", "..%2F..%2Fetc/checkpoints", "job_missing/checkpoints/1"])
def test_unknown_jobs_and_path_tricks_find_nothing(api: TestClient, claim: Claim, path: str) -> None:
    assert api.get(f"/v1/jobs/{path}").status_code in (404, 405, 422)
    assert api.get(f"/v1/jobs/{claim.job_id}/checkpoints/7").status_code == 404


def test_archive_with_anything_but_plain_files_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    for name, kind in (("../outside", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("a/b", tarfile.REGTYPE)):
        text = io.BytesIO()
        with tarfile.open(fileobj=text, mode="w") as archive:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO())
        with pytest.raises(ModelUnreadable, match="no checkpoint consists of"):
            unpack(io.BytesIO(text.getvalue()), target)
    assert list(target.iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_archive_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    archive = b"".join(pack(make_files(tmp_path / "checkpoint", weights="w" * 3_000)))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(ModelUnreadable, match="cut short"):
        unpack(io.BytesIO(archive[:1_500]), target)


@pytest.mark.parametrize(
    ("state", "is_old", "is_kept"),
    [
        ("completed", False, False),
        ("cancelled", False, False),
        ("running", True, True),
        ("failed", False, True),
        ("failed", True, False),
    ],
)
def test_checkpoints_go_when_the_job_needs_them_no_more(
    api: TestClient, claim: Claim, service: Service, database: Database, state: str, is_old: bool, is_kept: bool
) -> None:
    assert put(api, claim, 3) == 204
    with database.write() as connection:
        key = connection.scalar(select(jobs.c.key).where(jobs.c.id == claim.job_id))
        connection.execute(update(jobs).where(jobs.c.key == key).values(state=state))
    shelf = service.shelf
    if is_old:
        long_ago = time.time() - STALE_UPLOAD_S - 60
        os.utime(shelf.root / claim.job_id, (long_ago, long_ago))
    tidy_up(service)
    assert bool(shelf.list(claim.job_id)) == is_kept


def test_model_files_of_a_job_that_lost_its_lease_go_after_a_day(service: Service, database: Database) -> None:
    listed, left = (publish(service.store, seed=seed) for seed in (1, 2))
    add_model(database, "listed", digest=listed)
    long_ago = time.time() - STALE_UPLOAD_S - 60
    for digest in (listed, left):
        os.utime(service.store.get(digest), (long_ago, long_ago))

    tidy_up(service)

    assert service.store.find(listed) is not None
    assert service.store.find(left) is None


def test_courier_sends_now_and_then_and_the_last_one_always(database: Database, claim: Claim, tmp_path: Path) -> None:
    source = make_files(tmp_path / "checkpoint", weights="w")
    with listening_api(database, api_settings(tmp_path / "api")) as api:
        courier = Courier(str(api.base_url), TOKEN, every_s=3600)
        sent = [send(courier, source, claim, step, is_last=step == 9) for step in (3, 6, 9)]
        assert sent == [True, False, True]
        assert [entry["step"] for entry in api.get(f"/v1/jobs/{claim.job_id}/checkpoints").json()] == [9, 3]
        with pytest.raises(LeaseLost):
            send(courier, source, replace(claim, epoch=claim.epoch + 1), 12, is_last=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", ""])
def test_api_that_does_not_answer_costs_only_the_copy(claim: Claim, tmp_path: Path, url: str) -> None:
    source = make_files(tmp_path / "checkpoint", weights="w")
    assert not send(Courier(url, TOKEN, every_s=0), source, claim, 3, is_last=True)
    with pytest.raises(ModelUnavailable):
        Courier(url, TOKEN, every_s=0).fetch(claim.job_id, tmp_path, newer_than=-1, tick=lambda: None)


def test_checkpoint_that_is_pruned_while_it_is_sent_is_not_kept(database: Database, claim: Claim, tmp_path: Path) -> None:
    source = make_files(tmp_path / "checkpoint", state="s" * 2_000_000, weights="w")
    with listening_api(database, api_settings(tmp_path / "api")) as api:
        courier = Courier(str(api.base_url), TOKEN, every_s=0)
        gone = (source / "weights").unlink
        sent = courier.send(
            source, job_id=claim.job_id, step=3, chunk_key=claim.chunk_key, epoch=claim.epoch,
            tick=lambda: gone(missing_ok=True), is_last=True,
        )  # fmt: skip
        assert not sent
        assert api.get(f"/v1/jobs/{claim.job_id}/checkpoints").json() == []


def send(courier: Courier, source: Path, claim: Claim, step: int, *, is_last: bool) -> bool:
    return courier.send(
        source, job_id=claim.job_id, step=step, chunk_key=claim.chunk_key, epoch=claim.epoch, tick=lambda: None, is_last=is_last
    )

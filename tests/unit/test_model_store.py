"""The store: whole models or none, the first publisher wins, nothing outside of it can be asked for; and token counts."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from gistmill.errors import ModelUnavailable, ModelUnreadable, NotFound
from models_store import manifest as manifests
from models_store.manifest import Manifest
from models_store.store import Store
from models_store.tokenizer import load_counter
from tests.support.checkpoints import make_checkpoint, write_tokenizer


def publish(store: Store, *, seed: int = 0) -> Manifest:
    with store.staging() as staged:
        manifest = manifests.describe(make_checkpoint(staged, seed=seed), source="test")
        store.publish(staged, manifest)
    return manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def test_published_model_is_found_with_its_manifest(store: Store) -> None:
    manifest = publish(store)
    directory = store.find(manifest.digest)
    assert directory == store.get(manifest.digest)
    assert store.get_manifest(manifest.digest) == manifest
    manifests.verify(store.get(manifest.digest), manifest)
    assert list((store.root / "incoming").iterdir()) == []


def test_model_that_is_not_there_is_not_found(store: Store) -> None:
    for digest in ("0" * 64, "", "..", "../incoming", "0" * 63, "0" * 64 + "\n", "A" * 64):
        assert store.find(digest) is None
        with pytest.raises(NotFound):
            store.get(digest)


def test_directory_outside_of_the_models_is_never_one(store: Store) -> None:
    publish(store)
    staged = make_checkpoint(store.make_staging("other"))
    manifests.write(staged, manifests.describe(staged, source="test"))
    for path in ("../incoming/other", str(staged)):
        assert store.find(path) is None
        with pytest.raises(NotFound):
            store.get_file(path, "config.json")


def test_digest_that_is_none_makes_no_lock(store: Store) -> None:
    with pytest.raises(NotFound):
        store.lock_path("../../outside")
    assert store.lock_path("0" * 64).parent == store.root / "locks"


@pytest.mark.parametrize("name", ["../config.json", "..%2fconfig.json", "/etc/passwd", "manifest.json", "nosuch", "", "."])
def test_only_files_of_the_manifest_are_handed_out(store: Store, name: str) -> None:
    digest = publish(store).digest
    with pytest.raises(NotFound):
        store.get_file(digest, name)
    assert store.get_file(digest, "config.json").is_file()


def test_first_publisher_of_a_digest_wins(store: Store) -> None:
    first = publish(store)
    made = store.get(first.digest).stat().st_ino
    assert publish(store) == first
    assert store.get(first.digest).stat().st_ino == made


def test_publishers_at_the_same_moment_leave_one_whole_model(store: Store) -> None:
    start = threading.Barrier(8)
    digests: list[str] = []

    def run() -> None:
        with store.staging() as staged:
            manifest = manifests.describe(make_checkpoint(staged), source="test")
            start.wait()
            store.publish(staged, manifest)
            digests.append(manifest.digest)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(digests) == 8
    assert [path.name for path in (store.root / "models").iterdir()] == [digests[0]]
    manifests.verify(store.get(digests[0]), store.get_manifest(digests[0]))
    assert list((store.root / "incoming").iterdir()) == []


def test_model_is_on_disk_before_it_gets_its_name(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    directory = store.get(publish(store).digest)
    wanted = [*directory.iterdir(), directory, directory.parent, store.root]
    assert {path.stat().st_ino for path in wanted} <= synced


def test_half_written_model_is_none(store: Store) -> None:
    digest = publish(store).digest
    (store.get(digest) / "manifest.json").unlink()
    assert store.find(digest) is None


def test_place_that_is_taken_by_something_else_is_an_error(store: Store) -> None:
    digest = publish(store).digest
    (store.get(digest) / "manifest.json").unlink()
    with pytest.raises(ModelUnavailable, match="could not be put into the store"):
        publish(store)
    shutil.rmtree(store.root / "models" / digest)
    assert publish(store).digest == digest


def test_failed_import_leaves_nothing(store: Store) -> None:
    def fail() -> None:
        with store.staging() as staged:
            make_checkpoint(staged)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list((store.root / "incoming").iterdir()) == []


def test_sweep_removes_what_was_left_and_spares_what_is_being_written(store: Store) -> None:
    digest = publish(store).digest
    left, busy, fresh = (store.make_staging(name) for name in ("left", "busy", "fresh"))
    (busy / "model.safetensors").write_bytes(b"x")
    hour_ago = time.time() - 3600
    for directory in (left, busy):
        os.utime(directory, (hour_ago, hour_ago))
    assert store.sweep(older_than_s=600) == 1
    assert (left.exists(), busy.exists(), fresh.exists()) == (False, True, True)
    assert store.find(digest) is not None


def test_model_that_no_row_names_goes_once_it_is_old(store: Store) -> None:
    named, unnamed, young = (publish(store, seed=seed).digest for seed in range(3))
    hour_ago = time.time() - 3600
    for digest in (named, unnamed):
        os.utime(store.get(digest), (hour_ago, hour_ago))

    asked: list[str] = []

    def list_known(digests: Sequence[str]) -> list[str]:
        asked.extend(digests)
        return [named]

    assert store.sweep_unlisted(list_known, older_than_s=600) == 1

    assert sorted(asked) == sorted((named, unnamed))
    assert (store.find(named) is None, store.find(unnamed) is None, store.find(young) is None) == (False, True, False)
    assert list((store.root / "incoming").iterdir()) == []


def test_model_that_is_published_again_is_spared_by_the_sweep(store: Store) -> None:
    digest = publish(store).digest
    hour_ago = time.time() - 3600
    os.utime(store.get(digest), (hour_ago, hour_ago))

    def publish_again(digests: Sequence[str]) -> list[str]:
        publish(store)
        return []

    assert store.sweep_unlisted(publish_again, older_than_s=600) == 0
    manifests.verify(store.get(digest), store.get_manifest(digest))


def test_sweep_of_a_store_without_anything_does_nothing(store: Store) -> None:
    assert store.sweep(older_than_s=0) == 0


def test_tokens_are_counted_with_special_ones(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert load_counter(tmp_path)(["hello there", "", "hello"]) == [3, 1, 2]
    assert load_counter(tmp_path)([]) == []


def test_limits_of_the_tokenizer_file_do_not_hide_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, most_tokens=4)
    assert load_counter(tmp_path)(["hello " * 100, "hello"]) == [101, 2]


def test_missing_or_broken_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelUnreadable, match=r"no tokenizer\.json"):
        load_counter(tmp_path)
    for text in ("{", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ModelUnreadable, match=r"tokenizer\.json cannot be read"):
            load_counter(tmp_path)

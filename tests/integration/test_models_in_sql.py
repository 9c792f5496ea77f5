"""Model versions are immutable rows, found by name, version, hub id or digest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from gistmill.db.models import find_digest, get_model, list_models, register, resolve
from gistmill.db.session import Database
from gistmill.errors import UnknownModel
from gistmill.views import ModelView
from tests.support.meanwhile import meanwhile

MANIFEST = {"architecture": "T5ForConditionalGeneration", "parameters": 5, "dtype": "float32"}


def add(database: Database, name: str, digest: str, *, source: str = "upload", tenant_key: int = 1) -> ModelView:
    return register(database, tenant_key, MANIFEST, name=name, digest=digest, weight_bytes=20, source=source)


def test_versions_count_up_and_the_same_files_keep_theirs(database: Database) -> None:
    assert [add(database, "tuned", digest).version for digest in ("a", "b", "a", "c", "b")] == [1, 2, 1, 3, 2]
    assert resolve(database, 1, "tuned").digest == "c"
    assert resolve(database, 1, "tuned@2").digest == "b"
    assert get_model(database, 1, "tuned@1").architecture == "T5ForConditionalGeneration"
    assert [(model.name, model.version) for model in list_models(database, 1).data] == [
        ("tuned", 3),
        ("tuned", 2),
        ("tuned", 1),
    ]
    found = find_digest(database, 1, "b")
    assert found is not None
    assert found.version == 2
    assert find_digest(database, 1, "z") is None


def test_versions_registered_at_once_are_all_different(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda digest: add(database, "tuned", digest).version, "abcdefgh"))
    assert sorted(versions) == list(range(1, 9))


def test_same_files_that_are_registered_meanwhile_keep_their_version(database: Database) -> None:
    with meanwhile(database, lambda: add(database, "tuned", "a")):
        assert add(database, "tuned", "a").version == 1
    assert [model.version for model in list_models(database, 1).data] == [1]


def test_hub_id_means_the_import_from_there_else_the_name_of_its_last_part(database: Database) -> None:
    add(database, "flan-t5-base", "local")
    assert resolve(database, 1, "google/flan-t5-base").digest == "local"
    add(database, "mine", "hub", source="hub:google/flan-t5-base")
    assert resolve(database, 1, "google/flan-t5-base").digest == "hub"


def test_unknown_model_names_the_nearest_and_how_to_add_one(database: Database) -> None:
    add(database, "gist-tiny", "a")
    with pytest.raises(UnknownModel) as caught:
        resolve(database, 1, "google/gist-tyny")
    assert "Did you mean 'gist-tiny'?" in caught.value.message
    assert "gistmill models add DIR --name gist-tyny" in caught.value.message
    assert "--model gist-tiny" in caught.value.message
    for reference in ("gist-tiny@2", "gist-tiny@x", "gist-tiny@99999999999999999999", "", "@", "../gist-tiny", "a/b/gist-tiny"):
        with pytest.raises(UnknownModel):
            resolve(database, 1, reference)
    with pytest.raises(UnknownModel):
        resolve(database, 2, "gist-tiny")

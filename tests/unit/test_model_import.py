"""Models come in from directories and the hub's cache: safetensors only, nothing that runs code, whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistmill.errors import (
    DigestMismatch,
    GistmillError,
    InvalidName,
    ModelUnavailable,
    ModelUnreadable,
    UnknownModel,
    UnsafeModel,
    UnsupportedModel,
)
from models_store import catalog, importing
from models_store import manifest as manifests
from models_store.manifest import Manifest
from models_store.store import Store
from tests.support.adapters import make_adapter
from tests.support.checkpoints import CONFIG, make_checkpoint, shard


class TouchesAFile:
    """Unpickled, it makes the file `touched` in the working directory."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, ("touched",)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "source")


def add(store: Store, source: Path) -> Manifest:
    return importing.import_directory(store, source, label="mine")


def refuse(store: Store, source: Path, kind: type[GistmillError], match: str) -> None:
    """The import fails with this error and leaves nothing in the store."""
    with pytest.raises(kind, match=match):
        add(store, source)
    assert [path for path in store.root.rglob("*") if path.name not in ("incoming", "models")] == []


def pickle_into(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weight": TouchesAFile()}))


def test_directory_becomes_a_model(store: Store, source: Path) -> None:
    manifest = add(store, source)
    directory = store.get(manifest.digest)
    manifests.verify(directory, manifest)
    assert {path.name for path in directory.iterdir()} == {path.name for path in source.iterdir()} | {"manifest.json"}
    assert (manifest.source, manifest.parameters) == ("mine", 40)


def test_only_files_that_a_model_may_hold_are_copied(store: Store, source: Path) -> None:
    for name in ("modeling_evil.py", "training_args.bin", "notes.txt", "adapter_model.safetensors", ".env"):
        (source / name).write_text("x")
    (source / "onnx").mkdir()
    make_checkpoint(source / "onnx")
    assert add(store, source).digest == add(store, make_checkpoint(source.parent / "clean")).digest


def test_sharded_weights_become_a_model(store: Store, source: Path) -> None:
    manifest = add(store, shard(source))
    assert (manifest.parameters, len(manifest.files)) == (40, 5)


def test_shards_beside_whole_weights_are_left(store: Store, source: Path, tmp_path: Path) -> None:
    for path in shard(make_checkpoint(tmp_path / "shards")).glob("model*"):
        path.rename(source / path.name)
    assert add(store, source).parameters == 40
    assert len(add(store, source).files) == 3


def test_shards_without_their_index_are_refused(store: Store, source: Path) -> None:
    (shard(source) / "model.safetensors.index.json").unlink()
    refuse(store, source, ModelUnreadable, r"holds no model\.safetensors. Found: config\.json, model-00001")


def test_missing_shard_is_refused(store: Store, source: Path) -> None:
    (shard(source) / "model-00002-of-00002.safetensors").unlink()
    refuse(store, source, ModelUnreadable, "model-00002-of-00002.safetensors is missing")


def test_file_or_nothing_instead_of_a_directory_is_refused(store: Store, source: Path, tmp_path: Path) -> None:
    refuse(store, source / "config.json", ModelUnreadable, "not a directory")
    refuse(store, tmp_path / "nosuch", ModelUnreadable, "not a directory")
    (tmp_path / "empty").mkdir()
    refuse(store, tmp_path / "empty", ModelUnreadable, "holds no files")


def test_directory_without_weights_is_refused(store: Store, source: Path) -> None:
    (source / "model.safetensors").unlink()
    refuse(store, source, ModelUnreadable, r"holds no model\.safetensors")


@pytest.mark.parametrize("name", ["weights.pt", "model.pkl", "model.ckpt", "tf_model.h5", "training_args.bin"])
def test_pickled_weights_are_refused_and_not_read(
    store: Store, source: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (source / "model.safetensors").unlink()
    pickle_into(source / name)
    refuse(store, source, UnsafeModel, "only pickled weights")
    assert not (tmp_path / "touched").exists()


def test_pickle_named_safetensors_is_refused_and_not_read(
    store: Store, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle_into(source / "model.safetensors")
    refuse(store, source, ModelUnreadable, "cannot be read as safetensors")
    assert not (tmp_path / "touched").exists()


def test_checkpoint_that_could_be_converted_says_how(store: Store, source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refuse(store, source, UnsafeModel, r"pytorch_model\.bin, a pickled file.*Add --convert")


def test_directory_without_configuration_or_tokenizer_is_refused(store: Store, source: Path) -> None:
    (source / "tokenizer.json").rename(source / "other.json")
    refuse(store, source, ModelUnreadable, "holds no tokenizer")
    (source / "other.json").rename(source / "tokenizer.json")
    (source / "config.json").unlink()
    refuse(store, source, ModelUnreadable, r"no config\.json")


def test_sentencepiece_model_does_for_a_tokenizer(store: Store, source: Path) -> None:
    (source / "tokenizer.json").rename(source / "spiece.model")
    assert add(store, source).model_type == "t5"


def test_other_kinds_of_models_and_code_are_refused(store: Store, source: Path) -> None:
    make_checkpoint(source, config={"model_type": "gpt2"})
    refuse(store, source, UnsupportedModel, "'gpt2'.* is not an encoder-decoder")
    make_checkpoint(source, config=CONFIG | {"auto_map": {"AutoModelForSeq2SeqLM": "modeling.Evil"}})
    refuse(store, source, UnsupportedModel, "auto_map")


def test_file_that_does_not_fit_the_manifest_beside_it_is_refused(store: Store, source: Path) -> None:
    manifests.write(source, manifests.describe(source, source="x"))
    assert add(store, source)
    make_checkpoint(source, seed=1)
    empty = Store(store.root.parent / "empty")
    refuse(empty, source, DigestMismatch, r"model\.safetensors does not have the digest")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    refuse(empty, source, DigestMismatch, r"model\.safetensors does not have the digest")


def test_manifest_of_somebody_else_is_refused(store: Store, source: Path) -> None:
    (source / "manifest.json").write_text('{"files": ["../../etc/passwd"]}')
    refuse(store, source, ModelUnreadable, r"manifest\.json is not one that Gistmill wrote")


def test_weight_file_cut_short_is_refused(store: Store, source: Path) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    refuse(store, source, ModelUnreadable, r"model\.safetensors cannot be read as safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "README.md"])
def test_link_that_leaves_the_directory_is_refused(store: Store, source: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("{}")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(tmp_path / "secret")
    refuse(store, source, UnsafeModel, f"{name} is a link that leaves the directory")


def test_link_within_the_directory_is_followed(store: Store, source: Path) -> None:
    (source / "weights").mkdir()
    (source / "model.safetensors").rename(source / "weights" / "blob")
    (source / "model.safetensors").symlink_to("weights/blob")
    manifest = add(store, source)
    assert not (store.get(manifest.digest) / "model.safetensors").is_symlink()


def test_link_to_nothing_is_a_clear_error(store: Store, source: Path) -> None:
    (source / "README.md").symlink_to("nosuch")
    refuse(store, source, ModelUnreadable, r"README\.md could not be copied")


@pytest.mark.parametrize(
    "name", ["../config.json", "..%2fconfig.json", "a/config.json", "config.json\n", ".config.json", "x.py", ""]
)
def test_names_of_files_that_are_no_part_of_a_model(name: str) -> None:
    assert not importing.is_allowed(name)
    assert not importing.is_convertible(name)


@pytest.mark.parametrize("hub_id", ["flan-t5-base", "../etc", "a/../b", "a/b/c", "", "https://host/model"])
def test_what_is_no_hub_id_is_refused(store: Store, hub_id: str) -> None:
    with pytest.raises(InvalidName, match="owner/name"):
        importing.import_hub(store, hub_id)


def test_hub_that_cannot_be_reached_says_what_to_do(store: Store) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        importing.import_hub(store, "acme/nosuch-model")
    assert "gistmill models add DIRECTORY --name nosuch-model" in refused.value.message
    assert "--model gist-tiny" in refused.value.message
    assert refused.value.retryable


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Put a directory into a hub cache as the model acme/tiny, every file a link as the hub's library leaves them."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(source: Path) -> None:
        repository, commit = tmp_path / "hub" / "models--acme--tiny", "c" * 40
        for folder in ("refs", "blobs", f"snapshots/{commit}"):
            (repository / folder).mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        for number, path in enumerate(source.iterdir()):
            (repository / "blobs" / str(number)).write_bytes(path.read_bytes())
            (repository / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{number}")

    return put


def test_model_of_the_hub_is_copied_with_its_links_followed(
    store: Store, source: Path, hub_cache: Callable[[Path], None]
) -> None:
    hub_cache(source)
    manifest = importing.import_hub(store, "acme/tiny")
    assert manifest.digest == add(store, source).digest
    assert not any(path.is_symlink() for path in store.get(manifest.digest).iterdir())


def test_hub_model_without_safetensors_says_how_to_convert(
    store: Store, source: Path, hub_cache: Callable[[Path], None]
) -> None:
    (source / "model.safetensors").unlink()
    hub_cache(source)
    with pytest.raises(ModelUnreadable, match="--name tiny --convert"):
        importing.import_hub(store, "acme/tiny")


def test_adapter_of_the_hub_comes_in_with_its_base(
    store: Store, source: Path, hub_cache: Callable[[Path], None], tmp_path: Path
) -> None:
    base = add(store, source).digest
    hub_cache(make_adapter(source, tmp_path / "adapter", target_modules=["shared"]))
    with pytest.raises(UnsupportedModel, match="acme/tiny is an adapter"):
        importing.import_hub(store, "acme/tiny")
    with pytest.raises(ModelUnreadable, match="changes shared"):
        importing.import_hub(store, "acme/tiny", base_digest=base)


def test_pickled_adapter_of_the_hub_says_how_to_convert(
    store: Store, source: Path, hub_cache: Callable[[Path], None], tmp_path: Path
) -> None:
    base = add(store, source).digest
    adapter = make_adapter(source, tmp_path / "adapter", target_modules=["shared"])
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    hub_cache(adapter)
    with pytest.raises(ModelUnreadable, match="--name tiny --base BASE --convert"):
        importing.import_hub(store, "acme/tiny", base_digest=base)


def test_foreign_manifest_on_the_hub_does_not_matter(store: Store, source: Path, hub_cache: Callable[[Path], None]) -> None:
    (source / "manifest.json").write_text(json.dumps({"name": "web app"}))
    hub_cache(source)
    assert importing.import_hub(store, "acme/tiny").model_type == "t5"


def test_built_in_model_is_imported_by_name(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "DIRECTORY", tmp_path / "builtin")
    make_checkpoint(tmp_path / "builtin" / "small")
    (tmp_path / "builtin" / "notes").mkdir()
    assert catalog.names() == ["small"]
    assert catalog.import_builtin(store, "small").source == "built-in small"
    for name in ("nosuch", "../small", "notes", ""):
        with pytest.raises(UnknownModel, match="small"):
            catalog.import_builtin(store, name)


def test_every_model_that_comes_with_gistmill_can_be_imported(store: Store) -> None:
    for name in catalog.names():
        manifest = catalog.import_builtin(store, name)
        assert sum(entry.size for entry in manifest.files) < 4_000_000

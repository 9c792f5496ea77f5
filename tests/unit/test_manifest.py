"""Manifests: the digest stands for the content, headers are read without loading, and every change of a file is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gistmill.errors import DigestMismatch, ModelUnreadable, UnsupportedModel
from models_store import manifest as manifests
from tests.support.checkpoints import CONFIG, make_checkpoint, shard


def test_equal_files_have_equal_digests_whatever_their_source(tmp_path: Path) -> None:
    first = manifests.describe(make_checkpoint(tmp_path / "a"), source="here")
    second = manifests.describe(make_checkpoint(tmp_path / "b"), source="there")
    other = manifests.describe(make_checkpoint(tmp_path / "c", seed=1), source="here")
    assert first.digest == second.digest != other.digest


def test_renamed_file_changes_the_digest(tmp_path: Path) -> None:
    before = manifests.describe(make_checkpoint(tmp_path), source="x")
    (tmp_path / "README.md").write_text("words")
    with_readme = manifests.describe(tmp_path, source="x")
    (tmp_path / "README.md").rename(tmp_path / "LICENSE")
    assert len({before.digest, with_readme.digest, manifests.describe(tmp_path, source="x").digest}) == 3


def test_weights_are_counted_from_the_headers(tmp_path: Path) -> None:
    whole = manifests.describe(make_checkpoint(tmp_path), source="x")
    assert (whole.parameters, whole.weight_bytes, whole.dtype) == (40, 160, "float32")
    assert (whole.architecture, whole.model_type, whole.max_positions) == ("T5ForConditionalGeneration", "t5", None)
    sharded = manifests.describe(shard(tmp_path), source="x")
    assert (sharded.parameters, sharded.weight_bytes) == (40, 160)


def test_half_precision_weights_weigh_half(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    save_file({"w": np.zeros((3, 5), dtype=np.float16)}, tmp_path / "model.safetensors")
    described = manifests.describe(tmp_path, source="x")
    assert (described.parameters, described.weight_bytes, described.dtype) == (15, 30, "float16")
    save_file({"w": np.zeros(1, dtype=np.float16), "v": np.zeros(1, dtype=np.float32)}, tmp_path / "model.safetensors")
    assert manifests.describe(tmp_path, source="x").dtype == "mixed"
    save_file({"w": np.zeros(1, dtype=np.int8)}, tmp_path / "model.safetensors")
    assert manifests.describe(tmp_path, source="x").dtype == "other"


@pytest.mark.parametrize(
    ("extra", "positions"),
    [
        ({"model_type": "bart", "max_position_embeddings": 1024}, 1024),
        ({"model_type": "led", "max_encoder_position_embeddings": 16384, "max_position_embeddings": 1024}, 16384),
        ({"model_type": "encoder-decoder", "encoder": {"max_position_embeddings": 512}}, 512),
        ({"n_positions": 512}, None),
        ({"max_position_embeddings": "many", "architectures": "T5"}, None),
    ],
)
def test_hard_limit_of_positions_is_read(tmp_path: Path, extra: dict[str, Any], positions: int | None) -> None:
    assert manifests.describe(make_checkpoint(tmp_path, config=CONFIG | extra), source="x").max_positions == positions


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "is_encoder_decoder": False},
        {"model_type": "whisper", "is_encoder_decoder": True},
        {"model_type": "t5", "is_encoder_decoder": False},
        {"is_encoder_decoder": True},
        {"model_type": ["t5"]},
    ],
)
def test_other_kind_of_model_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="not an encoder-decoder for text"):
        manifests.describe(make_checkpoint(tmp_path, config=config), source="x")


def test_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    places: list[dict[str, Any]] = [{"auto_map": {"AutoModel": "x.Y"}}, {"encoder": {"auto_map": {}}}]
    for where in places:
        with pytest.raises(UnsupportedModel, match="auto_map"):
            manifests.describe(make_checkpoint(tmp_path, config=CONFIG | where), source="x")
    make_checkpoint(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.Y", null]}}')
    with pytest.raises(UnsupportedModel, match="auto_map"):
        manifests.describe(tmp_path, source="x")


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff", "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900])
def test_broken_configuration_is_a_clear_error(tmp_path: Path, text: str) -> None:
    make_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises((ModelUnreadable, UnsupportedModel), match=r"config\.json"):
        manifests.describe(tmp_path, source="x")


@pytest.mark.parametrize("keep", [0, 7, 8, 60, -1])
def test_weight_file_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    path = make_checkpoint(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelUnreadable, match=r"model\.safetensors cannot be read as safetensors"):
        manifests.describe(tmp_path, source="x")


def test_weight_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path) / "model.safetensors"
    for content in (b"\x80\x04}." * 100, b"\xff" * 100, path.read_bytes() + b"more"):
        path.write_bytes(content)
        with pytest.raises(ModelUnreadable, match="cannot be read as safetensors"):
            manifests.describe(tmp_path, source="x")


def test_missing_shard_or_tensor_is_named(tmp_path: Path) -> None:
    shard(make_checkpoint(tmp_path))
    save_file({"other": np.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ModelUnreadable, match=r"model-00002-of-00002\.safetensors lacks shared\.weight"):
        manifests.describe(tmp_path, source="x")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelUnreadable, match=r"model-00002-of-00002\.safetensors is missing"):
        manifests.describe(tmp_path, source="x")


@pytest.mark.parametrize("named", [{"a": "../../secret"}, {"a": 1}, ["a"], None])
def test_index_that_names_foreign_files_is_refused(tmp_path: Path, named: Any) -> None:
    shard(make_checkpoint(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    with pytest.raises(ModelUnreadable, match="does not name shards"):
        manifests.describe(tmp_path, source="x")


def test_written_manifest_reads_back_equal(tmp_path: Path) -> None:
    manifest = manifests.describe(make_checkpoint(tmp_path), source="x").model_copy(
        update={"job_id": "job_1", "chunk_key": 7, "epoch": 3}
    )
    manifests.write(tmp_path, manifest)
    assert manifests.load(tmp_path) == manifest
    assert manifests.describe(tmp_path, source="x").digest == manifest.digest


def test_changed_cut_or_missing_file_is_named(tmp_path: Path) -> None:
    manifest = manifests.describe(make_checkpoint(tmp_path), source="x")
    ticks: list[int] = []
    manifests.verify(tmp_path, manifest, tick=lambda: ticks.append(1))
    assert len(ticks) == len(manifest.files)
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    for changed in (content[:-1] + b"\x01", content[:-1], content + b"\0"):
        path.write_bytes(changed)
        with pytest.raises(DigestMismatch, match=r"model\.safetensors does not have the digest"):
            manifests.verify(tmp_path, manifest)
    path.unlink()
    with pytest.raises(DigestMismatch, match=r"model\.safetensors.* is missing"):
        manifests.verify(tmp_path, manifest)


def test_manifest_whose_list_was_shortened_does_not_fit(tmp_path: Path) -> None:
    manifest = manifests.describe(make_checkpoint(tmp_path), source="x")
    with pytest.raises(DigestMismatch, match="own digest"):
        manifests.verify(tmp_path, manifest.model_copy(update={"files": manifest.files[:1]}))


@pytest.mark.parametrize(
    "change",
    [
        {"files": [{"path": "../config.json", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "a/b", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "a\n", "size": 1, "sha256": "0" * 64}]},
        {"files": [{"path": "config.json", "size": -1, "sha256": "0" * 64}]},
        {"digest": "../" + "0" * 61},
        {"format": 2},
    ],
)
def test_manifest_that_names_anything_else_does_not_parse(tmp_path: Path, change: dict[str, Any]) -> None:
    body = manifests.describe(make_checkpoint(tmp_path), source="x").model_dump(mode="json") | change
    with pytest.raises(ModelUnreadable, match="not one that Gistmill wrote"):
        manifests.parse(json.dumps(body))


def test_missing_manifest_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelUnreadable, match=r"manifest\.json cannot be read"):
        manifests.load(tmp_path)

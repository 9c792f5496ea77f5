"""Pickled checkpoints become safetensors in a child process, weight for weight; a pickle that would run code runs none."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from gistmill.errors import ModelError, ModelUnreadable, UnsafeModel
from models_store import converting
from models_store.config import TEXT_MODELS
from models_store.importing import import_directory
from models_store.store import Store
from tests.support.models import make_tiny_t5
from workers import convert
from workers.engine.checkpoint import load_model


class MakesADirectory:
    """Unpickled, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("original"))


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    """The original with its weights as older versions of transformers published them: pickled, tied names included."""
    directory = tmp_path / "source"
    directory.mkdir()
    for path in original.glob("*.json"):
        (directory / path.name).write_bytes(path.read_bytes())
    torch.save(pickled_weights(original), directory / "pytorch_model.bin")
    return directory


def pickled_weights(original: Path) -> dict[str, torch.Tensor]:
    weights = load_file(original / "model.safetensors")
    shared = weights["shared.weight"]
    return weights | {"encoder.embed_tokens.weight": shared, "decoder.embed_tokens.weight": shared}


def converted(source: Path) -> dict[str, torch.Tensor]:
    convert.convert_checkpoint(source, source)
    return load_file(source / "model.safetensors")


def test_converted_checkpoint_is_the_original_and_can_be_loaded(original: Path, source: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    manifest = import_directory(store, source, label="mine", convert=True)
    directory = store.get(manifest.digest)
    assert not list(directory.glob("*.bin"))
    weights, wanted = load_file(directory / "model.safetensors"), load_file(original / "model.safetensors")
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    first, second = (load_model(path, device="cpu", precision="float32").model.state_dict() for path in (directory, original))
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_shards_are_joined(original: Path, source: Path) -> None:
    (source / "pytorch_model.bin").unlink()
    weights = pickled_weights(original)
    names = {name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, name in enumerate(weights)}
    for shard in set(names.values()):
        torch.save({name: weights[name] for name in weights if names[name] == shard}, source / shard)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    assert converted(source).keys() == load_file(original / "model.safetensors").keys()


def test_output_layer_that_differs_from_the_embeddings_is_kept(source: Path) -> None:
    weights = converted(source)
    assert not torch.equal(weights["lm_head.weight"], weights["shared.weight"])
    assert "encoder.embed_tokens.weight" not in weights


def test_tied_output_layer_is_stored_once(original: Path, source: Path) -> None:
    weights = pickled_weights(original)
    torch.save(weights | {"lm_head.weight": weights["shared.weight"]}, source / "pytorch_model.bin")
    assert "lm_head.weight" not in converted(source)


def test_tensors_that_share_memory_without_being_tied_are_both_kept(original: Path, source: Path) -> None:
    weights = pickled_weights(original)
    whole = torch.arange(20.0)
    torch.save(
        weights | {"first": whole[:10], "second": whole[5:15], "turned": weights["shared.weight"].T},
        source / "pytorch_model.bin",
    )
    kept = converted(source)
    assert torch.equal(kept["first"], whole[:10])
    assert torch.equal(kept["second"], whole[5:15])
    assert torch.equal(kept["turned"], weights["shared.weight"].T)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["torch", "plain"]
)
def test_pickle_that_would_run_code_is_refused_and_runs_none(
    source: Path, tmp_path: Path, save: Callable[[Any, Path], None]
) -> None:
    made = tmp_path / "made"
    save({"shared.weight": MakesADirectory(made)}, source / "pytorch_model.bin")
    store = Store(tmp_path / "models")
    with pytest.raises(UnsafeModel, match="refused: it holds more than tensors"):
        import_directory(store, source, label="mine", convert=True)
    assert not made.exists()
    assert not list((store.root / "incoming").iterdir())
    # The same file does run its code when it is read without care: the test can fail.
    with contextlib.suppress(RuntimeError):
        torch.load(source / "pytorch_model.bin", weights_only=False)
    assert made.exists()


def test_refusal_names_what_the_pickle_asks_for(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"shared.weight": MakesADirectory(tmp_path / "made")}, source / "pytorch_model.bin")
    assert convert.main([str(source), str(tmp_path)]) == converting.EXIT_UNSAFE
    assert capsys.readouterr().err == "it holds more than tensors: it asks for posix.mkdir\n"


def test_broken_checkpoints_are_clear_errors(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = source / "pytorch_model.bin"
    content = path.read_bytes()
    torch.save([torch.ones(1)], path)
    listed = path.read_bytes()
    torch.save({"a": 3}, path)
    for broken, said in (
        (content[: len(content) // 2], "cut short or broken"),
        (b"", "cut short or broken"),
        (listed, "dictionary of tensors"),
        (path.read_bytes(), "dictionary of tensors"),
    ):
        path.write_bytes(broken)
        assert convert.main([str(source), str(source)]) == convert.EXIT_UNREADABLE
        assert said in capsys.readouterr().err
    path.unlink()
    assert convert.main([str(source), str(source)]) == convert.EXIT_UNREADABLE
    assert not (source / "model.safetensors").exists()


@pytest.mark.parametrize("named", ['{"weight_map": {"a": "../../secret.bin"}}', '{"weight_map": {"a": 1}}', "[]", "{", "{}"])
def test_index_that_names_foreign_files_is_refused(source: Path, named: str) -> None:
    (source / "pytorch_model.bin").unlink()
    (source / "pytorch_model.bin.index.json").write_text(named)
    with pytest.raises(convert.Unreadable, match=r"pytorch_model\.bin\.index\.json"):
        convert.convert_checkpoint(source, source)


def test_conversion_that_takes_too_long_is_ended(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="longer than"):
        converting.run(source, tmp_path, limit_s=0.05)
    assert not (tmp_path / "model.safetensors").exists()


def test_host_without_torch_says_so(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    with pytest.raises(ModelError, match="needs torch, which this host does not have"):
        converting.run(source, tmp_path)


def test_broken_checkpoint_of_an_import_leaves_nothing(source: Path, tmp_path: Path) -> None:
    path = source / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:1000])
    store = Store(tmp_path / "models")
    with pytest.raises(ModelUnreadable, match="could not be converted"):
        import_directory(store, source, label="mine", convert=True)
    assert not list((store.root / "incoming").iterdir())


def test_models_that_are_let_in_are_those_that_transformers_runs_on_text() -> None:
    known = set(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    assert known >= TEXT_MODELS
    others = ["asr", "audio", "flamingo", "granite", "nemo", "seamless", "voxtral", "transcribe", "t5gemma2"]
    assert {name for name in known - TEXT_MODELS if not any(part in name for part in others)} == set()

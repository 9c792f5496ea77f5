"""LoRA adapters come in as two files that fit their base, or not at all."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gistmill.errors import (
    DigestMismatch,
    GistmillError,
    ModelUnreadable,
    UnknownModel,
    UnsafeModel,
    UnsupportedModel,
)
from models_store import adapters, importing
from models_store import manifest as manifests
from models_store.manifest import Manifest
from models_store.store import Store
from tests.support.adapters import make_adapter
from tests.support.checkpoints import make_checkpoint

BLOCK = "encoder.block.0.layer.0.SelfAttention"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def base(store: Store, tmp_path: Path) -> Path:
    """The directory of a base in the store: two linear layers q and v, an embedding, a bias table and a tied output layer."""
    source = make_checkpoint(tmp_path / "base")
    save_file(
        {
            "shared.weight": np.ones((6, 8), np.float32),
            f"{BLOCK}.q.weight": np.ones((12, 8), np.float32),
            f"{BLOCK}.v.weight": np.ones((10, 8), np.float32),
            f"{BLOCK}.relative_attention_bias.weight": np.ones((4, 2), np.float32),
            "encoder.final_layer_norm.weight": np.ones(8, np.float32),
        },
        source / "model.safetensors",
    )
    return store.get(importing.import_directory(store, source, label="base").digest)


@pytest.fixture
def source(base: Path, tmp_path: Path) -> Path:
    return make_adapter(base, tmp_path / "adapter")


def add(store: Store, source: Path, base: Path) -> Manifest:
    return importing.import_directory(store, source, label="mine", base_digest=base.name)


def refuse(store: Store, source: Path, base: Path, kind: type[GistmillError], match: str) -> None:
    """The import fails with this error and leaves only the base in the store."""
    with pytest.raises(kind, match=match):
        add(store, source, base)
    assert [path.name for path in (store.root / "models").iterdir()] == [base.name]
    assert list((store.root / "incoming").iterdir()) == []


def change_config(source: Path, **changes: Any) -> None:
    path = source / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(source: Path, change: Callable[[dict[str, np.ndarray[Any, Any]]], object]) -> None:
    path = source / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_adapter_is_described_with_its_base(store: Store, source: Path, base: Path) -> None:
    (source / "README.md").write_text("mine")
    for name in ("tokenizer.json", "training_args.bin", "optimizer.pt", "adapter.py"):
        (source / name).write_text("x")
    manifest = add(store, source, base)
    assert (manifest.kind, manifest.base_digest, manifest.dtype) == ("adapter", base.name, "float32")
    assert manifest.parameters == 4 * (8 + 12) + 4 * (8 + 10)
    assert manifest.weight_bytes == 4 * manifest.parameters
    assert (manifest.architecture, manifest.model_type) == ("T5ForConditionalGeneration", "t5")
    assert [file.path for file in manifest.files] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert manifests.load(store.get(manifest.digest)) == manifest
    assert all(importing.is_allowed(file.path) for file in manifest.files)


def test_whole_model_is_described_as_before(store: Store, base: Path) -> None:
    manifest = manifests.load(base)
    assert (manifest.kind, manifest.base_digest) == ("model", None)


def test_what_an_adapter_changes_is_read_from_its_headers(source: Path, base: Path) -> None:
    found = adapters.read(source, base)
    assert found.tensors == {f"{BLOCK}.{name}": f"{BLOCK}.{name}.weight" for name in "qv"}
    assert (found.rank, found.scaling) == (4, 2.0)
    change_config(source, use_rslora=True)
    assert adapters.read(source, base).scaling == 4.0


def test_base_whose_files_leave_out_the_outermost_name_fits(source: Path, base: Path) -> None:
    shapes = {"encoder.layers.0.self_attn.q_proj.weight": (4, 4), "model.decoder.layers.0.fc1.weight": (4, 4)}
    assert adapters.find_tensor("model.encoder.layers.0.self_attn.q_proj", shapes) == "encoder.layers.0.self_attn.q_proj.weight"
    assert adapters.find_tensor("decoder.layers.0.fc1", shapes) == "model.decoder.layers.0.fc1.weight"
    assert adapters.find_tensor("decoder.layers.1.fc1", shapes) is None


def test_adapter_without_its_base_says_how_to_name_it(store: Store, source: Path, base: Path) -> None:
    change_config(source, base_model_name_or_path="google/flan-t5-small")
    with pytest.raises(
        UnsupportedModel, match=r"add it with --base and the model it belongs to\..*made for 'google/flan-t5-small'"
    ):
        importing.import_directory(store, source, label="mine")
    (source / "adapter_config.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"the model it belongs to\.$"):
        importing.import_directory(store, source, label="mine")


def test_base_that_is_an_adapter_or_not_there_is_refused(store: Store, source: Path, base: Path) -> None:
    digest = add(store, source, base).digest
    with pytest.raises(UnsupportedModel, match="itself an adapter"):
        importing.import_directory(store, source, label="mine", base_digest=digest)
    with pytest.raises(UnknownModel):
        importing.import_directory(store, source, label="mine", base_digest="0" * 64)


def test_whole_model_where_an_adapter_belongs_is_refused(store: Store, base: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=3)
    refuse(store, other, base, ModelUnreadable, r"holds no model\.safetensors")


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"peft_type": "IA3"}, UnsupportedModel, "peft_type is 'IA3'.*only LORA"),
        ({"peft_type": None}, UnsupportedModel, "peft_type is 'None'"),
        ({"task_type": "CAUSAL_LM"}, UnsupportedModel, "task_type is 'CAUSAL_LM'.*only SEQ_2_SEQ_LM"),
        ({"task_type": None}, UnsupportedModel, "task_type"),
        ({"r": 0}, UnsupportedModel, "rank r is 0"),
        ({"r": "8"}, UnsupportedModel, "rank r is 8 in"),
        ({"r": True}, UnsupportedModel, "rank r is True"),
        ({"lora_alpha": None}, UnsupportedModel, "lora_alpha is None"),
        ({"lora_alpha": float("nan")}, UnsupportedModel, "lora_alpha is nan"),
        ({"auto_mapping": {"parent_library": "evil"}}, UnsupportedModel, "needs code of its own"),
        ({"auto_map": {"x": "y"}}, UnsupportedModel, "needs code of its own"),
        ({"use_dora": True}, UnsupportedModel, "asks for use_dora"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedModel, "asks for modules_to_save"),
        ({"rank_pattern": {"q": 8}}, UnsupportedModel, "asks for rank_pattern"),
        ({"megatron_config": {"x": 1}}, UnsupportedModel, "asks for megatron_config"),
        ({"a_wish_of_tomorrow": 1}, UnsupportedModel, "asks for a_wish_of_tomorrow"),
        ({"bias": "lora_only"}, UnsupportedModel, "changes biases"),
        ({"init_lora_weights": "pissa"}, UnsupportedModel, "init_lora_weights 'pissa', which changes the base"),
        ({"r": 8}, ModelUnreadable, "does not fit its base.*r is 8, so that lora_A must be"),
        ({"target_modules": ["q", "v", "wi_7"]}, ModelUnreadable, "target modules wi_7 .*are called q, v"),
    ],
    ids=str,
)
def test_configuration_that_cannot_be_run_exactly_is_refused(
    store: Store, source: Path, base: Path, changes: dict[str, Any], kind: type[GistmillError], match: str
) -> None:
    change_config(source, **changes)
    refuse(store, source, base, kind, match)


def test_fields_that_mean_nothing_here_are_let_in(store: Store, source: Path, base: Path) -> None:
    from peft import LoraConfig

    config = LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q", "v"], r=4).to_dict()
    config |= {"target_modules": ["q", "v"], "peft_type": "LORA", "layers_to_transform": [0], "exclude_modules": ["k"]}
    (source / "adapter_config.json").write_text(json.dumps(config))
    assert add(store, source, base).kind == "adapter"
    change_config(source, target_modules=r".*(q|v)$")
    assert add(store, source, base).kind == "adapter"


def _rename(old: str, new: str) -> Callable[[dict[str, Any]], object]:
    return lambda tensors: [tensors.update({name.replace(old, new): tensors.pop(name)}) for name in sorted(tensors)]


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (
            _rename(".q.", ".wi_7."),
            ModelUnreadable,
            r"changes .*wi_7, which the base has no weights .* are called q, v\. Is it",
        ),
        (_rename(f"{BLOCK}.q.", "shared."), ModelUnreadable, "changes shared, which the base has no weights"),
        (_rename(f"{BLOCK}.q.", "lm_head."), ModelUnreadable, "changes lm_head, which the base has no weights of its own for"),
        (_rename("lora_A", "lora_embedding_A"), UnsupportedModel, "lora_embedding_A.* is no LoRA weight"),
        (_rename("lora_B.weight", "lora_magnitude_vector"), UnsupportedModel, "is no LoRA weight"),
        (_rename("base_model.model.", ""), UnsupportedModel, "is no LoRA weight"),
        (lambda t: t.pop(f"base_model.model.{BLOCK}.q.lora_B.weight"), ModelUnreadable, "but the adapter has lora_A"),
        (
            lambda t: t.update({f"base_model.model.{BLOCK}.q.lora_B.weight": np.ones((9, 4))}),
            ModelUnreadable,
            r"lora_B \[9, 4\]",
        ),
        (
            lambda t: [t.pop(f"base_model.model.{BLOCK}.q.lora_{side}.weight") for side in "AB"],
            ModelUnreadable,
            "target modules q in",
        ),
        (lambda t: t.clear(), ModelUnreadable, "holds no tensors"),
    ],
    ids=[
        "unknown module",
        "embedding",
        "tied output layer",
        "embedding adapter",
        "dora",
        "other names",
        "half a pair",
        "shape",
        "target without tensors",
        "nothing",
    ],
)
def test_tensors_that_do_not_fit_the_base_are_refused(
    store: Store,
    source: Path,
    base: Path,
    change: Callable[[dict[str, Any]], object],
    kind: type[GistmillError],
    match: str,
) -> None:
    change_tensors(source, change)
    refuse(store, source, base, kind, match)


def test_adapter_that_lacks_a_layer_was_cut_short(store: Store, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "base")
    names = [f"decoder.block.{number}.q" for number in range(2)]
    save_file({f"{name}.weight": np.ones((4, 4), np.float32) for name in names}, source / "model.safetensors")
    base = store.get(importing.import_directory(store, source, label="base").digest)
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q"])
    assert add(store, adapter, base).kind == "adapter"
    change_tensors(adapter, lambda t: [t.pop(f"base_model.model.{names[1]}.lora_{side}.weight") for side in "AB"])
    with pytest.raises(ModelUnreadable, match=r"lacks the tensors of decoder\.block\.1\.q"):
        add(store, adapter, base)
    change_config(adapter, layers_to_transform=[0])
    assert add(store, adapter, base).kind == "adapter"


def test_missing_and_broken_files_are_refused(store: Store, source: Path, base: Path) -> None:
    weights = source / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    refuse(store, source, base, ModelUnreadable, r"adapter_model\.safetensors cannot be read")
    weights.unlink()
    refuse(store, source, base, ModelUnreadable, r"holds no adapter_model\.safetensors")
    weights.write_bytes(content)
    (source / "adapter_config.json").write_text("[]")
    refuse(store, source, base, ModelUnreadable, r"adapter_config\.json is not a JSON object")
    (source / "adapter_config.json").unlink()
    refuse(store, source, base, ModelUnreadable, r"no adapter_config\.json")


def test_pickled_adapter_says_how_to_convert_it(store: Store, source: Path, base: Path) -> None:
    (source / "adapter_model.safetensors").unlink()
    (source / "adapter_model.bin").write_bytes(pickle.dumps({}))
    refuse(
        store, source, base, UnsafeModel, r"adapter_model\.bin, a pickled file, and no adapter_model\.safetensors.*--convert"
    )
    (source / "adapter_model.bin").rename(source / "adapter_model.pt")
    refuse(store, source, base, UnsafeModel, "only pickled weights")


def test_link_that_leaves_the_directory_is_refused(store: Store, source: Path, base: Path) -> None:
    (source / "adapter_config.json").rename(source.parent / "elsewhere.json")
    (source / "adapter_config.json").symlink_to("../elsewhere.json")
    refuse(store, source, base, UnsafeModel, r"adapter_config\.json is a link that leaves")


def test_adapter_with_a_manifest_must_fit_it(store: Store, source: Path, base: Path) -> None:
    manifests.write(source, add(store, source, base))
    assert add(store, source, base)
    change_config(source, lora_alpha=9)
    with pytest.raises(DigestMismatch):
        add(store, source, base)


def test_merged_model_is_kept_while_it_is_asked_for(store: Store, base: Path, tmp_path: Path) -> None:
    with store.staging() as staged:
        for path in base.iterdir():
            (staged / path.name).write_bytes(path.read_bytes())
        directory = store.publish_merged(staged, manifests.load(base), base_digest=base.name, adapter_digest="1" * 64)
    for path in (directory, *directory.iterdir()):
        os.utime(path, (1, 1))
    assert store.find_merged(base.name, "1" * 64) == directory
    assert store.sweep(older_than_s=60) == 0
    os.utime(directory, (1, 1))
    assert store.sweep(older_than_s=60) == 1
    assert store.find_merged(base.name, "1" * 64) is None

"""What a finished run leaves: a whole model, or an adapter in peft's format; nothing of this machine in either.

Files, in result/ of the run's work directory:
    full     model.safetensors (float32) and the base's own configuration, tokenizer and licence
    lora     adapter_config.json and adapter_model.safetensors
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from models_store.importing import is_allowed
from models_store.weights import is_weight_file
from workers.training import files
from workers.training.plan import RESULT, TrainingPlan

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# A model card speaks of the model that it came with.
LEFT_OUT = ("README.md",)


def publish(model: Any, plan: TrainingPlan) -> Path:
    """Write the result of a run in one step and return its directory."""
    target = plan.work_dir / RESULT
    with files.written_aside(target) as aside:
        if plan.method == "lora":
            _write_adapter(model, aside)
        else:
            _write_model(model, aside, base_dir=plan.base_dir)
    return target


def _write_adapter(model: Any, directory: Path) -> None:
    model.save_pretrained(directory, save_embedding_layers=False)
    _keep_only(directory, ADAPTER_FILES)
    # peft writes the set of targets in an order that differs from run to run, and equal adapters should have equal files.
    path = directory / ADAPTER_FILES[0]
    fields = json.loads(path.read_text(encoding="utf-8"))
    _write_json(path, fields | {"target_modules": sorted(fields["target_modules"])})


def _write_model(model: Any, directory: Path, *, base_dir: Path) -> None:
    """Write the weights as transformers does, and everything else as the base has it.

    transformers would write `tie_word_embeddings` true whatever the model is, and other readers would believe it.
    """
    model.save_pretrained(directory)
    _keep_only(directory, [path.name for path in directory.iterdir() if is_weight_file(path.name)])
    for path in base_dir.iterdir():
        if is_allowed(path.name) and not is_weight_file(path.name) and path.name not in LEFT_OUT:
            shutil.copyfile(path, directory / path.name)
    _name_dtype(directory / "config.json")


def _name_dtype(config: Path) -> None:
    fields = json.loads(config.read_text(encoding="utf-8"))
    fields.pop("torch_dtype", None)
    _write_json(config, fields | {"dtype": "float32"})


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _keep_only(directory: Path, names: list[str] | tuple[str, ...]) -> None:
    for path in directory.iterdir():
        if path.name not in names:
            path.unlink()

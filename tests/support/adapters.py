"""LoRA adapters in peft's format, with random weights that change what their base writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = {
    "base_model_name_or_path": "",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "peft_type": "LORA",
    "r": 4,
    "target_modules": ["q", "v"],
    "task_type": "SEQ_2_SEQ_LM",
}


def make_adapter(base: Path, directory: Path, *, seed: int = 0, strength: float = 0.3, **changes: Any) -> Path:
    """Write an adapter of the model in `base` and return its directory; `changes` go into its configuration."""
    import numpy as np
    from safetensors.numpy import save_file

    from models_store.weights import read_shapes

    config = CONFIG | changes
    numbers = np.random.default_rng(seed)
    tensors = {}
    for name, shape in read_shapes(base).items():
        module = name.removesuffix(".weight")
        if any(module == target or module.endswith(f".{target}") for target in config["target_modules"]):
            for side, size in (("A", (config["r"], shape[1])), ("B", (shape[0], config["r"]))):
                tensors[f"base_model.model.{module}.lora_{side}.weight"] = numbers.normal(0, strength, size).astype(np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory

"""Which T5 checkpoints the engines for T5 run, told from their configuration alone; no torch, no ctranslate2."""

from __future__ import annotations

from pathlib import Path

from gistmill.specs.generation import INT8_MODEL_TYPES
from models_store import config as configs

# What was compared with transformers token by token, by each of these engines. Add one with its test.
MODEL_TYPES = INT8_MODEL_TYPES
ACTIVATIONS = frozenset({"relu", "gated-gelu"})


def find_obstacle(directory: Path) -> str | None:
    """Return why the checkpoint of a directory cannot be run, as far as its configuration tells; None when nothing does.

    Raises:
        ModelUnreadable, UnsupportedModel: no engine runs it.
    """
    config = configs.read_config(directory)
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        return f"it runs T5 models only, and this is a {kind} model"
    activation = config.get("feed_forward_proj", "relu")
    if activation not in ACTIVATIONS:
        return f"it does not know the activation {activation}"
    return None

"""What a model's config.json says, read without running anything of the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gistmill.errors import ModelUnreadable, UnsupportedModel

# The encoder-decoders among transformers' models that read text; a test holds this against transformers' own list.
# fmt: off
TEXT_MODELS = frozenset({
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "fsmt", "led", "longt5", "m2m_100",
    "marian", "mbart", "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x", "plbart", "prophetnet", "switch_transformers", "t5",
    "t5gemma", "umt5",
})
# fmt: on
POSITIONS = ("max_encoder_position_embeddings", "max_position_embeddings")


def read_config(directory: Path) -> dict[str, Any]:
    """Return the model's config.json, checked to be that of an encoder-decoder for text that needs no code of its own.

    Raises:
        ModelUnreadable: a JSON file of the model is missing or broken.
        UnsupportedModel: it is another kind of model, or brings code.
    """
    config = read_json(directory / "config.json")
    tokenizer = directory / "tokenizer_config.json"
    if _brings_code(config) or (tokenizer.is_file() and _brings_code(read_json(tokenizer))):
        raise UnsupportedModel("The model needs code of its own (auto_map in its configuration), which Gistmill never runs.")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in TEXT_MODELS or config.get("is_encoder_decoder", True) is not True:
        raise UnsupportedModel(
            f"The model (model_type {str(kind)[:60]!r} in config.json) is not an encoder-decoder for text; "
            "Gistmill runs T5, FLAN-T5, BART, Pegasus and their kin."
        )
    return config


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file of the model holds.

    Raises:
        ModelUnreadable: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelUnreadable(f"The model has no {path.name}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnreadable(f"The model's {path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelUnreadable(f"The model's {path.name} is not a JSON object.")
    return value


def architecture(config: dict[str, Any]) -> str:
    """Return the name of the model's class, such as T5ForConditionalGeneration."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else "unknown"


def max_positions(config: dict[str, Any]) -> int | None:
    """Return how many tokens the encoder can read at most; None for relative positions, which have no limit."""
    encoder = config.get("encoder")
    for part in (config, encoder if isinstance(encoder, dict) else {}):
        for name in POSITIONS:
            value = part.get(name)
            if isinstance(value, int) and value > 0:
                return value
    return None


def _brings_code(config: dict[str, Any]) -> bool:
    """True when `auto_map` names a class of the model's own, at any depth: composite models nest their configurations."""
    left: list[Any] = [config]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "auto_map" in value:
                return True
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return False

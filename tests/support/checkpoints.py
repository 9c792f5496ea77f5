"""Model directories that are right in every way but hold a handful of numbers, made without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG = {"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]}


def make_checkpoint(directory: Path, *, seed: int = 0, rows: int = 4, config: dict[str, Any] | None = None) -> Path:
    """Write a configuration, a tokenizer and weights of 8 * rows + 8 parameters; other seeds give other weights."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    write_tokenizer(directory)
    save_file(_tensors(seed, rows), directory / "model.safetensors")
    return directory


def shard(directory: Path) -> Path:
    """Split the weights of a checkpoint over two files and an index."""
    tensors = _tensors(0, 4)
    names = {name: f"model-0000{number}-of-00002.safetensors" for number, name in enumerate(sorted(tensors), start=1)}
    for tensor, name in names.items():
        save_file({tensor: tensors[tensor]}, directory / name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (directory / "model.safetensors").unlink()
    return directory


def write_tokenizer(directory: Path, *, most_tokens: int | None = None) -> None:
    """Write a tokenizer of one token per word and an end token; `most_tokens` makes it cut and pad, as published ones do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", "hello", "there"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    if most_tokens is not None:
        tokenizer.enable_truncation(most_tokens)
        tokenizer.enable_padding(length=most_tokens)
    tokenizer.save(str(directory / "tokenizer.json"))


def _tensors(seed: int, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.default_rng(seed)
    return {
        "shared.weight": numbers.standard_normal((rows, 8), dtype=np.float32),
        "lm_head.weight": numbers.standard_normal(8, dtype=np.float32),
    }

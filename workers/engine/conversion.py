"""A T5 checkpoint in CTranslate2's form.

Files of a converted model:
    model.bin, config.json, shared_vocabulary.json    CTranslate2's own
    tokens.json                                       what our engine needs to know: the size of the vocabulary, the end tokens

In int8 every matrix is stored in 8 bits with a scale per row, and the rest in float32.

Tokens have their numbers for names: CTranslate2 takes tokens as strings and looks them up, and a tokenizer may have two tokens
of one name, or more or fewer tokens than the model.

Memory, measured on FLAN-T5-small's shape (308 MB in float32): at its peak 530 MB above what the process had before, which is
1.7 times the weights in float32; nearly all of it is given back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import ctranslate2
import torch
from ctranslate2.converters.transformers import T5Loader

from gistmill.errors import UnsupportedModel
from workers.engine import merging
from workers.engine.checkpoint import LoadedModel, load_model

ComputeType = Literal["float32", "bfloat16", "int8_float32"]
TOKENS_FILE = "tokens.json"
# The last number is ours: it rises when what we write changes.
VERSION = f"ctranslate2.{ctranslate2.__version__}.1"


def convert(source: Path, target: Path, compute_type: ComputeType, adapter: Path | None = None) -> None:
    """Write the model of `source`, with an adapter of it merged in float32, into the empty directory `target`.

    Raises:
        ModelUnreadable, UnsupportedModel: the checkpoint cannot be read or converted, or the adapter does not fit it.
    """
    loaded = load_model(source, device="cpu", precision="float32")
    if adapter is not None:
        merging.merge(loaded.model, source, adapter)
    start, ends = _start_and_ends(loaded)
    with torch.inference_mode():
        spec = _describe(loaded.model, start)
        spec.optimize(quantization=compute_type)
        spec.save(str(target))
    tokens = {"vocabulary": loaded.model.config.vocab_size, "ends": ends}
    (target / TOKENS_FILE).write_text(json.dumps(tokens) + "\n", encoding="utf-8")


def _start_and_ends(loaded: LoadedModel) -> tuple[int, list[int]]:
    special = loaded.special_tokens
    if "eos_token_id" not in special or "forced_bos_token_id" in special:
        raise UnsupportedModel("A model without an end token, or with a forced first one, cannot be converted.")
    start, ends = special.get("decoder_start_token_id", special.get("bos_token_id")), special["eos_token_id"]
    assert isinstance(start, int), "load_model takes no model without a start token"
    return start, ends if isinstance(ends, list) else [ends]


def _describe(model: Any, start: int) -> Any:
    """Return the model as CTranslate2 describes it, complete.

    Its loader divides the scores of models that say `tie_word_embeddings` by sqrt(d_model). transformers 5 makes that flag
    true for every T5 and keeps the checkpoint's own in `scale_decoder_outputs`; mT5, which has no such, is never scaled.
    """
    model.config.tie_word_embeddings = bool(getattr(model.config, "scale_decoder_outputs", False))
    try:
        spec = T5Loader().get_model_spec(model)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"CTranslate2 cannot describe the model: {type(error).__name__}: {error}") from error
    names = [str(token) for token in range(model.config.vocab_size)]
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.config.bos_token = spec.config.decoder_start_token = names[start]
    # CTranslate2 answers an input of nothing but `eos_token` with nothing, without asking the model. The engine names the end
    # tokens with each call, so this one may be another. Nor is anything unknown: the engine refuses such tokens.
    spec.config.eos_token = spec.config.unk_token = names[start]
    spec.config.layer_norm_epsilon = model.config.layer_norm_epsilon
    spec.validate()
    return spec

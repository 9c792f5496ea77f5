"""A checkpoint directory as a model in memory: safetensors only, no code of the checkpoint, complete or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from gistmill.errors import InvalidSpec, ModelUnavailable, ModelUnreadable, UnsupportedModel
from gistmill.specs import Precision

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
READ_ERRORS = (OSError, EOFError, ImportError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError)
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id")
NO_LIMIT = 10**9


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, its tokenizer, and what the checkpoint says about both.

    `max_positions` and `max_decoder_positions` are None for models with relative positions, which have no hard limit.
    """

    model: Any
    tokenizer: Any
    special_tokens: dict[str, Any]
    max_positions: int | None
    max_decoder_positions: int | None


def load_model(directory: Path, *, device: str, precision: Precision) -> LoadedModel:
    """Load the encoder-decoder model of a local directory onto a device.

    Raises:
        InvalidSpec: the precision is not offered.
        ModelUnreadable: a file is missing or broken, or weights are missing (transformers would invent them).
        UnsupportedModel: it is another kind of model, a bare adapter, or one that needs its own code.
        ModelUnavailable: the device has no room for the weights now.
    """
    dtype = resolve_dtype(precision, device)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        config = _read_config(directory)
        tokenizer = _read_tokenizer(directory)
        model, report = AutoModelForSeq2SeqLM.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except READ_ERRORS as error:
        raise ModelUnreadable(f"The model in {directory.name} cannot be read: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelUnreadable(f"The model in {directory.name} lacks {len(missing)} of its weights, the first is {missing[0]}.")
    return LoadedModel(
        model=_place(model, device),
        tokenizer=tokenizer,
        special_tokens=_special_tokens(directory, model),
        max_positions=_positions(config, "encoder"),
        max_decoder_positions=_positions(config, "decoder"),
    )


def load_tokenizer(directory: Path) -> Any:
    """Load the tokenizer of a local directory, without a limit of its own.

    Raises:
        ModelUnreadable: a file is missing or broken.
    """
    try:
        return _read_tokenizer(directory)
    except READ_ERRORS as error:
        raise ModelUnreadable(f"The tokenizer in {directory.name} cannot be read: {_first_line(error)}") from error


def resolve_dtype(precision: str, device: str) -> torch.dtype:
    """Return the dtype to compute in: "native" is bfloat16 on GPUs and float32 on CPUs.

    Raises:
        InvalidSpec: the precision is not offered; fp16 never is, because T5 overflows in it.
    """
    if precision == "native":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if precision in DTYPES:
        return DTYPES[precision]
    reason = ": T5 models overflow to NaN in it" if precision in ("fp16", "float16", "half") else ""
    raise InvalidSpec(f"Precision {precision} is not offered{reason}; use native, bfloat16 or float32.")


def _read_config(directory: Path) -> Any:
    if not directory.is_dir():
        raise ModelUnreadable(f"The model directory {directory.name} does not exist.")
    if (directory / "adapter_config.json").exists():
        raise UnsupportedModel(f"{directory.name} holds an adapter, not a whole model.")
    config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if not config.is_encoder_decoder:
        raise UnsupportedModel(
            f"{directory.name} is a {config.model_type} model; only encoder-decoder text models can be used."
        )
    return config


def _read_tokenizer(directory: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    tokenizer.model_max_length = NO_LIMIT
    return tokenizer


def _place(model: Any, device: str) -> Any:
    try:
        return model.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise ModelUnavailable(f"The device {device} has no room for the model now. Trying again is safe.") from error


def _special_tokens(directory: Path, model: Any) -> dict[str, Any]:
    """Return the checkpoint's special tokens, and take everything else out of its generation config.

    transformers fills what our config leaves open from `model.generation_config`, so that one has to be clean too.
    """
    found = {name: getattr(model.generation_config, name, None) for name in SPECIAL_TOKENS}
    special = {name: value for name, value in found.items() if value is not None}
    if not {"decoder_start_token_id", "bos_token_id"} & special.keys():
        raise UnsupportedModel(f"{directory.name} names no decoder_start_token_id, so nothing can be generated with it.")
    model.generation_config = GenerationConfig(**special)  # type: ignore[no-untyped-call]
    return special


def _positions(config: Any, side: str) -> int | None:
    part = getattr(config, side, config)
    limit = getattr(part, f"max_{side}_position_embeddings", None) or getattr(part, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0][:300]}"

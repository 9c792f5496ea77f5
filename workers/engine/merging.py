"""A LoRA adapter becomes part of its base's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gistmill.errors import ModelUnreadable
from models_store import adapters
from models_store.adapters import Adapter

MERGE_ERRORS = (AttributeError, OSError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError)


def merge(model: Any, base: Path, adapter: Path) -> None:
    """Add the change of the adapter in a directory to a model that was loaded from `base` in float32.

    Raises:
        ModelUnreadable, UnsupportedModel: it is no adapter of this base.
    """
    found = adapters.read(adapter, base)
    try:
        change = load_file(adapter / adapters.WEIGHTS)
        for module in found.tensors:
            layer = model.get_submodule(module)
            layer.weight = torch.nn.Parameter(add_change(layer.weight, found, module, change), requires_grad=False)
    except MERGE_ERRORS as error:
        raise ModelUnreadable(f"The adapter {adapter.name[:16]} cannot be merged into its base: {error}") from error


def add_change(weight: torch.Tensor, adapter: Adapter, module: str, change: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return W + scaling * B @ A in W's dtype, computed in float32: W (out, in), B (out, r), A (r, in)."""
    a, b = read_factors(change, module)
    return (weight.detach().float() + adapter.scaling * (b @ a)).to(weight.dtype).contiguous()


def read_factors(change: Mapping[str, torch.Tensor], module: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (r, in) and B (out, r) of a module in float32, from the tensors of an adapter."""
    a, b = (change[f"base_model.model.{module}.lora_{side}.weight"].float() for side in "AB")
    return a, b

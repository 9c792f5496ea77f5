"""LoRA adapters that stay on one base model and take turns: switching sets flags and moves no weight.

Shapes: a layer's weight W (out, in), an adapter's lora_A (r, in) and lora_B (out, r); a row x gives W x + scaling * B (A x).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.functional import delete_adapter, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file

from gistmill.errors import ModelUnavailable, ModelUnreadable
from gistmill.specs import GenerationParameters, Overflow
from models_store import adapters as stored
from models_store.adapters import Adapter
from workers.engine.base import Engine, Failure, More, Outcome, Prompt, Row

LOAD_ERRORS = (OSError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError)
PREFIX = "lora_"


class AdapterRack:
    """The adapters of one model. Outside of `active` the model is exactly its base.

    A layer without an active adapter calls its base layer and nothing else, so that the base's texts stay the same bit by bit.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._layers: dict[str, list[LoraLayer]] = {}

    def add(self, digest: str, directory: Path, base: Path) -> int:
        """Put the adapter of a directory onto the model and return the bytes that it occupies.

        Raises:
            ModelUnreadable, UnsupportedModel: it is no adapter of this base.
            ModelUnavailable: the device has no room for it now.
        """
        adapter = stored.read(directory, base)
        try:
            self._layers[digest] = self._put(digest, adapter, load_file(directory / stored.WEIGHTS))
        except torch.OutOfMemoryError as error:
            self.remove(digest)
            raise ModelUnavailable(
                f"The device has no room for the adapter {digest[:16]} now. Trying again is safe."
            ) from error
        except LOAD_ERRORS as error:
            self.remove(digest)
            raise ModelUnreadable(f"The adapter {digest[:16]} cannot be put onto its base: {error}") from error
        return sum(weight.numel() * weight.element_size() for weight in self._weights(digest))

    def remove(self, digest: str) -> None:
        """Take an adapter off the model; one that is not there is no error."""
        with _quiet():
            delete_adapter(self._model, digest, PREFIX)
        getattr(self._model, "peft_config", {}).pop(digest, None)
        self._layers.pop(digest, None)
        self._switch_off()

    @contextmanager
    def active(self, digest: str) -> Iterator[None]:
        """Let the model be the base with this adapter meanwhile."""
        layers = self._layers[digest]
        for layer in layers:
            layer.set_adapter(digest, inference_mode=True)
            # enable_adapters(True) would ask for gradients as well.
            layer._disable_adapters = False
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(False)

    def _put(self, digest: str, adapter: Adapter, tensors: dict[str, torch.Tensor]) -> list[LoraLayer]:
        """Return the layers that the adapter changes. Its name in peft is its digest: peft takes no dots in names."""
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # It is only divided, and may be a fraction.
            use_rslora=adapter.is_rank_stabilized,
            target_modules=list(adapter.tensors),
            inference_mode=True,
            init_lora_weights=False,
        )
        with _quiet():
            inject_adapter_in_model(config, self._model, adapter_name=digest)
        self._switch_off()
        result: Any = set_peft_model_state_dict(self._model, tensors, adapter_name=digest)
        missing = [name for name in result.missing_keys if f".{digest}." in name]
        if missing or result.unexpected_keys:
            raise ValueError(f"{len(missing)} tensors are missing and {len(result.unexpected_keys)} belong nowhere")
        return self._find_layers(digest)

    def _find_layers(self, digest: str) -> list[LoraLayer]:
        layers = (module for module in self._model.modules() if isinstance(module, LoraLayer))
        return [layer for layer in layers if digest in layer.lora_A]

    def _weights(self, digest: str) -> Iterator[Any]:
        for layer in self._layers[digest]:
            yield layer.lora_A[digest].weight
            yield layer.lora_B[digest].weight

    def _switch_off(self) -> None:
        for module in self._model.modules():
            if isinstance(module, LoraLayer):
                module.enable_adapters(False)


class AdaptedEngine:
    """A base engine with one of its adapters. It shares the base's model, and changes it only while a batch runs."""

    def __init__(self, base: Engine, rack: AdapterRack, digest: str) -> None:
        self._base = base
        self._rack = rack
        self._digest = digest
        self.name = base.name
        self.device = base.device
        self.dtype = base.dtype
        self.weight_bytes = 0
        self.page_rows = base.page_rows

    def generate(
        self,
        prompts: Sequence[Prompt],
        parameters: GenerationParameters,
        *,
        max_input_tokens: int,
        on_overflow: Overflow,
        should_stop: Callable[[], bool],
    ) -> Iterator[list[Outcome]]:
        """Read and complete these prompts; see `Engine.generate`."""
        return self._switching(
            self._base.generate(
                prompts, parameters, max_input_tokens=max_input_tokens, on_overflow=on_overflow, should_stop=should_stop
            )
        )

    def read(
        self, prompts: Sequence[Prompt], *, max_input_tokens: int, on_overflow: Overflow, should_stop: Callable[[], bool]
    ) -> list[Row | Failure]:
        """Return each prompt as the model reads it, or why it must not: an adapter reads as its base does."""
        return self._base.read(prompts, max_input_tokens=max_input_tokens, on_overflow=on_overflow, should_stop=should_stop)

    def complete(
        self,
        rows: Sequence[Row],
        parameters: GenerationParameters,
        should_stop: Callable[[], bool],
        more: More | None = None,
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of each micro-batch; see `Engine.complete`."""
        return self._switching(self._base.complete(rows, parameters, should_stop, more))

    def _switching(self, batches: Iterator[list[Outcome]]) -> Iterator[list[Outcome]]:
        """Let the adapter be on its base only while a micro-batch is made."""
        while True:
            with self._rack.active(self._digest):
                outcomes = next(batches, None)
            if outcomes is None:
                return
            yield outcomes

    def close(self) -> None:
        """Do nothing: the memory is the base engine's to give back."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep peft's remarks away: they are about training, and about merging into a tied output layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""LoRA adapters merged into the weights in place: one at a time, at the addresses that a recorded step reads.

Shapes: a module's weight W (out, in), an adapter's A (r, in) and B (out, r); merged it is W + scaling * B @ A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gistmill.errors import ModelUnreadable
from gistmill.specs import GenerationParameters
from models_store import adapters as stored
from models_store.weights import is_weight_file
from workers.engine.base import More, Outcome, Row
from workers.engine.graph.weights import T5Weights
from workers.engine.merging import read_factors
from workers.engine.reading import ReadingEngine

LOAD_ERRORS = (OSError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError)


class Change(NamedTuple):
    """What an adapter adds to one module: scaling * up @ down, with up (out, r) and down (r, in) in float32 on the host."""

    up: Tensor
    down: Tensor
    scaling: float


class Merger:
    """Makes the weights those of the base with one of its adapters, or of the base.

    Every merge starts from the base's own weights in float32, kept on the host for the modules that an adapter changes, so that
    no rounding adds up, and that a base comes back bit by bit.
    """

    def __init__(self, weights: T5Weights, base: Path) -> None:
        self._weights = weights
        self._base = base
        self._changes: dict[str, dict[str, Change]] = {}
        self._masters: dict[str, Tensor] = {}
        self._merged: str | None = None

    @property
    def bytes(self) -> int:
        """What adapters and masters occupy on the host."""
        changes = [change for changes in self._changes.values() for change in changes.values()]
        tensors = [*self._masters.values(), *(part for change in changes for part in (change.up, change.down))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def add(self, digest: str, directory: Path) -> None:
        """Read the adapter of a directory.

        Raises:
            ModelUnreadable, UnsupportedModel: it is no adapter of this base.
        """
        adapter = stored.read(directory, self._base)
        try:
            tensors = load_file(directory / stored.WEIGHTS)
            changes = {module: _read_change(tensors, module, adapter.scaling) for module in adapter.tensors}
            missing = {module: name for module, name in adapter.tensors.items() if module not in self._masters}
            masters = _read_masters(self._base, missing)
            self._check(changes, masters)
        except LOAD_ERRORS as error:
            raise ModelUnreadable(f"The adapter {digest[:16]} cannot be put onto its base: {error}") from error
        self._masters |= masters
        self._changes[digest] = changes

    def remove(self, digest: str) -> None:
        """Forget an adapter; one that is not there is no error."""
        if self._merged == digest:
            self.merge(None)
        self._changes.pop(digest, None)
        used = {module for changes in self._changes.values() for module in changes}
        self._masters = {module: master for module, master in self._masters.items() if module in used}

    def merge(self, digest: str | None) -> None:
        """Let the weights be those of the base with this adapter, or of the base. No row may be in flight."""
        if digest == self._merged:
            return
        wanted = self._changes[digest] if digest is not None else {}
        before = self._changes[self._merged] if self._merged is not None else {}
        with torch.inference_mode():
            for module in before.keys() - wanted.keys():
                self._weights.parts[module].copy_(self._masters[module])
            for module, change in wanted.items():
                merged = self._masters[module] + change.scaling * (change.up @ change.down)
                self._weights.parts[module].copy_(merged)
        self._merged = digest

    def _check(self, changes: Mapping[str, Change], masters: Mapping[str, Tensor]) -> None:
        for module in changes:
            if module not in self._weights.parts or not (module in self._masters or module in masters):
                raise ValueError(f"the engine has no weight of its own for {module}")


class AdaptedEngine(ReadingEngine):
    """A base engine with one of its adapters. It shares the base's weights, which are merged when its rows have the desk."""

    def __init__(
        self, base: ReadingEngine, run: Callable[..., Iterator[list[Outcome]]], encode: Callable[..., list[list[int]]]
    ) -> None:
        self._run_adapted = run
        self._encode_text = encode
        self.name = base.name
        self.device = base.device
        self.dtype = base.dtype
        self.weight_bytes = 0
        self.page_rows = base.page_rows

    def close(self) -> None:
        """Do nothing: the memory is the base engine's to give back."""

    def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
        return self._encode_text(texts, limit)

    def complete(
        self,
        rows: Sequence[Row],
        parameters: GenerationParameters,
        should_stop: Callable[[], bool],
        more: More | None = None,
    ) -> Iterator[list[Outcome]]:
        """Yield outcomes as rows end; see `Engine.complete`."""
        return self._run_adapted(rows, parameters, should_stop, more)


def _read_change(tensors: Mapping[str, Tensor], module: str, scaling: float) -> Change:
    down, up = read_factors(tensors, module)
    return Change(up, down, scaling)


def _read_masters(base: Path, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the base's weights in float32 by module, from the names of their tensors in its files."""
    found: dict[str, Tensor] = {}
    for path in sorted(base.glob("*.safetensors")):
        if is_weight_file(path.name):
            with safe_open(path, framework="pt") as file:
                held = set(file.keys())
                found |= {module: file.get_tensor(name).float() for module, name in names.items() if name in held}
    return found

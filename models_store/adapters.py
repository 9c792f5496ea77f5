"""LoRA adapters in peft's format: two files beside a base, checked against that base from their headers alone.

An adapter is let in only when nothing about it is open: LoRA on linear layers, one rank and one scale, no weights of its own
elsewhere. So the engine can run it, swap it and merge it, and all three give the same text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistmill.errors import ModelUnreadable, UnsupportedModel
from models_store import config as configs
from models_store import weights
from models_store.config import read_json
from models_store.manifest import Manifest, content_digest, list_files
from models_store.weights import FileHeader, Weights

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
TENSOR = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<side>[AB])\.weight")
# These say how the adapter was trained or which layers it has, and its tensors say the latter too.
HARMLESS = frozenset({
    "base_model_name_or_path", "revision", "inference_mode", "peft_version", "peft_type", "task_type", "r", "lora_alpha",
    "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "use_rslora",
    "megatron_core", "qalora_group_size",
})  # fmt: skip
# Other ways to begin change the base before training, and such an adapter fits only the changed one.
HARMLESS_STARTS = (True, False, None, "gaussian")
CODE = ("auto_mapping", "auto_map", "custom_modules")
NO_TARGETS = re.compile(r"embed|shared|relative_attention_bias|norm")
MOST_NAMED = 12


@dataclass(frozen=True)
class Adapter:
    """What an adapter changes: to each module's weight W (out, in) it adds scaling * B @ A, with B (out, r) and A (r, in).

    `tensors` gives the name under which the base's files hold the weight of a module.
    """

    rank: int
    alpha: float
    is_rank_stabilized: bool
    tensors: dict[str, str]
    weights: Weights

    @property
    def scaling(self) -> float:
        """The factor of the change."""
        return self.alpha / (math.sqrt(self.rank) if self.is_rank_stabilized else self.rank)


def is_adapter_file(name: str) -> bool:
    """True for the plain names of the files that make an adapter."""
    return name in (CONFIG, WEIGHTS)


def holds_adapter(names: Iterable[str]) -> bool:
    """True when one of these files belongs to an adapter."""
    return any(is_adapter_file(name) or name == PICKLED for name in names)


def describe(directory: Path, base: Path, *, base_digest: str, source: str) -> Manifest:
    """Return the manifest of the adapter in a directory, made for the model in `base`.

    Raises:
        ModelUnreadable, UnsupportedModel: as `read` does.
    """
    adapter = read(directory, base)
    config = configs.read_config(base)
    entries = list_files(directory)
    return Manifest(
        digest=content_digest(entries),
        files=entries,
        architecture=configs.architecture(config),
        model_type=str(config.get("model_type", "")),
        parameters=adapter.weights.parameters,
        weight_bytes=adapter.weights.bytes,
        dtype=adapter.weights.dtype,
        max_positions=configs.max_positions(config),
        kind="adapter",
        base_digest=base_digest,
        source=source,
    )


def read(directory: Path, base: Path) -> Adapter:
    """Return what the adapter in a directory changes of the model in `base`, with every tensor checked to fit.

    Raises:
        ModelUnreadable: a file is missing or broken, or a tensor does not fit the base.
        UnsupportedModel: it is no LoRA for encoder-decoders, or asks for something that is not supported.
    """
    config = read_json(directory / CONFIG)
    rank, alpha = _read_config(config)
    header = weights.read_header(directory / WEIGHTS)
    shapes = weights.read_shapes(base)
    tensors = _match(header, shapes, rank)
    _check_targets(config, tensors, shapes)
    return Adapter(rank, alpha, bool(config.get("use_rslora")), tensors, weights.weigh([header]))


def named_base(directory: Path) -> str:
    """Return what the adapter's configuration calls its base, or nothing when it says nothing."""
    try:
        named = read_json(directory / CONFIG).get("base_model_name_or_path")
    except ModelUnreadable:
        return ""
    return named[:200] if isinstance(named, str) else ""


def _read_config(config: Mapping[str, Any]) -> tuple[int, float]:
    """Return rank and alpha."""
    if any(config.get(name) for name in CODE):
        raise UnsupportedModel(f"The adapter needs code of its own ({CODE[0]} in {CONFIG}), which Gistmill never runs.")
    for field, wanted in (("peft_type", "LORA"), ("task_type", "SEQ_2_SEQ_LM")):
        if config.get(field) != wanted:
            raise UnsupportedModel(
                f"The adapter's {field} is {str(config.get(field))[:60]!r} in {CONFIG}; Gistmill runs only {wanted}, LoRA "
                "adapters of encoder-decoders."
            )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UnsupportedModel(f"The adapter's rank r is {str(rank)[:60]} in {CONFIG}; it must be 1 or more.")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise UnsupportedModel(f"The adapter's lora_alpha is {str(alpha)[:60]} in {CONFIG}; it must be a number.")
    _check_rest(config)
    return rank, float(alpha)


def _check_rest(config: Mapping[str, Any]) -> None:
    """Refuse every wish that is not known to leave the result alone; versions of peft to come bring new ones."""
    start = config.get("init_lora_weights")
    if start not in HARMLESS_STARTS:
        raise UnsupportedModel(
            f"The adapter began with init_lora_weights {str(start)[:60]!r}, which changes the base. Save it again as a plain "
            "LoRA adapter (peft: path_initial_model_for_weight_conversion)."
        )
    if config.get("bias", "none") != "none":
        raise UnsupportedModel(f"The adapter changes biases (bias {str(config['bias'])[:60]!r}), which is not supported.")
    known = HARMLESS | {"init_lora_weights", "bias"}
    wishes = [name for name, value in config.items() if name not in known and value]
    if wishes:
        raise UnsupportedModel(f"The adapter asks for {wishes[0][:60]} in {CONFIG}, which is not supported.")


def _match(header: FileHeader, shapes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, str]:
    """Return the base's tensor of each module that the adapter changes."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in header.tensors.items():
        parts = TENSOR.fullmatch(name)
        if parts is None:
            raise UnsupportedModel(f"The adapter holds {name[:120]}, which is no LoRA weight of a linear layer.")
        found.setdefault(parts["module"], {})[parts["side"]] = tensor.shape
    if not found:
        raise ModelUnreadable(f"The adapter's {WEIGHTS} holds no tensors.")
    return {module: _check_module(module, sides, shapes, rank) for module, sides in sorted(found.items())}


def _check_module(module: str, sides: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], rank: int) -> str:
    tensor = find_tensor(module, shapes)
    if tensor is None:
        raise ModelUnreadable(
            f"The adapter changes {module[:120]}, which the base has no weights of its own for. The base's linear layers are "
            f"called {', '.join(target_names(shapes))}. Is it the adapter's base?"
        )
    out, into = shapes[tensor]
    if sides != {"A": (rank, into), "B": (out, rank)}:
        seen = ", ".join(f"lora_{side} {list(shape)}" for side, shape in sorted(sides.items()))
        raise ModelUnreadable(
            f"The adapter does not fit its base at {module[:120]}: the base's weight is {[out, into]} and r is {rank}, so that "
            f"lora_A must be {[rank, into]} and lora_B {[out, rank]}, but the adapter has {seen}."
        )
    return tensor


def find_tensor(module: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return the name of a linear module's weight in the base's files; some leave out the outermost `model.`, others add it."""
    for name in (module, module.removeprefix("model."), f"model.{module}"):
        if len(shapes.get(f"{name}.weight", ())) == 2 and not NO_TARGETS.search(name.rpartition(".")[2]):
            return f"{name}.weight"
    return None


def target_names(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return what the linear layers of a model are called, such as q and v: what an adapter can name as its targets."""
    modules = (name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2)
    return sorted({module.rpartition(".")[2] for module in modules if not NO_TARGETS.search(module.rpartition(".")[2])})


def _check_targets(config: Mapping[str, Any], tensors: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """See that the tensors are those of the targets; a pattern instead of names is left to the tensors."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        return
    unknown = [target for target in targets if not any(_is_target(module, target) for module in tensors)]
    if unknown:
        raise ModelUnreadable(
            f"The adapter names the target modules {', '.join(unknown)[:200]} in {CONFIG} and holds no tensors for them. The "
            f"base's linear layers are called {', '.join(target_names(shapes)[:MOST_NAMED])}."
        )
    if any(config.get(name) for name in ("exclude_modules", "layers_to_transform", "layers_pattern")):
        return
    changed = set(tensors.values())
    for tensor in shapes:
        module = tensor.removesuffix(".weight")
        if (
            find_tensor(module, shapes) == tensor
            and tensor not in changed
            and any(_is_target(module, name) for name in targets)
        ):
            raise ModelUnreadable(f"The adapter lacks the tensors of {module}, which it names as a target: it was cut short.")


def _is_target(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")

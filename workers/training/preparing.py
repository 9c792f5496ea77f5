"""A loaded model made ready for training: all of its weights, or an adapter on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import set_seed

from gistmill.specs import Precision
from workers.training.failures import UnknownTargets
from workers.training.plan import TrainingPlan

ADAPTABLE = (torch.nn.Linear, torch.nn.Embedding)


def precision_of(plan: TrainingPlan) -> Precision:
    """Return the precision to load the base in.

    Weights that train stay float32, for steps as small as a fine-tuning's vanish in bfloat16; those of a base that an adapter
    leaves as they are need only be as precise as what is computed with them.
    """
    return "bfloat16" if plan.method == "lora" and uses_bfloat16(plan.device) else "float32"


def uses_bfloat16(device: str) -> bool:
    """Say whether to compute in bfloat16. fp16 is never used: T5 models overflow in it."""
    return device == "cuda" and torch.cuda.is_bf16_supported()


def prepare(model: Any, plan: TrainingPlan) -> Any:
    """Return the model to train; for LoRA with fresh adapters, which the seed decides.

    Raises:
        UnknownTargets: the model lacks a module that should be adapted; the message lists those that exist.
    """
    set_seed(plan.seed)
    if plan.method == "full":
        return model.requires_grad_(True)
    check_targets(model, plan.targets)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM,
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=plan.dropout,
        target_modules=list(plan.targets),
    )
    adapted = get_peft_model(model, config)
    # It would be the path of a directory on this machine; who publishes the adapter knows the base's name.
    adapted.peft_config["default"].base_model_name_or_path = ""
    return adapted


def check_targets(model: torch.nn.Module, targets: Sequence[str]) -> None:
    """Return when the model has modules of all these names; peft itself ignores a name that fits nothing beside one that does.

    Raises:
        UnknownTargets: it lacks one.
    """
    paths = [path for path, module in model.named_modules() if isinstance(module, ADAPTABLE)]
    unknown = [target for target in targets if not any(path == target or path.endswith(f".{target}") for path in paths)]
    if unknown:
        known = sorted({path.rsplit(".", 1)[-1] for path in paths})
        raise UnknownTargets(f"The model has no modules named {', '.join(unknown)}; choose from {', '.join(known)}.")


def trainable_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that training changes, by name; weights that are shared appear once."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def restore_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Overwrite the weights that training changes, in place."""
    with torch.no_grad():
        for name, weight in trainable_weights(model).items():
            weight.copy_(weights[name])


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable and of all parameters."""
    counts = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(number for number, is_trainable in counts if is_trainable), sum(number for number, _ in counts)

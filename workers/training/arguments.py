"""A plan in the words of transformers' Trainer."""

from __future__ import annotations

from transformers import Seq2SeqTrainingArguments

from workers.training.plan import TrainingPlan
from workers.training.preparing import uses_bfloat16


def training_arguments(plan: TrainingPlan, *, effective_batch: int, total_steps: int) -> Seq2SeqTrainingArguments:
    """Return the plan in transformers' words. Linear decay after the warm-up and gradients clipped at 1 are its defaults."""
    return Seq2SeqTrainingArguments(
        output_dir=str(plan.work_dir),
        max_steps=total_steps,
        per_device_train_batch_size=effective_batch,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        warmup_steps=plan.warmup_steps,
        seed=plan.seed,
        optim="adamw_torch_fused",
        bf16=uses_bfloat16(plan.device),
        use_cpu=plan.device == "cpu",
        activation_checkpointing=plan.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if plan.gradient_checkpointing else None,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )

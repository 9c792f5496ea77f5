"""What a training child is told to do. Imports no torch, so that any process can write a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CHECKPOINTS = "checkpoints"
RESULT = "result"

StopMetric = Literal["rouge1", "rouge2", "rougeL", "rougeLsum", "loss"]


class TrainingPlan(BaseModel):
    """One training run under one epoch of a lease.

    `train_file` and `validation_file` are JSON Lines of {"prompt": str, "references": [str, …]}; the first reference is the
    target. `batch_size` None starts at a size that fits the device; a lack of memory halves it and accumulates more, so that
    batch_size x gradient_accumulation rows stay one optimizer step. `evaluate_every` and `checkpoint_every` count optimizer
    steps; without `evaluate_every` an evaluation ends each epoch, and one always ends the run.

    `work_dir` belongs to this epoch alone: checkpoints/ and result/ appear in it. `resume_dirs` are those of earlier epochs,
    newest first, and are only read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_dir: Path
    method: Literal["full", "lora"]
    rank: int = Field(32, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: tuple[str, ...] = Field(("q", "v"), min_length=1)
    epochs: float = Field(1.0, gt=0, allow_inf_nan=False)
    max_steps: int | None = Field(None, ge=1)
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    batch_size: int | None = Field(None, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    warmup_steps: int = Field(0, ge=0)
    seed: int = Field(ge=0, lt=2**32)
    max_input_tokens: int = Field(2048, ge=2)
    max_target_tokens: int = Field(512, ge=2, le=4096)
    train_file: Path
    validation_file: Path | None = None
    evaluate_every: int | None = Field(None, ge=1)
    early_stop_patience: int | None = Field(None, ge=1)
    early_stop_metric: StopMetric = "rougeL"
    checkpoint_every: int = Field(ge=1)
    kept_checkpoints: int = Field(2, ge=1)
    gradient_checkpointing: bool = False
    dataloader_workers: int = Field(0, ge=0)
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(0, ge=0)
    work_dir: Path
    resume_dirs: tuple[Path, ...] = ()

    @model_validator(mode="after")
    def _check_that_there_is_something_to_stop_by(self) -> TrainingPlan:
        if self.early_stop_patience is not None and self.validation_file is None:
            raise ValueError("early_stop_patience needs a validation_file")
        return self

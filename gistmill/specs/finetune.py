"""What a finetune job asks for."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gistmill.settings import DEFAULT_MODEL
from gistmill.specs.generation import LARGEST_PRIORITY

Method = Literal["full", "lora"]
# The notebook's defaults.
LEARNING_RATES: dict[Method, float] = {"full": 1e-5, "lora": 1e-3}
STOPPING_METRICS = ("loss", "rouge_1", "rouge_2", "rouge_l", "rouge_lsum")
EARLY_STOP = re.compile(rf"({'|'.join(STOPPING_METRICS)})(?::patience=([1-9]\d{{0,3}}))?")
LORA_FIELDS = ("rank", "alpha", "dropout", "targets")


class FinetuneSpec(BaseModel):
    """Tune a model on the rows of a dataset that have references; the result is a model version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["finetune"] = "finetune"
    dataset: str = Field(min_length=1, max_length=300, description="A dataset's id or name.")
    select: str | None = Field(None, max_length=1_000_000, description="Rows to take: [0:10], [::100] or [10,20,30].")
    model: str = Field(DEFAULT_MODEL, min_length=1, max_length=300, description="The base model.")
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Name of the result; by default BASE-METHOD."
    )
    method: Method = Field("lora", description="full tunes every weight, lora an adapter.")
    rank: int = Field(32, ge=1, le=1024, description="LoRA: rank r.")
    alpha: int = Field(32, ge=1, le=4096, description="LoRA: scale alpha.")
    dropout: float = Field(0.05, ge=0, lt=1, description="LoRA: dropout.")
    targets: tuple[str, ...] = Field(("q", "v"), min_length=1, max_length=64, description="LoRA: modules to adapt.")
    epochs: float = Field(1.0, gt=0, le=1000, allow_inf_nan=False)
    max_steps: int | None = Field(None, ge=1, le=10_000_000, description="Optimizer steps, instead of epochs.")
    learning_rate: float | None = Field(
        None, gt=0, le=1, allow_inf_nan=False, description="By default 1e-5 for full and 1e-3 for lora."
    )
    batch_size: int | Literal["auto"] = Field("auto", description="Rows per step and device, or auto.")
    gradient_accumulation: int = Field(1, ge=1, le=4096, description="Batches per optimizer step.")
    gradient_checkpointing: bool = Field(False, description="Compute activations twice to save memory.")
    weight_decay: float = Field(0.01, ge=0, le=1)
    warmup_steps: int = Field(0, ge=0, le=1_000_000, description="Steps over which the learning rate rises.")
    seed: int = Field(0, ge=0, lt=2**32)
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="A dataset's id or name, or the part of the rows to keep back, such as 0.1."
    )
    evaluate_every: int | None = Field(None, ge=1, description="Steps between evaluations; by default after each epoch.")
    early_stop: str | None = Field(None, description="METRIC:patience=N: loss, rouge_1, rouge_2, rouge_l or rouge_lsum.")
    prompt: str = Field("instruction", min_length=1, max_length=100, description="A prompt, name or name@version.")
    max_input_tokens: int = Field(2048, ge=1, le=1_000_000, description="Longer prompts are cut.")
    max_target_tokens: int = Field(512, ge=1, le=100_000, description="Longer references are cut.")
    checkpoint_every: int | None = Field(None, ge=1, description="Steps between checkpoints; by default 100.")
    priority: int = Field(0, ge=-LARGEST_PRIORITY, le=LARGEST_PRIORITY, description="Higher runs first.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)

    @field_validator("validation", mode="before")
    @classmethod
    def _read_part(cls, value: object) -> object:
        """A number in a text is a part: command lines know only texts."""
        return float(value) if isinstance(value, str) and re.fullmatch(r"0?\.\d{1,9}", value) else value

    @field_validator("batch_size")
    @classmethod
    def _check_batch_size(cls, value: int | str) -> int | str:
        if isinstance(value, int) and not 1 <= value <= 65_536:
            raise ValueError("a batch holds 1 to 65,536 rows")
        return value

    @field_validator("early_stop")
    @classmethod
    def _check_early_stop(cls, value: str | None) -> str | None:
        if value is not None and not EARLY_STOP.fullmatch(value):
            raise ValueError(f"write METRIC or METRIC:patience=N with one of {', '.join(STOPPING_METRICS)}")
        return value

    @model_validator(mode="after")
    def _check_that_fields_fit_together(self) -> FinetuneSpec:
        if self.early_stop and self.validation is None:
            raise ValueError("early_stop needs validation data: name a dataset or a part of the rows")
        if self.method == "full":
            changed = [name for name in LORA_FIELDS if getattr(self, name) != type(self).model_fields[name].default]
            if changed:
                raise ValueError(f"{changed[0]} has an effect only with method lora")
        return self

    @property
    def rate(self) -> float:
        """The learning rate that the training begins with."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def stopping(self) -> tuple[str, int] | None:
        """The metric that stops the training early, and after how many evaluations without a gain."""
        found = EARLY_STOP.fullmatch(self.early_stop or "")
        return (found[1], int(found[2] or 1)) if found else None

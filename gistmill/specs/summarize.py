"""What a summarize job asks for, and the recipe that follows from it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gistmill.settings import DEFAULT_MODEL
from gistmill.specs.generation import (
    LARGEST_PRIORITY,
    PRECISION_HELP,
    GenerationParameters,
    Overflow,
    Precision,
    check_precision,
)


class SummarizeSpec(BaseModel):
    """Summarize the rows of a dataset with one model and one prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["summarize"] = "summarize"
    dataset: str = Field(min_length=1, max_length=300, description="A dataset's id or name.")
    select: str | None = Field(None, max_length=1_000_000, description="Rows to take: [0:10], [::100] or [10,20,30].")
    model: str = Field(DEFAULT_MODEL, min_length=1, max_length=300)
    prompt: str = Field("instruction", min_length=1, max_length=100, description="A prompt, name or name@version.")
    generation: GenerationParameters = GenerationParameters()
    max_input_tokens: int = Field(2048, ge=1, le=1_000_000, description="Most tokens of a prompt, special tokens included.")
    on_overflow: Overflow = Field("fail", description="What happens to a longer prompt.")
    precision: Precision = Field("native", description=PRECISION_HELP)
    priority: int = Field(0, ge=-LARGEST_PRIORITY, le=LARGEST_PRIORITY, description="Higher runs first.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)

    @field_validator("precision", mode="before")
    @classmethod
    def _refuse_fp16(cls, value: object) -> object:
        if value in ("fp16", "float16", "half"):
            raise ValueError("fp16 is not offered: T5 models overflow to NaN in it; use native, bfloat16 or float32")
        return value

    @model_validator(mode="after")
    def _check_that_an_engine_fits(self) -> SummarizeSpec:
        check_precision(self.precision, (self.generation,))
        return self


def recipe(spec: SummarizeSpec, *, model_digest: str, prompt_digest: str) -> dict[str, Any]:
    """Return everything but the dialogue that decides the text, as plain JSON values."""
    return {
        "model": model_digest,
        "prompt": prompt_digest,
        "generation": spec.generation.canonical(),
        "max_input_tokens": spec.max_input_tokens,
        "precision": spec.precision,
    }

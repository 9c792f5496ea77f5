"""What a user asks for: the body of a job, shared by client and api, and the recipe that follows from it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gistmill.errors import Detail, InvalidSpec
from gistmill.settings import DEFAULT_MODEL

SPEC_VERSION = 1
LARGEST_PRIORITY = 100


class GenerationParameters(BaseModel):
    """How the model writes, in the terms of transformers' GenerationConfig. Every field that matters is part of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: int = Field(128, ge=1, le=4096)
    num_beams: int = Field(1, ge=1, le=16)
    do_sample: bool = False
    temperature: float = Field(1.0, gt=0, le=10, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, le=100_000)
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _check_that_parameters_fit_together(self) -> GenerationParameters:
        changed = [
            name
            for name in ("temperature", "top_p", "top_k", "seed")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if changed and not self.do_sample:
            raise ValueError(f"{changed[0]} has an effect only with do_sample; set do_sample or leave it out")
        if self.do_sample and self.num_beams > 1:
            raise ValueError("do_sample and num_beams cannot be combined; choose sampling or beams")
        return self

    def canonical(self) -> dict[str, Any]:
        """Return the fields that decide the text; equal texts have equal canonical forms."""
        fields: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.do_sample,
        }
        if self.do_sample:
            fields |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "seed": self.seed}
        return fields


Precision = Literal["native", "float32", "bfloat16"]
Overflow = Literal["fail", "truncate"]


class SummarizeSpec(BaseModel):
    """Summarize the rows of a dataset with one model and one prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["summarize"] = "summarize"
    dataset: str = Field(min_length=1, max_length=300, description="A dataset's id or name.")
    select: str | None = Field(None, max_length=1_000_000, description="Rows to take: [0:10], [::100] or [10,20,30].")
    model: str = Field(DEFAULT_MODEL, min_length=1, max_length=300)
    prompt: str = Field("instruction", min_length=1, max_length=100)
    generation: GenerationParameters = GenerationParameters()
    max_input_tokens: int = Field(2048, ge=1, le=1_000_000, description="Most tokens of a prompt, special tokens included.")
    on_overflow: Overflow = Field("fail", description="What happens to a longer prompt.")
    precision: Precision = Field("native", description="bfloat16 on GPUs and float32 on CPUs, or one of them everywhere.")
    priority: int = Field(0, ge=-LARGEST_PRIORITY, le=LARGEST_PRIORITY, description="Higher runs first.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)

    @field_validator("precision", mode="before")
    @classmethod
    def _refuse_fp16(cls, value: object) -> object:
        if value in ("fp16", "float16", "half"):
            raise ValueError("fp16 is not offered: T5 models overflow to NaN in it; use native, bfloat16 or float32")
        return value


def parse_spec(body: dict[str, Any]) -> SummarizeSpec:
    """Return the spec that a request body holds.

    Raises:
        InvalidSpec: `details` name each field that does not fit, by JSON pointer.
    """
    try:
        return SummarizeSpec.model_validate(body)
    except ValidationError as error:
        details = [
            Detail(
                problem["type"],
                problem["msg"].removeprefix("Value error, "),
                pointer="/" + "/".join(str(part) for part in problem["loc"]),
            )
            for problem in error.errors(include_url=False)
        ]
        first = details[0]
        raise InvalidSpec(f"The job cannot run as written: {first.pointer}: {first.message}.", details=details) from error


def recipe(spec: SummarizeSpec, *, model_digest: str, prompt_digest: str) -> dict[str, Any]:
    """Return everything but the dialogue that decides the text, as plain JSON values."""
    return {
        "model": model_digest,
        "prompt": prompt_digest,
        "generation": spec.generation.canonical(),
        "max_input_tokens": spec.max_input_tokens,
        "precision": spec.precision,
    }


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

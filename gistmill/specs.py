"""What a user asks for: the body of a job, shared by client and api, and the recipe that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from gistmill.errors import Detail, InvalidSpec
from gistmill.settings import DEFAULT_MODEL

T = TypeVar("T")

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
    prompt: str = Field("instruction", min_length=1, max_length=100)
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


def _kind_of(body: Any) -> str:
    """A body without a kind asks for summaries, as all did before there were others."""
    kind = body.get("kind", "summarize") if isinstance(body, dict) else getattr(body, "kind", "summarize")
    return str(kind)


NO_SUCH_KIND = "there is no such kind of job; there are summarize and finetune"
JobSpec = Annotated[
    Annotated[SummarizeSpec, Tag("summarize")] | Annotated[FinetuneSpec, Tag("finetune")],
    Discriminator(_kind_of, custom_error_type="unknown_kind", custom_error_message=NO_SUCH_KIND),
]


def parse_spec(body: dict[str, Any]) -> SummarizeSpec:
    """Return the summarize spec that a request body holds.

    Raises:
        InvalidSpec: `details` name each field that does not fit, by JSON pointer.
    """
    return _parse(TypeAdapter(SummarizeSpec), body)


def parse_finetune_spec(body: dict[str, Any]) -> FinetuneSpec:
    """Return the finetune spec that a request body holds.

    Raises:
        InvalidSpec: `details` name each field that does not fit, by JSON pointer.
    """
    return _parse(TypeAdapter(FinetuneSpec), body)


def _parse(adapter: TypeAdapter[T], body: dict[str, Any]) -> T:
    try:
        return adapter.validate_python(body)
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

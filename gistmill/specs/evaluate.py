"""What an evaluate job asks for: which summaries to score against which references, and how."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gistmill.specs.generation import (
    LARGEST_PRIORITY,
    PRECISION_HELP,
    GenerationParameters,
    Overflow,
    Precision,
    check_precision,
)

ReferenceRule = Literal["max", "mean", "each"]
OF_A_JOB = "job:"
# Names stand in gates and column headings: what separates there cannot be part of them.
SYSTEM_NAME = re.compile(r"[^\s,=<>\"'`|]{1,200}")
METRIC_NAME = re.compile(r"[a-z][a-z0-9_]{0,49}")
MOST_SYSTEMS = 32


class SystemSpec(BaseModel):
    """One of those that are compared. A text is short for it: MODEL, NAME=MODEL, or job:ID for what a job has made.

    A prompt or generation parameters of its own make it differ from the others, which the comparison says aloud.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(None, description="What it is called; by default its model reference.")
    model: str = Field(min_length=1, max_length=300, description="A model reference, or job:ID.")
    prompt: str | None = Field(None, min_length=1, max_length=100)
    generation: GenerationParameters | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name, equals, model = value.partition("=")
        return {"name": name.strip(), "model": model.strip()} if equals else {"model": value.strip()}

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str | None) -> str | None:
        if value is not None and not SYSTEM_NAME.fullmatch(value):
            raise ValueError("a name has 1 to 200 characters without spaces, commas, quotes or any of = < > |")
        return value

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.model

    @property
    def job_id(self) -> str | None:
        """The job whose product or summaries are meant, or None."""
        return self.model.removeprefix(OF_A_JOB) if self.model.startswith(OF_A_JOB) else None


class EvaluateSpec(BaseModel):
    """Score the summaries of several models, or of columns of a file, against references, and compare them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["evaluate"] = "evaluate"
    dataset: str = Field(min_length=1, max_length=300, description="A dataset's id or name: dialogues with references.")
    select: str | None = Field(None, max_length=1_000_000, description="Rows to take: [0:10], [::100] or [10,20,30].")
    models: tuple[SystemSpec, ...] = Field((), max_length=MOST_SYSTEMS, description="What is compared, the baseline first.")
    predictions: str | None = Field(
        None, max_length=300, description="A dataset of summaries made elsewhere, row by row beside `dataset`."
    )
    columns: tuple[str, ...] = Field((), max_length=MOST_SYSTEMS, description="Its columns that hold summaries.")
    baseline: str | None = Field(None, max_length=300, description="The name that the others are compared with.")
    prompt: str = Field("instruction", min_length=1, max_length=100)
    generation: GenerationParameters = GenerationParameters()
    max_input_tokens: int = Field(2048, ge=1, le=1_000_000, description="Most tokens of a prompt, special tokens included.")
    on_overflow: Overflow = Field("fail", description="What happens to a longer prompt.")
    precision: Precision = Field("native", description=PRECISION_HELP)
    metrics: tuple[str, ...] = Field(("rouge",), min_length=1, max_length=16)
    stemming: bool = Field(True, description="ROUGE compares word stems (Porter), as the notebook does.")
    references: ReferenceRule = Field("max", description="Several references of a case: the best, the mean, or each alone.")
    resamples: int = Field(5_000, ge=100, le=1_000_000, description="Of the bootstrap and of the randomization test.")
    seed: int = Field(0, ge=0, lt=2**63)
    priority: int = Field(0, ge=-LARGEST_PRIORITY, le=LARGEST_PRIORITY, description="Higher runs first.")
    labels: dict[str, str] = Field(default_factory=dict, max_length=32)

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = next((name for name in value if not METRIC_NAME.fullmatch(name)), None)
        if wrong is not None:
            raise ValueError(f"'{wrong[:60]}' is no name of a metric: lower-case letters, digits and _, never a path")
        if len(set(value)) < len(value):
            raise ValueError("a metric is named twice")
        return value

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = next((name for name in value if not name or len(name) > 200), None)
        if wrong is not None:
            raise ValueError("a column's name has 1 to 200 characters")
        return value

    @model_validator(mode="after")
    def _check_that_fields_fit_together(self) -> EvaluateSpec:
        if bool(self.models) == bool(self.predictions):
            raise ValueError("name either models, or predictions with their columns")
        if bool(self.predictions) != bool(self.columns):
            raise ValueError("predictions and the columns that hold them are named together")
        names = self.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is there twice; give each its own name: NAME=MODEL")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"the baseline '{self.baseline}' is not among {', '.join(names)}")
        check_precision(self.precision, (system.generation or self.generation for system in self.models))
        return self

    @property
    def names(self) -> list[str]:
        """What the compared are called, in the order given."""
        return list(self.columns) or [system.label for system in self.models]

    @property
    def ordered(self) -> list[str]:
        """What the compared are called, the baseline first; without one the first named is it."""
        first = self.baseline or self.names[0]
        return [first, *(name for name in self.names if name != first)]

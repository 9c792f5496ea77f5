"""How the model writes, and what every kind of job may ask for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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

    @property
    def is_greedy(self) -> bool:
        """True when each token is the one of the best score."""
        return self.num_beams == 1 and not self.do_sample

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


Precision = Literal["native", "float32", "bfloat16", "int8"]
Overflow = Literal["fail", "truncate"]
PRECISION_HELP = (
    "bfloat16 on GPUs and float32 on CPUs, or one of them everywhere; int8: smaller and faster, greedy T5 on CPUs only."
)
# The architectures whose greedy decoding in int8 an engine offers.
INT8_MODEL_TYPES = frozenset({"t5", "mt5"})


def check_precision(precision: Precision, wanted: Iterable[GenerationParameters]) -> None:
    """Check that an engine writes in these ways in this precision.

    Raises:
        ValueError: none does; it says what to change.
    """
    if precision == "int8" and not all(parameters.is_greedy for parameters in wanted):
        raise ValueError("int8 is offered for greedy decoding only; leave beams and sampling out, or use precision native")

"""What a user asks for: the body of a job, shared by client and api, and the recipe that follows from it."""

from __future__ import annotations

from gistmill.specs.digests import combined_digest, digest_of
from gistmill.specs.evaluate import EvaluateSpec, ReferenceRule, SystemSpec
from gistmill.specs.experiment import ExperimentSpec
from gistmill.specs.finetune import FinetuneSpec
from gistmill.specs.generation import SPEC_VERSION, GenerationParameters, Overflow, Precision
from gistmill.specs.parsing import (
    AnySpec,
    JobSpec,
    parse_evaluate_spec,
    parse_experiment_spec,
    parse_finetune_spec,
    parse_spec,
)
from gistmill.specs.summarize import SummarizeSpec, recipe

__all__ = [
    "SPEC_VERSION",
    "AnySpec",
    "EvaluateSpec",
    "ExperimentSpec",
    "FinetuneSpec",
    "GenerationParameters",
    "JobSpec",
    "Overflow",
    "Precision",
    "ReferenceRule",
    "SummarizeSpec",
    "SystemSpec",
    "combined_digest",
    "digest_of",
    "parse_evaluate_spec",
    "parse_experiment_spec",
    "parse_finetune_spec",
    "parse_spec",
    "recipe",
]

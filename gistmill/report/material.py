"""What a report is made from: an experiment as it is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gistmill.views import CaseView, ComparisonView, ExperimentView, JobView, MetricView, PromptView


@dataclass(frozen=True)
class Tuning:
    """A training: its job, and the last points of its curve by kind (train, eval)."""

    name: str
    job: JobView
    last: Mapping[str, MetricView] = field(default_factory=dict)


@dataclass(frozen=True)
class Material:
    """An experiment with its comparisons by name, the prompts by the names of their systems, and cases to show.

    `example` is a case of the comparison of the prompts; `cases`, `worst` and `best` are of the comparison of the models.
    """

    experiment: ExperimentView
    comparisons: Mapping[str, ComparisonView]
    tunings: Sequence[Tuning] = ()
    prompts: Mapping[str, PromptView] = field(default_factory=dict)
    example: CaseView | None = None
    cases: Sequence[CaseView] = ()
    worst: Sequence[CaseView] = ()
    best: Sequence[CaseView] = ()
    version: str = ""

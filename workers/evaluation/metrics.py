"""The metrics of an evaluation by name: `rouge` is ours, any other is a module from the operator's directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gistmill.errors import MetricFailed
from workers.evaluation import modules, rouge
from workers.evaluation.metric_process import UNWATCHED, Progress
from workers.evaluation.rouge import MEASURES, Score

ROUGE = "rouge"


class Metric(Protocol):
    """Scores pairs of a prediction and a reference. `signature` says what computed: name, version, options."""

    @property
    def name(self) -> str:
        """What the evaluation calls it."""
        ...

    @property
    def signature(self) -> str:
        """What decides its figures beside the texts."""
        ...

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that it gives of every pair."""
        ...

    def score(
        self, predictions: Sequence[str], references: Sequence[str], *, progress: Progress = UNWATCHED
    ) -> list[dict[str, Score]]:
        """Return the scores of each prediction against the reference at its place, by measure.

        Raises:
            MetricFailed: a module failed; `fields["pair"]` is the place of the pair it failed on.
            Stopped: `progress` gave that reason.
        """
        ...

    def close(self) -> None:
        """Give back what it holds. Closing twice is no error, and another `score` opens it again."""


class Rouge:
    """ROUGE-1, 2, L and Lsum."""

    name = ROUGE
    measures = MEASURES

    def __init__(self, *, stemming: bool) -> None:
        self.stemming = stemming

    @property
    def signature(self) -> str:
        """Return definition, implementation and options."""
        stemming = "with" if self.stemming else "without"
        return f"{rouge.implementation()}, {stemming} stemming, rougeLsum splits at newlines"

    def score(
        self, predictions: Sequence[str], references: Sequence[str], *, progress: Progress = UNWATCHED
    ) -> list[dict[str, Score]]:
        """Return the scores of each pair; see `Metric`."""
        scores = rouge.score_pairs(predictions, references, stemming=self.stemming)
        progress.tick()
        return scores

    def close(self) -> None:
        """Hold nothing."""


def load_metric(name: str, *, stemming: bool, directory: Path | None, progress: Progress = UNWATCHED) -> Metric:
    """Return the metric of this name, ready to score. A module is started and tried on a pair, which takes seconds.

    Raises:
        UnknownMetric: neither ours nor in `directory`; it names those that are.
        MetricFailed: the module cannot be used.
        Stopped: `progress` gave that reason.
    """
    if name == ROUGE:
        return Rouge(stemming=stemming)
    metric = modules.ModuleMetric(name, modules.find(name, directory))
    metric.open(progress)
    return metric


def load_metrics(
    names: Sequence[str], *, stemming: bool, directory: Path | None, progress: Progress = UNWATCHED
) -> list[Metric]:
    """Return the metrics of these names; none is left open when one fails.

    Raises:
        UnknownMetric, MetricFailed, Stopped: as `load_metric` does; MetricFailed also when two give measures of the same name.
    """
    metrics: list[Metric] = []
    is_done = False
    try:
        for name in names:
            metrics.append(load_metric(name, stemming=stemming, directory=directory, progress=progress))
            _check_measures(metrics)
        is_done = True
        return metrics
    finally:
        if not is_done:
            for metric in metrics:
                metric.close()


def _check_measures(metrics: Sequence[Metric]) -> None:
    *earlier, last = metrics
    taken = {measure: metric.name for metric in earlier for measure in metric.measures} | dict.fromkeys(MEASURES, ROUGE)
    twice = next((measure for measure in last.measures if taken.get(measure, last.name) != last.name), None)
    if twice is not None:
        raise MetricFailed(
            f"The metrics '{taken[twice]}' and '{last.name}' both give a measure '{twice}'. "
            "Give the module's folder and file another name.",
            metric=last.name,
        )

"""Metric modules of Hugging Face `evaluate` in the operator's directory: one folder each, NAME/NAME.py.

A job names a module and never a path. Modules run in a child process, because `import evaluate` brings torch along, and because
they are not ours: one that hangs is killed, one that dies takes nobody with it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gistmill.errors import MetricFailed, UnknownMetric
from gistmill.specs.evaluate import METRIC_NAME
from workers.evaluation.metric_process import UNWATCHED, MetricProcess, NoAnswer, Progress
from workers.evaluation.rouge import Score

TRIAL = ("Anna asks Ben to send the report today.", "Anna wants Ben to send her the report.")
LOAD_LIMIT_S = 300.0
PAIR_LIMIT_S = 60.0
LONGEST_MEASURE = 100


def find(name: str, directory: Path | None) -> Path:
    """Return the file of the module of this name.

    Raises:
        UnknownMetric: there is none, or it lies outside of the directory.
    """
    if directory is None:
        raise UnknownMetric(
            f"There is no metric '{name}': only rouge is built in, and this worker has no directory of further ones. "
            "Its operator sets GISTMILL_WORKER__METRICS_DIR."
        )
    path = directory / name / f"{name}.py"
    if not METRIC_NAME.fullmatch(name) or not path.is_file():
        known = ", ".join(["rouge", *list_names(directory)])
        raise UnknownMetric(f"There is no metric '{name[:60]}'. This worker knows: {known}.")
    if not path.resolve().is_relative_to(directory.resolve()):
        raise UnknownMetric(f"The metric '{name}' is a link out of this worker's directory of metrics, which is not followed.")
    return path.resolve()


def list_names(directory: Path) -> list[str]:
    """Return the names of the modules in the directory, sorted; none when it does not exist."""
    names = (path.stem for path in directory.glob("*/*.py") if path.stem == path.parent.name)
    return sorted(name for name in names if METRIC_NAME.fullmatch(name))


class ModuleMetric:
    """A module in a child process. Each number of its answer becomes a measure.

    The only one is called as the metric, several NAME_KEY. It is called pair by pair, so that every pair has its own score.
    """

    def __init__(
        self, name: str, path: Path, *, load_limit_s: float = LOAD_LIMIT_S, pair_limit_s: float = PAIR_LIMIT_S
    ) -> None:
        self.name = name
        self.measures: tuple[str, ...] = ()
        self.signature = f"{name} {_digest(path)[:12]}"
        self._path = path
        self._load_limit_s, self._pair_limit_s = load_limit_s, pair_limit_s
        self._process: MetricProcess | None = None

    def open(self, progress: Progress = UNWATCHED) -> None:
        """Start the module and try it on a pair, which tells its measures.

        Raises:
            MetricFailed: it cannot be loaded, or fails on the pair.
            Stopped: `progress` gave that reason.
        """
        self.close()
        self._process = MetricProcess(self._path)
        loaded = self._ask(None, progress, "could not be loaded")
        if own := loaded.get("signature"):
            self.signature = f"{self.name} {_digest(self._path)[:12]} ({own})"
        values = self._ask(_request(*TRIAL), progress, "failed on a trial pair")
        self.measures = tuple(self._measures(values))

    def score(
        self, predictions: Sequence[str], references: Sequence[str], *, progress: Progress = UNWATCHED
    ) -> list[dict[str, Score]]:
        """Return the scores of each pair; see `Metric`."""
        if self._process is None:
            self.open(progress)
        scores = []
        for place, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            doing = f"failed on pair {place + 1} of {len(predictions)}"
            values = self._ask(_request(prediction, reference), progress, doing, pair=place)
            scores.append(self._scores(values, doing, place))
            progress.tick()
        return scores

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
        self._process = None

    def _ask(self, request: dict[str, str] | None, progress: Progress, doing: str, **fields: Any) -> dict[str, Any]:
        assert self._process is not None
        is_answered = False
        try:
            if request is None:
                answer = self._process.start(limit_s=self._load_limit_s, progress=progress)
            else:
                answer = self._process.ask(request, limit_s=self._pair_limit_s, progress=progress)
            is_answered = "error" not in answer
        except NoAnswer as error:
            raise self._failure(doing, str(error), **fields) from error
        finally:
            # What did not answer, or was not waited for, would answer the next question with this one's.
            if not is_answered:
                self.close()
        if not is_answered:
            raise self._failure(doing, str(answer["error"]), **fields)
        return answer

    def _measures(self, values: Mapping[str, Any]) -> dict[str, float]:
        numbers = values.get("numbers") or {}
        if len(numbers) == 1:
            return {self.name: next(iter(numbers.values()))}
        return {f"{self.name}_{re.sub(r'[^A-Za-z0-9]+', '_', key)}"[:LONGEST_MEASURE]: numbers[key] for key in numbers}

    def _scores(self, values: Mapping[str, Any], doing: str, pair: int) -> dict[str, Score]:
        measures = self._measures(values)
        strange = next((name for name, value in measures.items() if not math.isfinite(value)), None)
        if strange is not None:
            raise self._failure(doing, f"{strange} is {measures[strange]}, not a number", pair=pair)
        if set(measures) != set(self.measures):
            raise self._failure(doing, f"it gave {_listed(measures)}, but before {_listed(self.measures)}", pair=pair)
        return {name: Score(None, None, measures[name]) for name in self.measures}

    def _failure(self, doing: str, why: str, **fields: Any) -> MetricFailed:
        return MetricFailed(f"The metric '{self.name}' {doing}: {why}", metric=self.name, **fields)


def _request(prediction: str, reference: str) -> dict[str, str]:
    return {"prediction": prediction, "reference": reference}


def _listed(measures: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(measures) or "no number"


def _digest(path: Path) -> str:
    """Return the digest of the module's code: a module has no version of its own."""
    digest = hashlib.sha256()
    for file in sorted(path.parent.rglob("*.py")):
        digest.update(f"{file.relative_to(path.parent)}\0".encode() + file.read_bytes())
    return digest.hexdigest()

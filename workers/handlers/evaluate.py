"""Evaluate: score the cases of a chunk and record them page by page; in the job's last chunk, aggregate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from sqlalchemy import Connection, Row, select

from gistmill.db import cases as case_rows
from gistmill.db import evaluations
from gistmill.db import prompts as prompt_rows
from gistmill.db import scores as score_rows
from gistmill.db.cases import Case
from gistmill.db.claim import Claim
from gistmill.db.evaluations import Evaluation
from gistmill.db.jobs import JobRows
from gistmill.db.scores import CaseEnd
from gistmill.db.session import Database
from gistmill.db.tables import datasets
from gistmill.faults import point
from gistmill.settings import WorkerSettings
from gistmill.specs import EvaluateSpec
from gistmill.submit.drafts import select_rows
from workers.evaluation.metrics import ROUGE, Metric, load_metrics
from workers.handlers.aggregating import aggregate
from workers.handlers.base import Done, Lease
from workers.handlers.scoring import Judge, score_page

log = structlog.get_logger(__name__)

# Cases scored and recorded in one go: under a second of ROUGE, and a transaction of some ten thousand rows.
PAGE_CASES = 500
# A module may take a second for a pair; what a page holds is lost with its worker.
MODULE_PAGE_CASES = 20


@dataclass(frozen=True)
class _LeftOut:
    """Why dialogues are no fair test: a prompt shows them, or a training has read them."""

    examples: frozenset[int]
    trainings: tuple[tuple[int, JobRows], ...]

    def reasons(self, connection: Connection, keys: Sequence[int]) -> dict[int, str]:
        """Return the outcome of those of these dialogues that are left out."""
        trained = case_rows.seen_in_training(connection, keys, self.trainings) if self.trainings else ()
        return dict.fromkeys(trained, "trained") | {key: "example" for key in keys if key in self.examples}


class EvaluateHandler:
    """Carries out the chunks of evaluate jobs. It needs no device, and imports no torch."""

    def __init__(self, database: Database, settings: WorkerSettings) -> None:
        self.database = database
        self.settings = settings

    def run(self, claim: Claim, lease: Lease) -> Done:
        """Give every case of the chunk its outcome, or aggregate; see `Handler`."""
        spec = EvaluateSpec.model_validate(claim.spec)
        lease.enter(self.settings.metric_stall_s)
        with self.database.read() as connection:
            evaluation = evaluations.load(connection, claim.job_key)
        metrics = load_metrics(spec.metrics, stemming=spec.stemming, directory=self.settings.metrics_dir, progress=lease)
        try:
            if claim.first_rank < 0:
                aggregate(self.database, claim, lease, spec, evaluation, [metric.signature for metric in metrics])
            else:
                self._score(claim, lease, spec, evaluation, metrics)
        finally:
            for metric in metrics:
                metric.close()
        return Done()

    def _score(self, claim: Claim, lease: Lease, spec: EvaluateSpec, evaluation: Evaluation, metrics: Sequence[Metric]) -> None:
        judge = Judge(tuple(metrics), spec.references, tuple(system.number for system in evaluation.systems))
        with self.database.read() as connection:
            left_out = _find_left_out(connection, claim, evaluation)
        limit = PAGE_CASES if spec.metrics == (ROUGE,) else MODULE_PAGE_CASES
        while page := self._load_page(claim, evaluation, left_out, limit):
            lease.check()
            ends = score_page(judge, *page, progress=lease)
            self._record(claim, lease, ends)

    def _load_page(
        self, claim: Claim, evaluation: Evaluation, left_out: _LeftOut, limit: int
    ) -> tuple[list[Case], dict[int, str]] | None:
        with self.database.read() as connection:
            cases = case_rows.load_pending(connection, claim, evaluation, limit=limit)
            if not cases:
                return None
            return cases, left_out.reasons(connection, [case.dialogue_key for case in cases])

    def _record(self, claim: Claim, lease: Lease, ends: Sequence[CaseEnd]) -> None:
        lease.check_write()
        point("scores.begun", claim=claim, cases=len(ends))
        self.database.transact(partial(score_rows.record, claim=claim, ends=ends))
        point("scores.committed", claim=claim, cases=len(ends))
        lease.tick()


def _find_left_out(connection: Connection, claim: Claim, evaluation: Evaluation) -> _LeftOut:
    """Look up which dialogues the prompts of the compared show, and which data their models were trained on."""
    examples: set[int] = set()
    trainings: dict[tuple[int, JobRows], None] = {}
    for job in evaluations.list_sources(connection, evaluation.systems).values():
        examples |= prompt_rows.example_dialogues(connection, claim.tenant_key, job.spec["prompt"])
        for training in evaluations.trainings_of(connection, job.model_key) if job.model_key is not None else ():
            trainings |= dict.fromkeys(_training_rows(connection, training))
    return _LeftOut(frozenset(examples), tuple(trainings))


def _training_rows(connection: Connection, training: Row[Any]) -> Iterator[tuple[int, JobRows]]:
    """Yield the data of a finetune job, by datasets. What it kept back to validate on counts as seen.

    So does validation data of its own, when the best evaluation decided which weights became the model.
    """
    count = connection.execute(select(datasets.c.rows).where(datasets.c.key == training.dataset_key)).scalar_one()
    yield training.dataset_key, select_rows(training.spec.get("select"), count)
    validation = training.spec.get("validation")
    if isinstance(validation, str) and training.spec.get("early_stop"):
        row = connection.execute(select(datasets.c.key, datasets.c.rows).where(datasets.c.id == validation)).one()
        yield row.key, JobRows(0, row.rows)

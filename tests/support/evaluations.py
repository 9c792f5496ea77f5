"""Evaluations without processes: data, summaries that a test decides, and a worker that scores in this process."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Table, select

from gistmill.db import chunks as chunk_rows
from gistmill.db.claim import Claim
from gistmill.db.pending import Unit, load_pending
from gistmill.db.results import Lost, record
from gistmill.db.session import Database
from gistmill.db.tables import comparisons, evaluation_cases, jobs, models, score_means, scores
from gistmill.errors import EvaluationFailed, GenerationFailed, Stopped
from gistmill.ingest.mapping import Mapping as ColumnMapping
from gistmill.readback import get_comparison
from gistmill.settings import WorkerSettings
from gistmill.specs import parse_evaluate_spec, parse_spec
from gistmill.submit import load_dataset_file, submit_job
from gistmill.views import ComparisonView, DatasetView
from tests.support.finetune import add_model
from tests.support.hands import made
from tests.support.jobs import first_tenant, make_worker, take
from workers.handlers.evaluate import EvaluateHandler

# What a model writes for a dialogue; None fails the item.
Writer = Callable[[Unit], str | None]
SUBJECTS = ("the report", "a red car", "tomorrow's flight", "the broken printer", "lunch at noon", "her new job")


class FreeLease:
    """A lease that nobody takes away. It counts the ticks."""

    def __init__(self) -> None:
        self.ticks = 0

    def enter(self, limit_s: float) -> None:
        """Begin a phase."""

    def tick(self) -> None:
        """Count."""
        self.ticks += 1

    def should_stop(self) -> bool:
        """Never stop."""
        self.tick()
        return False

    def reason(self) -> Stopped | None:
        """Return none."""
        return None

    def check(self) -> None:
        """Count."""
        self.tick()

    def check_write(self) -> None:
        """Count."""
        self.tick()


@dataclass
class Lab:
    """A database with models of made-up weights, whose summaries `writers` make by the model's name."""

    database: Database
    directory: Path
    writers: dict[str, Writer] = field(default_factory=dict)
    settings: WorkerSettings = field(default_factory=WorkerSettings)
    generated: int = 0

    @property
    def tenant(self) -> int:
        """The default tenant."""
        return first_tenant(self.database)

    def load(self, rows: Sequence[Mapping[str, Any]], *, name: str = "data", tenant: int | None = None) -> DatasetView:
        """Load a dataset of these rows."""
        path = self.directory / f"{uuid.uuid4().hex}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_dataset_file(self.database, tenant or self.tenant, path, name=name)[0]

    def load_predictions(
        self, rows: Sequence[Mapping[str, Any]], *columns: str, case: str | None = None, references: Sequence[str] = ("gold",)
    ) -> DatasetView:
        """Load summaries made elsewhere, with the references beside them."""
        path = self.directory / f"{uuid.uuid4().hex}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        mapping = ColumnMapping(dialogue=case, references=tuple(references), predictions=columns)
        return load_dataset_file(self.database, self.tenant, path, name="predictions", mapping=mapping)[0]

    def add(self, name: str, write: Writer, **columns: Any) -> int:
        """Add a model that writes so; return the key of its row."""
        self.writers[name] = write
        return add_model(self.database, name, digest=uuid.uuid4().hex * 2, **columns).key

    def submit(self, dataset: str, *systems: Any, **fields: Any) -> str:
        """Submit an evaluation of these models; return the job's id."""
        spec = parse_evaluate_spec({"dataset": dataset, "models": list(systems), "resamples": 200, **fields})
        return submit_job(self.database, self.tenant, spec)[0]

    def summarize(self, dataset: str, model: str, **fields: Any) -> str:
        """Submit a summarize job and work until nothing is left; return the job's id."""
        spec = parse_spec({"dataset": dataset, "model": model, **fields})
        job_id = submit_job(self.database, self.tenant, spec)[0]
        self.work()
        return job_id

    def work(self) -> None:
        """Carry out everything that can be claimed."""
        while self.step():
            pass

    def step(self, *kinds: str) -> bool:
        """Carry out one chunk; False when nothing could be claimed."""
        claim = take(self.database, make_worker(self.database, str(uuid.uuid4()), kinds=kinds or ("summarize", "evaluate")))
        if claim is None:
            return False
        try:
            self._summarize(claim) if claim.kind == "summarize" else self.score(claim)
        except EvaluationFailed as error:
            self.database.transact(partial(chunk_rows.fail_job, claim=claim, error=error))
            return True
        self.database.transact(lambda connection: chunk_rows.finish(connection, claim))
        return True

    def score(self, claim: Claim) -> None:
        """Do what a scoring worker does with its chunk, all but finish it."""
        EvaluateHandler(self.database, self.settings).run(claim, FreeLease())

    def view(self, job_id: str) -> ComparisonView:
        """Return the evaluation as it is read back."""
        return get_comparison(self.database, self.tenant, job_id)

    def evaluate(self, dataset: str, *systems: Any, **fields: Any) -> ComparisonView:
        """Submit an evaluation, carry it out, and return it."""
        job_id = self.submit(dataset, *systems, **fields)
        self.work()
        return self.view(job_id)

    def rows(self, table: Table, job_id: str) -> list[Any]:
        """Return the rows that the job has in this table."""
        query = select(table).join(jobs, jobs.c.key == table.c.job_key).where(jobs.c.id == job_id)
        with self.database.read() as connection:
            return list(connection.execute(query.order_by(*table.primary_key.columns)).mappings())

    def outcomes(self, job_id: str) -> dict[int, str]:
        """Return how each case ended, by its first row."""
        return {row["row_number"]: row["outcome"] for row in self.rows(evaluation_cases, job_id)}

    def figures(self, job_id: str) -> list[str]:
        """Return every row of scores, means and comparisons without the job's key, as text that shows every bit."""
        tables = (scores, score_means, comparisons)
        return [
            f"{table.name} { ({name: value for name, value in row.items() if name != 'job_key'})!r}"
            for table in tables
            for row in self.rows(table, job_id)
        ]

    def key_of(self, job_id: str) -> int:
        """Return the key of a job."""
        with self.database.read() as connection:
            return int(connection.execute(select(jobs.c.key).where(jobs.c.id == job_id)).scalar_one())

    def _summarize(self, claim: Claim) -> None:
        with self.database.read() as connection:
            is_sampling = bool(claim.spec["generation"]["do_sample"])
            units = load_pending(connection, claim, limit=10_000, is_sampling=is_sampling)
            model = connection.execute(select(models.c.name).where(models.c.key == claim.model_key)).scalar_one()
        texts = [(unit, self.writers[model](unit)) for unit in units]
        self.generated += len(units)
        good = [made(unit, text) for unit, text in texts if text is not None]
        lost = [Lost(unit, GenerationFailed()) for unit, text in texts if text is None]
        self.database.transact(lambda connection: record(connection, claim, made=good, lost=lost))


def dialogues(count: int, *, references: int = 1) -> list[dict[str, Any]]:
    """Return rows of different dialogues, each with so many references."""
    rows = []
    for number in range(count):
        subject = SUBJECTS[number % len(SUBJECTS)]
        texts = [f"Ann {verb} {subject} with Ben, part {number}." for verb in ("discusses", "plans", "forgets")[:references]]
        row = {"id": f"r{number}", "dialogue": f"Ann: what about {subject}?\nBen: part {number}."}
        rows.append(row | {f"summary{place + 1}" if references > 1 else "summary": text for place, text in enumerate(texts)})
    return rows


def echo(unit: Unit) -> str:
    """Write the dialogue again."""
    return unit.text


def first_words(unit: Unit) -> str:
    """Write the first words of the dialogue."""
    return " ".join(unit.text.split()[:4])

"""Finetune: let a child process train on the job's rows, put its curve into SQL and its model into the registry.

Files:
    training/<job>/<epoch>/    what one lease of the job's chunk works with: data, checkpoints, result. A later lease resumes
                               from it and never writes to it, so that a zombie cannot touch its successor's files
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog
from sqlalchemy import select

from gistmill import __version__, errors
from gistmill.db import prompts
from gistmill.db import training as training_rows
from gistmill.db.claim import Claim
from gistmill.db.models import find_digest
from gistmill.db.session import Database
from gistmill.db.tables import jobs
from gistmill.errors import GistmillError, InvalidInput, JobEnded, LeaseLost, ModelError, Stalled, TrainingFailed
from gistmill.faults import point
from gistmill.settings import WorkerSettings
from gistmill.specs import FinetuneSpec
from gistmill.states import JobState
from gistmill.transport import error_classes
from workers.checkpoints import Courier, newest_step
from workers.handlers.base import Done, Lease
from workers.handlers.training_curve import Curve
from workers.handlers.training_data import TrainingData, write_data
from workers.publishing import Publisher
from workers.residence import Residence, Ticker
from workers.training.child import TrainingChild
from workers.training.events import Checkpointed, Event, Failed, Finished, Halted
from workers.training.plan import TrainingPlan

log = structlog.get_logger(__name__)

POLL_S = 0.25
# Time for one more step and a checkpoint; after it the run goes on from the checkpoint before.
HALT_S = 60.0
CHECKPOINT_EVERY = 100
# What decides nothing about the weights, or is named elsewhere in the lineage.
NOT_LINEAGE = {"kind", "dataset", "model", "name", "select", "validation", "prompt", "labels", "priority"}
GONE = (JobState.COMPLETED, JobState.CANCELLED)
FAILURES: dict[str, type[GistmillError]] = {
    "invalid_rows": errors.InvalidDataset,
    "out_of_memory": errors.TrainingOutOfMemory,
}
METRICS = {"loss": "loss", "rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}


@dataclass(frozen=True)
class TrainingHost:
    """Where training happens on this host."""

    root: Path
    device: Literal["cpu", "cuda"]


class FinetuneHandler:
    """Carries out the one chunk of finetune jobs."""

    def __init__(
        self,
        database: Database,
        residence: Residence,
        settings: WorkerSettings,
        *,
        find_files: Callable[[str, Ticker], Path],
        publisher: Publisher,
        courier: Courier,
        host: TrainingHost,
    ) -> None:
        self.database = database
        self.residence = residence
        self.settings = settings
        self.find_files = find_files
        self.publisher = publisher
        self.courier = courier
        self.host = host

    def run(self, claim: Claim, lease: Lease) -> Done:
        """Train, or go on where an earlier lease stopped, and publish the model; see `Handler`."""
        self._let_ended_go()
        root = self.host.root / claim.job_id
        try:
            if not self._is_published(claim):
                self._train(claim, lease, root)
        except JobEnded:
            shutil.rmtree(root, ignore_errors=True)
            raise
        shutil.rmtree(root, ignore_errors=True)
        return Done()

    def _let_ended_go(self) -> None:
        """Remove what trainings left on this host that another host has ended; a failed one may be taken up again."""
        left = [path for path in self.host.root.glob("job_*") if path.is_dir()]
        if not left:
            return
        query = select(jobs.c.id).where(jobs.c.id.in_([path.name for path in left]), jobs.c.state.not_in(GONE))
        with self.database.read() as connection:
            needed = set(connection.execute(query).scalars())
        for path in left:
            if path.name not in needed:
                shutil.rmtree(path, ignore_errors=True)
                log.info("training_files_removed", job_id=path.name)

    def _is_published(self, claim: Claim) -> bool:
        with self.database.read() as connection:
            return training_rows.has_model(connection, claim.job_key)

    def _train(self, claim: Claim, lease: Lease, root: Path) -> None:
        spec = FinetuneSpec.model_validate(claim.spec)
        lease.enter(self.settings.load_stall_s)
        base = self.find_files(claim.model_digest, lease)
        work = root / str(claim.epoch)
        work.mkdir(parents=True, exist_ok=True)
        data = write_data(self.database, claim, spec, work, lease.tick)
        self.courier.fetch(claim.job_id, root, newer_than=newest_step(root), tick=lease.tick)
        # The child needs the memory; it gives it back by ending.
        self.residence.clear()
        curve = Curve(self.database, claim)
        result = self._follow(claim, lease, curve, self._plan(claim, spec, base, work, data))
        lease.enter(self.settings.load_stall_s)
        lease.check()
        point("publish.begun", claim=claim)
        self.publisher.publish(result, name=str(spec.name), job=self._lineage(claim, spec, data, curve), tick=lease.tick)
        point("publish.committed", claim=claim)

    def _follow(self, claim: Claim, lease: Lease, curve: Curve, plan: TrainingPlan) -> Path:
        """Run the child to its end; return the directory of what it made."""
        lease.enter(self.settings.train_stall_s)
        halt_by: float | None = None
        with TrainingChild(plan) as child:
            child.start()
            while True:
                event = child.next_event(POLL_S)
                reason = lease.reason()
                if isinstance(reason, LeaseLost | JobEnded | Stalled):
                    raise reason
                if event is not None:
                    lease.tick()
                    if (result := self._take(claim, lease, curve, event)) is not None:
                        return result
                if isinstance(event, Halted):
                    lease.check()
                    raise TrainingFailed("The training stopped without having been asked to.")
                if reason is not None and halt_by is None:
                    child.ask_to_stop()
                    halt_by = time.monotonic() + HALT_S
                if reason is not None and halt_by is not None and time.monotonic() > halt_by:
                    raise reason

    def _take(self, claim: Claim, lease: Lease, curve: Curve, event: Event) -> Path | None:
        """Note what an event says; return the directory of the result when it is there."""
        if isinstance(event, Failed):
            curve.flush()
            raise _as_error(event)
        curve.add(event)
        if isinstance(event, Checkpointed | Finished | Halted):
            curve.flush(is_saved=True)
            point("checkpoint.committed", claim=claim, step=event.step)
        if isinstance(event, Checkpointed | Halted):
            self._send(claim, lease, event)
        return Path(event.directory) if isinstance(event, Finished) else None

    def _send(self, claim: Claim, lease: Lease, event: Checkpointed | Halted) -> None:
        """Let the api have a checkpoint, so that another host can go on when this one is gone."""

        def tick() -> None:
            lease.tick()
            if isinstance(reason := lease.reason(), LeaseLost | JobEnded):
                raise reason

        self.courier.send(
            Path(event.directory),
            job_id=claim.job_id,
            step=event.step,
            chunk_key=claim.chunk_key,
            epoch=claim.epoch,
            tick=tick,
            is_last=isinstance(event, Halted),
        )

    def _plan(self, claim: Claim, spec: FinetuneSpec, base: Path, work: Path, data: TrainingData) -> TrainingPlan:
        metric, patience = spec.stopping or ("rouge_l", None)
        return TrainingPlan(
            base_dir=base,
            method=spec.method,
            rank=spec.rank,
            alpha=spec.alpha,
            dropout=spec.dropout,
            targets=spec.targets,
            epochs=spec.epochs,
            max_steps=spec.max_steps,
            learning_rate=spec.rate,
            batch_size=None if spec.batch_size == "auto" else spec.batch_size,
            gradient_accumulation=spec.gradient_accumulation,
            gradient_checkpointing=spec.gradient_checkpointing,
            weight_decay=spec.weight_decay,
            warmup_steps=spec.warmup_steps,
            seed=spec.seed,
            max_input_tokens=spec.max_input_tokens,
            max_target_tokens=spec.max_target_tokens,
            train_file=data.train_file,
            validation_file=data.validation_file,
            evaluate_every=spec.evaluate_every,
            early_stop_patience=patience,
            early_stop_metric=METRICS[metric],
            checkpoint_every=spec.checkpoint_every or CHECKPOINT_EVERY,
            device=self.host.device,
            threads=self.settings.threads,
            work_dir=work,
            resume_dirs=_earlier(work),
        )

    def _lineage(self, claim: Claim, spec: FinetuneSpec, data: TrainingData, curve: Curve) -> dict[str, Any]:
        """Return what the registry is told: the lease that made the model, and what the model came from."""
        base = find_digest(self.database, claim.tenant_key, claim.model_digest)
        with self.database.read() as connection:
            prompt = prompts.get(connection, claim.tenant_key, spec.prompt)
        lineage = {
            "base": None if base is None else f"{base.name}@{base.version}",
            "base_digest": claim.model_digest,
            **data.origin,
            "rows": data.train_rows,
            "validation_rows": data.validation_rows,
            "prompt": spec.prompt,
            "prompt_digest": prompt.digest,
            "parameters": spec.model_dump(mode="json", exclude=NOT_LINEAGE) | {"learning_rate": spec.rate},
            "result": curve.state,
            "job": claim.job_id,
            "code_version": __version__,
        }
        return {
            "job_id": claim.job_id,
            "chunk_key": claim.chunk_key,
            "epoch": claim.epoch,
            "lineage": lineage,
            "kind": "adapter" if spec.method == "lora" else "model",
            "base_digest": claim.model_digest if spec.method == "lora" else None,
        }


def _as_error(event: Failed) -> GistmillError:
    """Return the error that fails the job: the child knows its code, and only causes that hold for the whole job."""
    kind = FAILURES.get(event.code) or error_classes().get(event.code, TrainingFailed)
    return (kind if issubclass(kind, ModelError | InvalidInput) else TrainingFailed)(event.message)


def _earlier(work: Path) -> tuple[Path, ...]:
    """Return the directories of earlier leases of the job on this host, newest first."""
    others = [path for path in work.parent.iterdir() if path.name.isdigit() and int(path.name) < int(work.name)]
    return tuple(sorted(others, key=lambda path: -int(path.name)))

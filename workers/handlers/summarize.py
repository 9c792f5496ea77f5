"""Summarize: look up what exists, generate what is missing, record each micro-batch, or those of a second together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import structlog
from sqlalchemy import Connection

from gistmill.db import prompts as prompt_rows
from gistmill.db import results as result_rows
from gistmill.db.claim import Claim
from gistmill.db.models import ModelParts, parts_of
from gistmill.db.pending import Unit, load_pending
from gistmill.db.results import Found, Lost, Made
from gistmill.db.session import Database
from gistmill.db.speed import Work
from gistmill.errors import GenerationFailed
from gistmill.faults import point
from gistmill.prompts import PromptTemplate
from gistmill.settings import WorkerSettings
from gistmill.specs import SummarizeSpec
from workers.engine.base import Completion, Engine, Outcome, Prompt
from workers.handlers.base import Lease
from workers.measuring import ChunkMeter, Meter
from workers.residence import Residence

log = structlog.get_logger(__name__)

# Rows looked up and generated in one go: enough for any batch, few enough that another worker's generations are soon seen.
ROWS = 1024


class SummarizeHandler:
    """Carries out chunks of summarize jobs."""

    def __init__(self, database: Database, residence: Residence, settings: WorkerSettings, *, device_name: str = "CPU") -> None:
        self.database = database
        self.residence = residence
        self.settings = settings
        # A test may exchange the residence.
        self.meter = Meter(device_name, lambda engine: self.residence.load_s(engine))
        self._parts: dict[int, ModelParts] = {}
        self._templates: dict[tuple[int, str], PromptTemplate] = {}

    def run(self, claim: Claim, lease: Lease) -> Callable[[Connection], None] | None:
        """Give every item of the chunk its end; return what notes its speed. See `Handler`."""
        spec = SummarizeSpec.model_validate(claim.spec)
        chunk = ChunkMeter(self.meter, Work.of(claim.model_digest, spec.precision, spec.generation))
        while units := self._load_pending(claim, spec):
            lease.check()
            # The chunk is done when SQL says that nothing is pending, never because of what was sent there: a database that
            # was restored, or failed over to a standby, may have lost the last commits.
            if self._end(claim, lease, spec, units, chunk) == 0:
                raise GenerationFailed("The engine gave no outcome for any row.")
        return chunk.ending()

    def _end(self, claim: Claim, lease: Lease, spec: SummarizeSpec, units: Sequence[Unit], chunk: ChunkMeter) -> int:
        """Record what exists of these units and generate the rest; return how many items ended."""
        found = self._find(claim, spec, units)
        ended = self._record(claim, lease, found=found) if found else 0
        known = {(item.unit.dialogue_key, item.unit.draw) for item in found}
        missing = [unit for unit in units if (unit.dialogue_key, unit.draw) not in known]
        return ended + (self._generate(claim, lease, spec, missing, chunk) if missing else 0)

    def _load_pending(self, claim: Claim, spec: SummarizeSpec) -> list[Unit]:
        with self.database.read() as connection:
            return load_pending(connection, claim, limit=ROWS, is_sampling=spec.generation.do_sample)

    def _find(self, claim: Claim, spec: SummarizeSpec, units: Sequence[Unit]) -> list[Found]:
        with_truncated = spec.on_overflow == "truncate"
        with self.database.read() as connection:
            return result_rows.find_generations(connection, claim, units, with_truncated=with_truncated)

    def _generate(self, claim: Claim, lease: Lease, spec: SummarizeSpec, units: Sequence[Unit], chunk: ChunkMeter) -> int:
        """Generate these units and record them batch by batch; return how many items ended."""
        parts = self._find_parts(claim)
        engine = self.residence.get(
            parts.base_digest,
            spec.precision,
            lease,
            adapter=parts.adapter_digest,
            is_greedy=spec.generation.is_greedy,
            is_sampled=spec.generation.do_sample,
        )
        template = self._find_template(claim, spec)
        batch = [
            Prompt(number, template.render(unit.text), noise=(unit.digest, unit.draw)) for number, unit in enumerate(units)
        ]
        lease.enter(self.settings.generate_stall_s)
        ended = 0
        batches = engine.generate(
            batch,
            spec.generation,
            max_input_tokens=spec.max_input_tokens,
            on_overflow=spec.on_overflow,
            should_stop=lease.should_stop,
        )
        batches = chunk.timed(engine, batches, version_digest=parts.adapter_digest or parts.base_digest)
        for outcomes in gathered(batches, for_s=self.settings.commit_s):
            made = [_made(units[item.key], item, engine) for item in outcomes if isinstance(item, Completion)]
            lost = [Lost(units[item.key], item.error) for item in outcomes if not isinstance(item, Completion)]
            ended += self._record(claim, lease, made=made, lost=lost)
        lease.check()
        return ended

    def _find_parts(self, claim: Claim) -> ModelParts:
        """Return the files that the job's model consists of; a version never changes, so it is looked up once."""
        if claim.model_key is None:
            return ModelParts(claim.model_digest, None)
        if claim.model_key not in self._parts:
            self._parts[claim.model_key] = parts_of(self.database, claim.model_key)
        return self._parts[claim.model_key]

    def _find_template(self, claim: Claim, spec: SummarizeSpec) -> PromptTemplate:
        """Return the job's prompt. Its spec names the version, which never changes, so it is looked up once."""
        key = (claim.tenant_key, spec.prompt)
        if key not in self._templates:
            with self.database.read() as connection:
                self._templates[key] = prompt_rows.get(connection, *key)
        return self._templates[key]

    def _record(
        self, claim: Claim, lease: Lease, *, made: Sequence[Made] = (), found: Sequence[Found] = (), lost: Sequence[Lost] = ()
    ) -> int:
        """Write the ends of these items in one transaction; return how many there were."""
        lease.check_write()
        units = [item.unit for item in made] + [item.unit for item in found] + [item.unit for item in lost]
        rows = [row for unit in units for row in unit.rows]
        point("record.begun", claim=claim, rows=rows)
        recorded = self.database.transact(partial(result_rows.record, claim=claim, made=made, found=found, lost=lost))
        point("record.committed", claim=claim, rows=rows)
        lease.tick()
        return recorded.succeeded + recorded.failed


def gathered(batches: Iterable[list[Outcome]], *, for_s: float) -> Iterator[list[Outcome]]:
    """Yield the outcomes of micro-batches together until they have taken `for_s` seconds: a commit costs more than a small one.

    What is gathered when an engine raises is lost with it, as if the worker had died: the chunk makes it again.
    """
    together: list[Outcome] = []
    began_at = time.monotonic()
    for outcomes in batches:
        together += outcomes
        if time.monotonic() - began_at >= for_s:
            yield together
            together, began_at = [], time.monotonic()
    if together:
        yield together


def _made(unit: Unit, completion: Completion, engine: Engine) -> Made:
    return Made(
        unit,
        summary=completion.text,
        finish_reason=completion.finish_reason,
        tokens_in=completion.tokens_in,
        tokens_out=completion.tokens_out,
        truncated=completion.truncated,
        engine=engine.name,
        device=engine.device,
        dtype=engine.dtype,
    )

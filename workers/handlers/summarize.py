"""Summarize: look up what exists, generate what is missing, record each micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import structlog

from gistmill import prompts
from gistmill.db import results as result_rows
from gistmill.db.claim import Claim
from gistmill.db.results import Found, Lost, Made, Recorded, Unit
from gistmill.db.session import Database
from gistmill.errors import GenerationFailed
from gistmill.faults import point
from gistmill.settings import WorkerSettings
from gistmill.specs import SummarizeSpec
from workers.engine.base import Completion, Engine, Prompt
from workers.handlers.base import Lease
from workers.residence import Residence

log = structlog.get_logger(__name__)

# Rows looked up and generated in one go: enough for any batch, few enough that another worker's generations are soon seen.
ROWS = 256


class SummarizeHandler:
    """Carries out chunks of summarize jobs."""

    def __init__(self, database: Database, residence: Residence, settings: WorkerSettings) -> None:
        self.database = database
        self.residence = residence
        self.settings = settings

    def run(self, claim: Claim, lease: Lease) -> None:
        """Give every item of the chunk its end; see `Handler`."""
        spec = SummarizeSpec.model_validate(claim.spec)
        while units := self._load_pending(claim, spec):
            lease.check()
            found = self._find(claim, spec, units)
            ended = self._record(claim, lease, found=found).succeeded if found else 0
            known = {(item.unit.dialogue_key, item.unit.draw) for item in found}
            missing = [unit for unit in units if (unit.dialogue_key, unit.draw) not in known]
            if missing:
                ended += self._generate(claim, lease, spec, missing)
            if ended == 0:
                raise GenerationFailed("The engine gave no outcome for any row.")

    def _load_pending(self, claim: Claim, spec: SummarizeSpec) -> list[Unit]:
        with self.database.read() as connection:
            return result_rows.load_pending(connection, claim, limit=ROWS, is_sampling=spec.generation.do_sample)

    def _find(self, claim: Claim, spec: SummarizeSpec, units: Sequence[Unit]) -> list[Found]:
        with_truncated = spec.on_overflow == "truncate"
        with self.database.read() as connection:
            return result_rows.find_generations(connection, claim, units, with_truncated=with_truncated)

    def _generate(self, claim: Claim, lease: Lease, spec: SummarizeSpec, units: Sequence[Unit]) -> int:
        """Generate these units and record them batch by batch; return how many items ended."""
        engine = self.residence.get(claim.model_digest, spec.precision, lease)
        template = prompts.get(spec.prompt)
        batch = [
            Prompt(number, template.render(unit.text), noise=(unit.digest, unit.draw)) for number, unit in enumerate(units)
        ]
        lease.enter(self.settings.generate_stall_s)
        ended = 0
        outcomes_of_batches = engine.generate(
            batch,
            spec.generation,
            max_input_tokens=spec.max_input_tokens,
            on_overflow=spec.on_overflow,
            should_stop=lease.should_stop,
        )
        for outcomes in outcomes_of_batches:
            made = [_made(units[item.key], item, engine) for item in outcomes if isinstance(item, Completion)]
            lost = [Lost(units[item.key], item.error) for item in outcomes if not isinstance(item, Completion)]
            recorded = self._record(claim, lease, made=made, lost=lost)
            ended += recorded.succeeded + recorded.failed
        lease.check()
        return ended

    def _record(
        self, claim: Claim, lease: Lease, *, made: Sequence[Made] = (), found: Sequence[Found] = (), lost: Sequence[Lost] = ()
    ) -> Recorded:
        lease.check_write()
        units = [item.unit for item in made] + [item.unit for item in found] + [item.unit for item in lost]
        rows = [row for unit in units for row in unit.rows]
        point("record.begun", claim=claim, rows=rows)
        recorded = self.database.transact(partial(result_rows.record, claim=claim, made=made, found=found, lost=lost))
        point("record.committed", claim=claim, rows=rows)
        lease.tick()
        return recorded


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

"""Summarize: a chunk goes through three stages at once: its pages are read, generated as one stream, and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from gistmill.db import prompts as prompt_rows
from gistmill.db.claim import Claim
from gistmill.db.models import ModelParts, parts_of
from gistmill.db.pending import Unit
from gistmill.db.results import Lost, Made
from gistmill.db.session import Database
from gistmill.db.speed import Work
from gistmill.errors import GenerationFailed
from gistmill.prompts import PromptTemplate
from gistmill.settings import WorkerSettings
from gistmill.specs import SummarizeSpec
from workers.engine.base import Completion, Engine, Failure, Outcome
from workers.handlers.base import Done, Lease
from workers.handlers.feeding import Feed
from workers.handlers.outlook import Outlook
from workers.handlers.pages import Page, Pages
from workers.handlers.recording import Recorder
from workers.handlers.turns import Turns
from workers.measuring import ChunkMeter, Meter
from workers.residence import Residence


class _Chunk(NamedTuple):
    """A chunk on its way through the stages."""

    claim: Claim
    lease: Lease
    spec: SummarizeSpec
    pages: Pages
    recorder: Recorder
    meter: ChunkMeter
    outlook: Outlook

    def should_stop(self) -> bool:
        """Note progress and tell whether to stop, also when there is no use in going on."""
        return self.lease.should_stop() or self.recorder.has_failed


class SummarizeHandler:
    """Carries out chunks of summarize jobs.

    The thread that calls `run` keeps the device busy, and it alone notes progress. A reader and a writer work for it; both do
    nothing between two calls.
    """

    def __init__(
        self,
        database: Database,
        residence: Residence,
        settings: WorkerSettings,
        *,
        device_name: str = "CPU",
        claim_ahead: Callable[[Claim], Claim | None] | None = None,
    ) -> None:
        self.database = Turns.of(database)
        self.residence = residence
        self.settings = settings
        self.claim_ahead = claim_ahead
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        # A test may exchange the residence.
        self.meter = Meter(device_name, lambda engine: self.residence.load_s(engine))
        self._parts: dict[int, ModelParts] = {}
        self._templates: dict[tuple[int, str], PromptTemplate] = {}
        # The chunk that was claimed ahead, and its pages of which the reader takes the first look.
        self._next: tuple[Claim, Pages] | None = None

    def run(self, claim: Claim, lease: Lease) -> Done:
        """Give every item of the chunk its end; return how many got one, and what notes its speed. See `Handler`."""
        spec = SummarizeSpec.model_validate(claim.spec)
        meter = ChunkMeter(self.meter, Work.of(claim.model_digest, spec.precision, spec.generation))
        ended = 0
        with (
            self._open_pages(claim, spec) as pages,
            Recorder(self.database, claim, lease, writer=self._writer) as recorder,
            Outlook(self._asking_ahead(claim, spec, lease), reader=self._reader) as outlook,
        ):
            while page := pages.look():
                lease.check()
                pending = self._work_off(_Chunk(claim, lease, spec, pages, recorder, meter, outlook), page)
                recorded = recorder.finish()
                lease.check()
                if recorded == 0:
                    raise GenerationFailed("The engine gave no outcome for any row.")
                ended += recorded
                # For 1,024 dialogues another look costs as much as the first, and it would find nothing. Whether SQL still has
                # what it answered to have is compared by `finish`, in one statement.
                if recorded == pending:
                    break
        return Done(ended, meter.ending())

    def _work_off(self, chunk: _Chunk, page: Page | None) -> int | None:
        """Record what exists of this page and those behind it and generate the rest, until there is a reason to stop.

        Return how many items were found pending, or None when there may be more.
        """
        feed = Feed(chunk.pages)
        while page is not None:
            feed.note(page)
            # Before the engine, which may have to be loaded.
            _record_found(chunk, feed)
            if page.missing:
                self._generate(chunk, feed, page)
            else:
                chunk.pages.begin(page.next_rank, None)
            if chunk.should_stop():
                return None
            # Behind a stream there is none any more, unless its engine takes one page at a time; or it is the reader's error.
            page = chunk.pages.take()
        return feed.pending

    def _get_engine(self, chunk: _Chunk) -> Engine:
        parts = self._find_parts(chunk.claim)
        engine = self.residence.get(
            parts.base_digest,
            chunk.spec.precision,
            chunk.lease,
            adapter=parts.adapter_digest,
            is_greedy=chunk.spec.generation.is_greedy,
            is_sampled=chunk.spec.generation.do_sample,
        )
        chunk.lease.enter(self.settings.generate_stall_s)
        return engine

    def _generate(self, chunk: _Chunk, feed: Feed, page: Page) -> None:
        """Generate what is missing of this page and those behind it in one stream, and hand it over to be recorded."""
        engine = self._get_engine(chunk)
        # Before the next page is begun: for this one the device waits.
        page = chunk.pages.read(page, engine, chunk.should_stop)
        if not page.is_read:
            return
        parts = self._find_parts(chunk.claim)
        more = partial(feed.more, engine)
        batches = chunk.meter.timed(
            engine,
            engine.complete(feed.enter(page, engine), chunk.spec.generation, chunk.should_stop, more),
            version_digest=parts.adapter_digest or parts.base_digest,
        )
        passed = chunk.outlook.watched(feed.through(batches), feed.count_left, engine)
        for outcomes in gathered(passed, for_s=self.settings.commit_s):
            _record(chunk, feed, outcomes, engine)
        _record_found(chunk, feed)

    def _open_pages(self, claim: Claim, spec: SummarizeSpec) -> Pages:
        """Return the chunk's pages: those that were begun before its turn came, if it was claimed ahead."""
        begun, self._next = self._next, None
        if begun is not None:
            if begun[0] is claim:
                return begun[1]
            begun[1].close()
        return Pages(self.database, claim, spec, find_template=partial(self._find_template, claim, spec), reader=self._reader)

    def _asking_ahead(self, claim: Claim, spec: SummarizeSpec, lease: Lease) -> Callable[[Engine], None] | None:
        """Return what claims the chunk after this one and begins to look at it, in the reader's thread."""
        claim_ahead = self.claim_ahead
        if claim_ahead is None:
            return None

        def ask(engine: Engine) -> None:
            found = None if lease.reason() is not None else claim_ahead(claim)
            if found is not None:
                asked = SummarizeSpec.model_validate(found.spec)
                pages = self._open_pages(found, asked)
                self._next = found, pages
                pages.look_ahead(engine if self._runs_on(found, asked) == self._runs_on(claim, spec) else None)

        return ask

    def _runs_on(self, claim: Claim, spec: SummarizeSpec) -> tuple[object, ...]:
        """Return what decides which engine runs the chunk."""
        return self._find_parts(claim), spec.precision, spec.generation.is_greedy, spec.generation.do_sample

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


def gathered(batches: Iterable[list[Outcome]], *, for_s: float) -> Iterator[list[Outcome]]:
    """Yield the outcomes of micro-batches together until they have taken `for_s` seconds: a commit costs more than a small one.

    An empty one says that the engine waits: what there is, if anything, is yielded at once.
    What is gathered when an engine raises is lost with it, as if the worker had died: the chunk makes it again.
    """
    together: list[Outcome] = []
    began_at = time.monotonic()
    for outcomes in batches:
        together += outcomes
        if not outcomes or time.monotonic() - began_at >= for_s:
            yield together
            together, began_at = [], time.monotonic()
    if together:
        yield together


def _record(chunk: _Chunk, feed: Feed, outcomes: Sequence[Outcome], engine: Engine) -> None:
    """Hand over what an engine made, with what was found to exist meanwhile."""
    if not outcomes:
        _record_found(chunk, feed)
        return
    made = [_made(feed.unit_of(item), item, engine) for item in outcomes if isinstance(item, Completion)]
    lost = [Lost(feed.unit_of(item), item.error) for item in outcomes if isinstance(item, Failure)]
    chunk.recorder.put(made=made, found=feed.take_found(), lost=lost)


def _record_found(chunk: _Chunk, feed: Feed) -> None:
    if found := feed.take_found():
        chunk.recorder.put(found=found)


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

"""Summarize: a chunk goes through three stages at once: its pages are read, generated as one stream, and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import NamedTuple, Protocol

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
from workers.engine.base import Completion, Engine, Failure, Outcome, Row
from workers.handlers.base import Done, Lease
from workers.handlers.feeding import Feed
from workers.handlers.outlook import SHORT_S, Outlook
from workers.handlers.pages import Page, Pages
from workers.handlers.recording import Recorder
from workers.handlers.streaming import Next, Stream, Succession
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


class Successor(Protocol):
    """The chunk that comes after the running one."""

    @property
    def is_held(self) -> bool:
        """True when it is reserved and nobody else may have it."""
        ...

    def claim(self, running: Claim, lost: Callable[[], None]) -> Claim | None:
        """Return it, having reserved it if need be, or None. `lost` is called when it is not to run after all."""
        ...


class SummarizeHandler:
    """Carries out chunks of summarize jobs.

    The thread that calls `run` keeps the device busy, and it alone notes progress. A reader and a writer work for it; between
    two calls only the reader may, and the engine's own threads, for a chunk that was claimed ahead.
    """

    def __init__(
        self,
        database: Database,
        residence: Residence,
        settings: WorkerSettings,
        *,
        device_name: str = "CPU",
        successor: Successor | None = None,
    ) -> None:
        self.database = Turns.of(database)
        self.residence = residence
        self.settings = settings
        self.successor = successor
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        # A test may exchange the residence.
        self.meter = Meter(device_name, lambda engine: self.residence.load_s(engine))
        self._parts: dict[int, ModelParts] = {}
        self._templates: dict[tuple[int, str], PromptTemplate] = {}
        self._succession = Succession()
        # Of prompts, which are different in a stream.
        self._keys = count()

    def run(self, claim: Claim, lease: Lease) -> Done:
        """Give every item of the chunk its end; return how many got one, and what notes its speed. See `Handler`."""
        spec = SummarizeSpec.model_validate(claim.spec)
        meter = ChunkMeter(self.meter, Work.of(claim.model_digest, spec.precision, spec.generation))
        ended = 0
        began_at = time.monotonic()
        try:
            with (
                self._succession.take_pages(claim) or self._make_pages(claim, spec) as pages,
                Recorder(self.database, claim, lease, writer=self._writer) as recorder,
                self._look_out(claim, spec, lease) as outlook,
            ):
                for pending in self._passes(_Chunk(claim, lease, spec, pages, recorder, meter, outlook)):
                    recorded = recorder.finish()
                    lease.check()
                    if recorded == 0:
                        raise GenerationFailed("The engine gave no outcome for any row.")
                    ended += recorded
                    # For 1,024 dialogues another look costs as much as the first, and it would find nothing. Whether SQL still
                    # has what it answered to have is compared by `finish`, in one statement.
                    if recorded == pending:
                        break
        except BaseException:
            self._succession.end_stream()
            raise
        was_short = self.successor is not None and time.monotonic() - began_at < SHORT_S
        return Done(ended, meter.ending(), was_short)

    def _passes(self, chunk: _Chunk) -> Iterator[int | None]:
        """Go over the chunk until nothing is pending; yield after each time how many items were, None if there may be more."""
        stream = self._take_turn(chunk)
        if stream is not None:
            self._take_outcomes(chunk, stream)
            yield None if chunk.should_stop() else self._work_off(chunk, stream.feed, chunk.pages.take())
        while page := chunk.pages.look():
            chunk.lease.check()
            yield self._work_off(chunk, Feed(chunk.pages), page)

    def _work_off(self, chunk: _Chunk, feed: Feed, page: Page | None) -> int | None:
        """Record what exists of this page and those behind it and generate the rest, until there is a reason to stop.

        Return how many items were found pending, or None when there may be more.
        """
        while page is not None:
            feed.note(page)
            # Before the engine, which may have to be loaded.
            _record_found(chunk, feed)
            if page.missing:
                self._generate(chunk, feed, page)
            else:
                chunk.pages.begin(page.next_rank, None)
                chunk.outlook.look(feed.count_left())
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
        stream = Stream(
            engine,
            chunk.spec.generation,
            feed,
            page,
            should_stop=chunk.should_stop,
            follow=partial(self._follow, chunk),
        )
        self._take_outcomes(chunk, self._succession.begin(stream))

    def _take_outcomes(self, chunk: _Chunk, stream: Stream) -> None:
        """Hand over to be recorded what the stream makes of this chunk."""
        engine, feed, parts = stream.engine, stream.feed, self._find_parts(chunk.claim)
        timed = partial(chunk.meter.timed, engine, version_digest=parts.adapter_digest or parts.base_digest)
        passed = chunk.outlook.watched(feed.through(stream.outcomes(timed)), feed.count_left, engine)
        for outcomes in gathered(passed, for_s=self.settings.commit_s):
            _record(chunk, feed, outcomes, engine)
        _record_found(chunk, feed)
        self._succession.leave(stream)

    def _follow(self, chunk: _Chunk, feed: Feed, engine: Engine) -> tuple[Feed, list[Row]] | list[Row] | None:
        """Let the chunk that was claimed ahead go into the engine behind this one; see `streaming.Follow`."""
        if chunk.outlook.is_open:
            return []
        return self._succession.follow(chunk.claim, feed, engine) if self._is_next_held() else None

    def _take_turn(self, chunk: _Chunk) -> Stream | None:
        """Return the stream that has begun with this chunk, if there is one; it goes on with the chunk."""
        stream = self._succession.find_stream()
        if stream is not None:
            engine = self._get_engine(chunk)
            assert engine is stream.engine, "no engine comes or goes between two chunks of one stream"
            stream.turn(should_stop=chunk.should_stop, follow=partial(self._follow, chunk))
        return stream

    def _make_pages(self, claim: Claim, spec: SummarizeSpec) -> Pages:
        find_template = partial(self._find_template, claim, spec)
        return Pages(self.database, claim, spec, find_template=find_template, reader=self._reader, keys=self._keys)

    def _look_out(self, claim: Claim, spec: SummarizeSpec, lease: Lease) -> Outlook:
        return Outlook(self._asking_ahead(claim, spec, lease), is_reserved=self._is_next_held(), reader=self._reader)

    def _is_next_held(self) -> bool:
        return self.successor is not None and self.successor.is_held

    def _asking_ahead(self, claim: Claim, spec: SummarizeSpec, lease: Lease) -> Callable[[Engine | None], None] | None:
        """Return what claims the chunk after this one and begins to look at it, in the reader's thread."""
        successor = self.successor
        if successor is None:
            return None

        def ask(engine: Engine | None) -> None:
            found = None if lease.reason() is not None else successor.claim(claim, self._succession.give_up)
            if found is not None:
                asked = SummarizeSpec.model_validate(found.spec)
                runs_alike = self._runs_on(found, asked) == self._runs_on(claim, spec)
                pages = self._make_pages(found, asked)
                self._succession.announce(Next(found, pages, runs_alike and asked.generation == spec.generation))
                pages.look_ahead(engine if runs_alike else None)

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

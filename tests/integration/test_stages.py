"""The three stages of a chunk: reading, generating and recording run at once, and none outlives its chunk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest
from sqlalchemy import select

from gistmill.db.check import check
from gistmill.db.claim import Claim
from gistmill.db.pending import load_pending
from gistmill.db.tables import generations, results
from gistmill.errors import JobEnded, StoreUnavailable
from gistmill.specs import GenerationParameters
from tests.support.bench import FAST, TEXTS, Bench, OneBatch
from tests.support.jobs import chunk_rows_of, job_row, make_job, take
from tests.support.servers import wait_until
from workers.engine.base import More, Outcome, Row
from workers.engine.fake import FakeEngine
from workers.handlers import pages, recording
from workers.heartbeat import Watch

PAGE = 4


@pytest.fixture(autouse=True)
def _small_pages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", PAGE)
    monkeypatch.setattr(FakeEngine, "page_rows", PAGE)
    bench.handler.settings = FAST.model_copy(update={"commit_s": 0.0})


def claim_of(bench: Bench) -> Claim:
    claim = take(bench.database, bench.runner.claimant)
    assert claim is not None
    return claim


def watch_of(claim: Claim) -> Watch:
    return Watch(claim, write_until=float("inf"), drain=threading.Event())


def at_record(monkeypatch: pytest.MonkeyPatch, act: Callable[[str], None]) -> None:
    """Let the writer do this before and after each of its transactions, while it holds no connection."""
    monkeypatch.setattr(recording, "point", lambda name, **_: act(name))


def test_next_page_is_read_while_the_device_works_on_this_one(bench: Bench) -> None:
    read: list[tuple[str, str]] = []

    class Slow(FakeEngine):
        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            read.extend((threading.current_thread().name[:6], text) for text in texts)
            return super()._encode(texts, limit)

        def _forward(self, rows: Any, *args: Any) -> list[Outcome] | None:
            done = 1 + max(number for number, (_, text) in enumerate(read) if text == rows[-1].prompt.text)
            wait_until(lambda: len(read) >= min(done + 1, len(TEXTS)), what="the next page")
            return super()._forward(rows, *args)

    bench.engine = Slow
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    assert job_row(bench.database, job)["succeeded"] == len(TEXTS)
    assert [thread for thread, _ in read][PAGE:] == ["reader"] * (len(TEXTS) - PAGE)


def test_device_goes_on_while_results_are_recorded(bench: Bench) -> None:
    job = make_job(bench.database, TEXTS)

    class Watching(FakeEngine):
        batches = 0

        def _forward(self, *args: Any) -> list[Outcome] | None:
            # What was made before is recorded while this batch is being made, not when it has ended.
            wait_until(lambda: job_row(bench.database, job)["succeeded"] == PAGE * self.batches, what="the commit")
            type(self).batches += 1
            return super()._forward(*args)

    bench.engine = Watching
    bench.runner.work()
    assert (Watching.batches, job_row(bench.database, job)["succeeded"]) == (3, len(TEXTS))


def test_all_three_stages_work_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = TEXTS + [f"another {text}" for text in TEXTS]
    last = len(texts) // PAGE
    meetings = {generated: threading.Barrier(3) for generated in range(2, last)}
    begun = {"read": 0, "generate": 0, "record": 0}

    def meet(stage: str, *, ahead: int) -> None:
        """Wait for the other stages: one is a page ahead of the one that generates, one a page behind."""
        begun[stage] += 1
        if meeting := meetings.get(begun[stage] - ahead):
            meeting.wait(10)

    class Meeting(FakeEngine):
        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            meet("read", ahead=1)
            return super()._encode(texts, limit)

        def _forward(self, rows: Any, *args: Any) -> list[Outcome] | None:
            meet("generate", ahead=0)
            return super()._forward(rows, *args)

    at_record(monkeypatch, lambda name: meet("record", ahead=-1) if name == "record.begun" else None)
    bench.engine = Meeting
    job = make_job(bench.database, texts, per_chunk=len(texts))
    claim = claim_of(bench)
    bench.handler.run(claim, watch_of(claim))
    assert job_row(bench.database, job)["succeeded"] == len(texts)
    assert begun == dict.fromkeys(begun, last)


@pytest.mark.parametrize("is_sampling", [False, True])
def test_pages_share_no_dialogue_and_nothing_is_generated_twice(bench: Bench, *, is_sampling: bool) -> None:
    asked: list[tuple[str, tuple[str, int]]] = []

    class Noting(FakeEngine):
        def _forward(self, rows: Any, *args: Any) -> list[Outcome] | None:
            asked.extend((row.prompt.text, row.prompt.noise) for row in rows)
            return super()._forward(rows, *args)

    bench.engine = Noting
    # Some stand on both sides of a page's end, and one has more items than a page.
    texts = TEXTS * 3 + [TEXTS[5]] * 7
    sampling = {"do_sample": True, "temperature": 1.0, "seed": 3}
    job = make_job(bench.database, texts, per_chunk=64, spec={"generation": sampling} if is_sampling else {})
    bench.runner.work()
    row = job_row(bench.database, job)
    generations = len(texts) if is_sampling else len(TEXTS)
    assert (row["succeeded"], row["generated"], len(asked), len(set(asked))) == (len(texts), *[generations] * 3)
    assert check(bench.database) == []


def test_device_waits_for_nobody_but_a_writer_that_is_two_lots_behind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    written: list[str] = []

    class Counting(FakeEngine):
        def _forward(self, *args: Any) -> list[Outcome] | None:
            begun.append(len(begun) + 1 - len(written))
            return super()._forward(*args)

    def crawl(name: str) -> None:
        if name == "record.committed":
            written.append(name)
        else:
            wait_until(lambda: len(begun) >= min(len(written) + 3, 6), what="a device that is ahead")

    at_record(monkeypatch, crawl)
    bench.engine = lambda: Counting(max_rows=2)
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    assert job_row(bench.database, job)["succeeded"] == len(TEXTS)
    assert max(begun) == recording.MOST_UNFINISHED + 1


def test_nothing_is_recorded_once_run_has_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(bench.database, TEXTS)
    noted: list[str] = []
    is_broken = threading.Event()

    class Broken(FakeEngine):
        def _forward(self, *args: Any) -> list[Outcome] | None:
            if noted or is_broken.is_set():
                is_broken.set()
                raise RuntimeError("the device is gone")
            noted.append("generated")
            return super()._forward(*args)

    def linger(name: str) -> None:
        if name == "record.begun":
            is_broken.wait(10)
        noted.append(name)

    at_record(monkeypatch, linger)
    bench.engine = Broken
    claim = claim_of(bench)
    with pytest.raises(RuntimeError, match="gone"):
        bench.handler.run(claim, watch_of(claim))
    assert noted == ["generated", "record.begun", "record.committed"]
    assert job_row(bench.database, job)["succeeded"] == PAGE


def test_nobody_but_the_thread_that_runs_the_chunk_notes_progress(bench: Bench) -> None:
    ticking: set[int] = set()

    class Noting(Watch):
        def tick(self) -> None:
            ticking.add(threading.get_ident())
            super().tick()

    make_job(bench.database, TEXTS)
    claim = claim_of(bench)
    bench.handler.run(claim, Noting(claim, write_until=float("inf"), drain=threading.Event()))
    assert ticking == {threading.get_ident()}


def test_error_of_the_reader_ends_the_chunk_and_keeps_what_was_made(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_in_reader(*args: Any, **options: Any) -> Any:
        if threading.current_thread().name.startswith("reader"):
            raise StoreUnavailable("away")
        return load_pending(*args, **options)

    monkeypatch.setattr(pages, "load_pending", fail_in_reader)
    job = make_job(bench.database, TEXTS)
    claim = claim_of(bench)
    with pytest.raises(StoreUnavailable):
        bench.handler.run(claim, watch_of(claim))
    assert job_row(bench.database, job)["succeeded"] == PAGE


class Ahead(FakeEngine):
    """Takes every page before it completes any row, and then completes those of all pages in one order."""

    pages: ClassVar[list[int]] = []

    def complete(
        self,
        rows: Sequence[Row],
        parameters: GenerationParameters,
        should_stop: Callable[[], bool],
        more: More | None = None,
    ) -> Iterator[list[Outcome]]:
        assert more is not None
        taken, further = list(rows), more()
        self.pages.append(len(rows))
        while further is not None:
            self.pages.append(len(further))
            taken += further
            if not further:
                yield []
            further = more()
        yield from super().complete(taken[::-1], parameters, should_stop)


@pytest.mark.parametrize("is_sampling", [False, True])
def test_rows_of_several_pages_in_one_batch_find_their_items_again(bench: Bench, *, is_sampling: bool) -> None:
    texts = TEXTS * 2 + [TEXTS[5]] * 7
    sampling = {"generation": {"do_sample": True, "temperature": 1.0, "seed": 3}} if is_sampling else {}
    summaries = []
    Ahead.pages.clear()
    for spec, engine in ((sampling, FakeEngine), (sampling | {"max_input_tokens": 1_000}, Ahead)):
        bench.handler.residence.clear()
        bench.engine = engine
        job = make_job(bench.database, texts, per_chunk=64, spec=spec)
        bench.runner.work()
        assert job_row(bench.database, job)["succeeded"] == len(texts)
        summaries.append(summaries_of(bench, job))
    assert summaries[0] == summaries[1]
    assert len(summaries[0]) == len(texts)
    assert len([rows for rows in Ahead.pages if rows]) >= 3
    assert check(bench.database) == []


def summaries_of(bench: Bench, job: int) -> dict[int, str]:
    query = select(results.c.row_number, generations.c.summary)
    joined = query.where(generations.c.key == results.c.generation_key, results.c.job_key == job)
    with bench.database.read() as connection:
        return {row.row_number: row.summary for row in connection.execute(joined)}


@pytest.mark.parametrize(
    ("exist", "refused"),
    [
        ([*range(4)], [5, *range(8, 12)]),
        ([*range(4, 8)], [*range(4), 9]),
        ([3, *range(8, 12)], [4, 5, 6, 7]),
        ([4, 5], [6, 7]),
        ([], [*range(12)]),
        ([*range(12)], []),
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", [FakeEngine, Ahead])
def test_pages_of_what_exists_and_of_what_no_model_sees_are_recorded_like_the_others(
    bench: Bench, exist: list[int], refused: list[int], engine: type[FakeEngine]
) -> None:
    if exist:
        make_job(bench.database, [TEXTS[number] for number in exist])
        bench.runner.work()
        bench.handler.residence.clear()

    class Refusing(engine):  # type: ignore[valid-type,misc]
        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            if any(f"{TEXTS[number]}\n" in f"{text}\n" for text in texts for number in refused):
                raise ValueError("no text")
            return super()._encode(texts, limit)  # type: ignore[no-any-return]

    bench.engine = Refusing
    job = make_job(bench.database, TEXTS)
    bench.runner.work()

    row = job_row(bench.database, job)
    assert (row["succeeded"], row["failed"], row["shared"]) == (12 - len(refused), len(refused), len(exist))
    assert (row["state"], check(bench.database)) == ("completed", [])


def test_engine_goes_on_while_the_next_page_is_being_read(bench: Bench) -> None:
    told: list[int] = []
    goes_on = threading.Event()

    class Asking(FakeEngine):
        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            if threading.current_thread().name.startswith("reader"):
                assert goes_on.wait(10)
            return super()._encode(texts, limit)

        def complete(self, rows: Any, parameters: Any, should_stop: Any, more: More | None = None) -> Iterator[list[Outcome]]:
            assert more is not None

            def ask() -> Sequence[Row] | None:
                further = more()
                told.append(-1 if further is None else len(further))
                if len(told) == 3:
                    goes_on.set()
                return further

            assert [ask(), ask()] == [[], []]
            return super().complete(rows, parameters, should_stop, ask)

    bench.engine = Asking
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    assert job_row(bench.database, job)["succeeded"] == len(TEXTS)
    assert told[:3] == [0, 0, 0]
    assert [rows for rows in told if rows] == [PAGE, PAGE, -1]


def test_what_was_gathered_is_recorded_while_the_engine_waits_for_the_next_page(bench: Bench) -> None:
    bench.handler.settings = FAST.model_copy(update={"commit_s": 60.0})
    job = make_job(bench.database, TEXTS)

    class Slow(FakeEngine):
        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            if threading.current_thread().name.startswith("reader"):
                wait_until(lambda: job_row(bench.database, job)["succeeded"] >= PAGE, what="the commit")
            return super()._encode(texts, limit)

    bench.engine = Slow
    claim = claim_of(bench)
    assert bench.handler.run(claim, watch_of(claim)).ended == len(TEXTS)


def test_no_more_than_one_page_is_looked_up_beyond_what_the_engine_took(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int | None] = []
    ahead: list[int] = []

    def note(*args: Any, first_rank: int | None = None, **options: Any) -> Any:
        looked.append(first_rank)
        return load_pending(*args, first_rank=first_rank, **options)

    class Counting(FakeEngine):
        def complete(self, rows: Any, parameters: Any, should_stop: Any, more: More | None = None) -> Iterator[list[Outcome]]:
            assert more is not None
            took = [1]

            def ask() -> Sequence[Row] | None:
                further = more()
                took[0] += bool(further)
                return further

            for outcomes in super().complete(rows, parameters, should_stop, ask):
                wait_until(lambda: len(looked) >= min(took[0] + 1, len(texts) // PAGE), what="the look beyond")
                time.sleep(0.05)  # In which it would look further.
                ahead.append(len(looked) - took[0])
                yield outcomes

    monkeypatch.setattr(pages, "load_pending", note)
    bench.engine = Counting
    texts = TEXTS + [f"another {text}" for text in TEXTS]
    job = make_job(bench.database, texts, per_chunk=len(texts))
    bench.runner.work()
    assert job_row(bench.database, job)["succeeded"] == len(texts)
    assert (len(looked), max(ahead), ahead[-1]) == (6, 1, 0)


def test_pages_double_until_they_are_as_large_as_the_engine_wants_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 2)
    monkeypatch.setattr(FakeEngine, "page_rows", 7)
    bench.engine = Ahead
    Ahead.pages.clear()
    texts = TEXTS + [f"another {text}" for text in TEXTS]
    make_job(bench.database, texts, per_chunk=len(texts))
    bench.runner.work()
    assert [rows for rows in Ahead.pages if rows] == [2, 4, 7, 7, 4]


def test_error_of_the_reader_comes_up_when_what_was_in_flight_is_recorded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_in_reader(*args: Any, **options: Any) -> Any:
        if threading.current_thread().name.startswith("reader"):
            raise StoreUnavailable("away")
        return load_pending(*args, **options)

    monkeypatch.setattr(pages, "load_pending", fail_in_reader)
    bench.engine = Ahead
    job = make_job(bench.database, TEXTS)
    claim = claim_of(bench)
    with pytest.raises(StoreUnavailable):
        bench.handler.run(claim, watch_of(claim))
    assert job_row(bench.database, job)["succeeded"] == PAGE


def test_stop_while_the_engine_waits_gives_the_rest_back(bench: Bench) -> None:
    has_begun = threading.Event()

    class Stopping(FakeEngine):
        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            if threading.current_thread().name.startswith("reader"):
                wait_until(has_begun.is_set, what="the first page")
                bench.drain.set()
            return super()._encode(texts, limit)

        def _forward(self, *args: Any) -> list[Outcome] | None:
            outcomes = super()._forward(*args)
            has_begun.set()
            wait_until(bench.drain.is_set, what="the drain")
            return outcomes

    bench.engine = Stopping
    job = make_job(bench.database, TEXTS)
    bench.runner.work()
    assert job_row(bench.database, job)["succeeded"] == PAGE
    assert [(chunk["state"], chunk["crashes"]) for chunk in chunk_rows_of(bench.database, job)] == [("queued", 0)]


@pytest.mark.parametrize("error", [StoreUnavailable("away"), JobEnded(), KeyError("a bug")], ids=lambda e: type(e).__name__)
def test_error_of_the_writer_ends_the_chunk_and_nothing_more_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tried: list[str] = []

    class Counting(FakeEngine):
        batches = 0

        def _forward(self, *args: Any) -> list[Outcome] | None:
            type(self).batches += 1
            return super()._forward(*args)

    def fail(name: str) -> None:
        wait_until(lambda: Counting.batches == 3, what="a second lot that waits")
        tried.append(name)
        raise error

    at_record(monkeypatch, fail)
    bench.engine = Counting
    job = make_job(bench.database, TEXTS)
    claim = claim_of(bench)
    with pytest.raises(type(error)):
        bench.handler.run(claim, watch_of(claim))
    assert (tried, job_row(bench.database, job)["succeeded"]) == (["record.begun"], 0)


def test_writer_that_fails_stops_the_device_within_a_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OneBatch()

    def fail(name: str) -> None:
        wait_until(lambda: engine.batches == 2, what="the second batch")
        raise StoreUnavailable("away")

    at_record(monkeypatch, fail)
    bench.engine = lambda: engine
    make_job(bench.database, TEXTS)
    claim = claim_of(bench)
    with pytest.raises(StoreUnavailable):
        bench.handler.run(claim, watch_of(claim))
    assert engine.batches == 2

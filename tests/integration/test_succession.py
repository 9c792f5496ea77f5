"""One stream over two chunks: rows of the one that was claimed ahead run beside the last ones of the one that runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from gistmill.db import ahead
from gistmill.db.check import check
from gistmill.db.claim import Claim
from gistmill.db.pending import Unit
from gistmill.db.results import Made
from gistmill.db.tables import dialogues, generations, results
from gistmill.specs import GenerationParameters
from tests.support.bench import FAST, Bench, Patient, work_until_completed
from tests.support.jobs import chunk_rows_of, job_row, make_job, make_worker, take
from tests.support.servers import wait_until
from workers.engine import transformers
from workers.engine.base import Outcome, Row
from workers.engine.fake import FakeEngine
from workers.engine.graph import engine as graph
from workers.engine.graph.stream import Stream
from workers.handlers import outlook, summarize
from workers.heartbeat import Watch

# Chunks take them in the order of their lengths.
TEXTS = [f"dialogue number {number:02}" + "!" * number for number in range(16)]
PER_CHUNK = 4
GIST_TINY = Path(__file__).resolve().parents[2] / "models_store" / "builtin" / "gist-tiny"


class Lanes(FakeEngine):
    """Works on two rows at once, and notes the calls of `complete`, which rows ran and what was recorded of which chunk then.

    The last rows of the first three chunks take until a row of the next one has begun, if one comes in time.
    """

    lanes = 2

    def __init__(self, bench: Bench, *, wait_s: float = 5.0, waiting: tuple[int, ...] = (3, 7, 11)) -> None:
        super().__init__(max_rows=1, seconds_per_row=0.02)
        self.bench, self.wait_s, self.waiting = bench, wait_s, waiting
        self.calls = 0
        self.begun: list[int] = []
        self.ended: list[tuple[int, list[int]]] = []
        self.chunks_recorded: list[set[int]] = []

    def complete(self, rows: Sequence[Row], *args: Any) -> Iterator[list[Outcome]]:
        self.calls += 1
        return super().complete(rows, *args)

    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        number = number_of(rows[0])
        self.begun.append(number)
        self.chunks_recorded.append(recorded_chunks(self.bench))
        if number in self.waiting:
            until = time.monotonic() + self.wait_s
            while not self.has_begun_behind(number) and time.monotonic() < until and not should_stop():
                time.sleep(0.005)
        outcomes = super()._forward(rows, parameters, should_stop)
        self.ended.append((number, list(self.begun)))
        return outcomes

    def has_begun_behind(self, number: int) -> bool:
        return any(other // PER_CHUNK > number // PER_CHUNK for other in self.begun)


def number_of(row: Row) -> int:
    return int(row.prompt.text.split("dialogue number ")[1][:2])


def recorded_chunks(bench: Bench) -> set[int]:
    with bench.database.read() as connection:
        return set(connection.execute(select(results.c.chunk_key).distinct()).scalars())


def summaries_of(bench: Bench, job: int) -> dict[str, str]:
    query = (
        select(dialogues.c.text, generations.c.summary)
        .select_from(results)
        .join(generations, generations.c.key == results.c.generation_key)
        .join(dialogues, dialogues.c.key == generations.c.dialogue_key)
        .where(results.c.job_key == job)
    )
    with bench.database.read() as connection:
        return dict(connection.execute(query).all())


def costs(bench: Bench, job: int) -> list[tuple[str, int, int, int]]:
    return [(row["state"], row["epoch"], row["failures"], row["crashes"]) for row in chunk_rows_of(bench.database, job)]


@pytest.fixture
def succeeding(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A worker that claims ahead, whatever little work there is, with a lease that outlives these tests."""
    monkeypatch.setattr(outlook, "LEAST_S", 0.0)
    bench.handler.successor = bench.runner.ahead
    bench.handler.settings = FAST.model_copy(update={"commit_s": 0.0})
    bench.runner.settings = bench.runner.ahead.settings = bench.heartbeat.settings = FAST.model_copy(update={"lease_s": 15.0})
    return bench


def use(bench: Bench, engine: Lanes) -> Lanes:
    bench.engine = lambda: engine
    return engine


def lanes_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_rows_of_the_next_chunk_run_beside_the_last_one_and_are_recorded_in_their_turn(succeeding: Bench) -> None:
    engine = use(succeeding, Lanes(succeeding))
    job = make_job(succeeding.database, TEXTS, per_chunk=PER_CHUNK)
    succeeding.runner.work()
    keys = [row["key"] for row in chunk_rows_of(succeeding.database, job)]
    assert engine.calls == 1
    begun_before_end = dict(engine.ended)
    for chunk in (1, 2, 3):
        first = next(number for number in engine.begun if number // PER_CHUNK == chunk)
        assert first in begun_before_end[PER_CHUNK * chunk - 1]
        assert keys[chunk] not in engine.chunks_recorded[engine.begun.index(first)]
    assert sorted(engine.begun) == list(range(16))
    assert costs(succeeding, job) == [("done", 1, 0, 0)] * 4
    assert check(succeeding.database) == []
    assert lanes_alive() == []


def test_summaries_are_those_of_one_chunk_after_the_other(succeeding: Bench) -> None:
    found = []
    for engine, limit in ((Lanes(succeeding), 512), (FakeEngine(), 500)):
        succeeding.handler.residence.clear()
        succeeding.engine = lambda engine=engine: engine
        texts = [*TEXTS, *TEXTS[3:9]]
        job = make_job(succeeding.database, texts, per_chunk=PER_CHUNK, spec={"max_input_tokens": limit})
        succeeding.runner.work()
        assert job_row(succeeding.database, job)["succeeded"] == len(texts)
        found.append(summaries_of(succeeding, job))
    assert found[0] == found[1]
    assert len(found[0]) == 16


@pytest.mark.parametrize("other", [{"generation": {"max_new_tokens": 7}}, {"generation": {"do_sample": True, "seed": 1}}])
def test_chunk_with_other_parameters_waits_for_its_turn(succeeding: Bench, other: dict[str, Any]) -> None:
    engine = use(succeeding, Lanes(succeeding, wait_s=0.5))
    make_job(succeeding.database, TEXTS[:4], per_chunk=PER_CHUNK)
    job = make_job(succeeding.database, TEXTS[4:], per_chunk=PER_CHUNK, spec=other)
    succeeding.runner.work()
    assert sorted(dict(engine.ended)[3]) == [0, 1, 2, 3]
    assert job_row(succeeding.database, job)["succeeded"] == 12


def test_chunk_that_was_lost_before_its_turn_is_left_to_its_new_owner(
    succeeding: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = succeeding.runner.ahead.take_up
    stolen: list[Claim] = []

    def take_up() -> Claim | None:
        claim = succeeding.runner.ahead._reserved
        if claim is not None and not stolen:
            succeeding.database.transact(partial(ahead.give_back, claim=claim))
            other = take(succeeding.database, make_worker(succeeding.database, "other", kinds=("summarize",)))
            assert other is not None
            stolen.append(other)
            assert engine.has_begun_behind(0), "the engine has begun with the chunk"
            # As if the process had been put to sleep here: nothing of the stream may be left when it goes on.
            found = real()
            assert lanes_alive() == []
            return found
        return real()

    monkeypatch.setattr(succeeding.runner.ahead, "take_up", take_up)
    engine = use(succeeding, Lanes(succeeding, waiting=(3, 7)))
    job = make_job(succeeding.database, TEXTS, per_chunk=PER_CHUNK)
    succeeding.runner.work()
    assert [claim.chunk_key for claim in stolen] == [chunk_rows_of(succeeding.database, job)[1]["key"]]
    assert costs(succeeding, job) == [("done", 1, 0, 0), ("running", 2, 0, 0), ("done", 1, 0, 0), ("done", 1, 0, 0)]
    with succeeding.database.read() as connection:
        written = connection.execute(select(func.count()).where(results.c.chunk_key == stolen[0].chunk_key)).scalar_one()
    assert (written, job_row(succeeding.database, job)["succeeded"]) == (0, 12)
    assert check(succeeding.database) == []


def test_rows_of_a_chunk_that_others_may_have_do_not_join_the_stream(
    succeeding: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summarize, "SHORT_S", 60.0)
    monkeypatch.setattr("workers.ahead.EXPECTED_S", 0.0)
    engine = use(succeeding, Lanes(succeeding, wait_s=0.3))
    job = make_job(succeeding.database, TEXTS, per_chunk=PER_CHUNK)
    succeeding.runner.work()
    # The second chunk was claimed ahead, the third one reserved as the second began, for no time at all.
    begun_before_end = dict(engine.ended)
    assert any(number // PER_CHUNK == 1 for number in begun_before_end[3])
    assert {number // PER_CHUNK for number in begun_before_end[7]} == {0, 1}
    assert job_row(succeeding.database, job)["succeeded"] == 16
    assert check(succeeding.database) == []


def test_drain_ends_the_stream_and_gives_both_chunks_back(succeeding: Bench) -> None:
    class Stuck(Lanes):
        def has_begun_behind(self, number: int) -> bool:
            return False

    engine = use(succeeding, Stuck(succeeding, wait_s=10))
    job = make_job(succeeding.database, TEXTS, per_chunk=PER_CHUNK)
    worker = threading.Thread(target=succeeding.runner.work, daemon=True)
    worker.start()
    wait_until(lambda: any(number >= 4 for number in engine.begun), what="a row of the next chunk")
    succeeding.drain.set()
    worker.join(5)
    assert not worker.is_alive()
    assert costs(succeeding, job) == [("queued", 1, 0, 0), ("queued", 1, 0, 0), ("queued", 0, 0, 0), ("queued", 0, 0, 0)]
    assert lanes_alive() == []
    assert len(recorded_chunks(succeeding)) == 1


def test_failure_is_paid_by_the_chunk_whose_turn_it_is_and_only_once(succeeding: Bench) -> None:
    class Broken(Lanes):
        """Fails with every row of another chunk while the first one runs."""

        def _forward(self, rows: Sequence[Row], *args: Any) -> list[Outcome] | None:
            if number_of(rows[0]) >= PER_CHUNK and costs(self.bench, job)[0][0] == "running":
                broken.append(number_of(rows[0]))
                raise KeyError("a bug that the rows of the first chunk do not meet")
            return super()._forward(rows, *args)

    broken: list[int] = []
    # Nothing is recorded before the error, so that the first chunk has as many rows to make the second time.
    succeeding.handler.settings = FAST.model_copy(update={"commit_s": 60.0})
    engine = use(succeeding, Broken(succeeding, wait_s=0.5))
    job = make_job(succeeding.database, TEXTS, per_chunk=PER_CHUNK)
    work_until_completed(succeeding, job)
    assert len(broken) == 1
    # The second chunk was not touched by it, and the first one, though it was claimed ahead behind that, waited for its turn.
    begun = next(begun for number, begun in engine.ended if number == 7)
    assert [begun.count(number) for number in range(PER_CHUNK)] == [1] * PER_CHUNK
    assert costs(succeeding, job)[:2] == [("done", 2, 1, 0), ("done", 1, 0, 0)]
    assert job_row(succeeding.database, job)["succeeded"] == 16
    assert check(succeeding.database) == []


def test_error_of_the_handler_leaves_the_next_chunk_to_a_stream_of_its_own(
    succeeding: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = summarize._made
    failed: list[str] = []

    def fail_once(unit: Unit, *args: Any) -> Made:
        if unit.text == TEXTS[2] and not failed:
            failed.append(unit.text)
            raise ValueError("a bug, while another row of this chunk is still being made")
        return real(unit, *args)

    class Three(Lanes):
        lanes = 3

        def has_begun_behind(self, number: int) -> bool:
            return bool(failed) if number == 3 else super().has_begun_behind(number)

    monkeypatch.setattr(summarize, "_made", fail_once)
    engine = use(succeeding, Three(succeeding, waiting=(2, 3)))
    job = make_job(succeeding.database, TEXTS, per_chunk=PER_CHUNK)
    work_until_completed(succeeding, job)
    assert 4 in next(begun for number, begun in engine.ended if number == 2), "the next chunk had begun"
    assert costs(succeeding, job)[:2] == [("done", 2, 1, 0), ("done", 1, 0, 0)]
    assert check(succeeding.database) == []


def test_pages_of_the_next_chunk_are_not_taken_for_those_of_another(succeeding: Bench) -> None:
    succeeding.engine = lambda: Patient(succeeding.database, job)
    job = make_job(succeeding.database, TEXTS, per_chunk=PER_CHUNK)
    ran: list[int] = []
    for _ in range(2):
        claim = take(succeeding.database, succeeding.runner.claimant)
        assert claim is not None
        watch = Watch(claim, write_until=float("inf"), drain=threading.Event())
        assert succeeding.handler.run(claim, watch).ended == PER_CHUNK
        ran.append(claim.chunk_key)
    keys = [row["key"] for row in chunk_rows_of(succeeding.database, job)]
    # The second one was only reserved, and its pages begun.
    assert ran == [keys[0], keys[2]]
    assert recorded_chunks(succeeding) == set(ran)
    assert sorted(summaries_of(succeeding, job)) == sorted(TEXTS[:4] + TEXTS[8:12])


def test_page_of_the_next_chunk_that_comes_late_still_joins(succeeding: Bench) -> None:
    class SlowToRead(Lanes):
        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            time.sleep(0.15)
            return super()._encode(texts, limit)

    engine = use(succeeding, SlowToRead(succeeding))
    job = make_job(succeeding.database, TEXTS, per_chunk=PER_CHUNK)
    succeeding.runner.work()
    assert (engine.calls, job_row(succeeding.database, job)["succeeded"]) == (1, 16)


def test_second_page_of_the_next_chunk_follows_in_its_turn(succeeding: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.handlers.pages.PAGE_ROWS", 2)
    monkeypatch.setattr(Lanes, "page_rows", 2, raising=False)
    engine = use(succeeding, Lanes(succeeding))
    job = make_job(succeeding.database, TEXTS, per_chunk=PER_CHUNK)
    succeeding.runner.work()
    assert (engine.calls, job_row(succeeding.database, job)["generated"]) == (1, 16)
    assert sorted(engine.begun) == list(range(16))
    assert check(succeeding.database) == []


def test_engine_that_asks_late_never_gets_rows_of_the_next_chunk(succeeding: Bench) -> None:
    calls: list[int] = []

    class OneByOne(FakeEngine):
        def complete(self, rows: Sequence[Row], *args: Any) -> Iterator[list[Outcome]]:
            calls.append(len(rows))
            return super().complete(rows, *args)

    succeeding.engine = lambda: OneByOne(max_rows=1, seconds_per_row=0.02)
    job = make_job(succeeding.database, TEXTS, per_chunk=PER_CHUNK)
    succeeding.runner.work()
    assert (calls, job_row(succeeding.database, job)["succeeded"]) == ([4, 4, 4, 4], 16)


def test_graph_fills_its_slots_from_the_next_chunk_and_writes_what_transformers_writes(
    succeeding: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed: list[bool] = []
    real = Stream._step
    slots = 6

    def is_next_chunk_read() -> bool:
        following = succeeding.handler._succession._next
        return following is not None and following.pages.is_ready

    def step(stream: Stream) -> list[Outcome]:
        if len(stream._flights) < slots and not any(mixed):
            wait_until(is_next_chunk_read, what="the first page of the next chunk")
        keys = sorted(flight.row.prompt.key for flight in stream._flights.values())
        # Each chunk has sixteen.
        mixed.append(bool(keys) and keys[0] // 16 != keys[-1] // 16)
        return real(stream)

    monkeypatch.setattr(Stream, "_step", step)
    monkeypatch.setattr(graph, "CPU_MAX_ROWS", slots)
    texts = [f"#Person1#: Is the report on the {thing} ready?" for thing in TEXTS for _ in range(4)]
    texts = [text + " It is number nine." * (number % 4) + "!" * number for number, text in enumerate(texts)]
    found = []
    for load, limit in ((graph.load, 512), (transformers.load, 500)):
        succeeding.handler.residence.clear()
        succeeding.engine = lambda load=load: load(GIST_TINY, device="cpu", precision="float32")
        job = make_job(succeeding.database, texts, per_chunk=16, spec={"max_input_tokens": limit})
        succeeding.runner.work()
        found.append(summaries_of(succeeding, job))
    assert found[0] == found[1]
    assert len(found[0]) == len(texts)
    assert any(mixed)

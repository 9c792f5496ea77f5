"""The speed of an engine is measured inside it, without what its caller does meanwhile, and without warming up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gistmill.db.speed import Measurement, Work
from gistmill.errors import GenerationFailed
from gistmill.specs import GenerationParameters
from workers import measuring
from workers.engine.base import Completion, Failure, Outcome
from workers.engine.fake import FakeEngine
from workers.measuring import ChunkMeter, Meter

WORK = Work.of("a" * 64, "native", GenerationParameters())


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the meter reads."""
    made = Clock()
    monkeypatch.setattr(measuring, "time", made)
    return made


def batch(rows: int) -> list[Outcome]:
    """Return a micro-batch of rows that read 10 tokens and wrote 5."""
    return [Completion(n, "text", "stop", tokens_in=10, tokens_out=5, truncated=False) for n in range(rows)]


def written(clock: Clock, seconds: list[float], *, rows: int = 2) -> Iterator[list[Outcome]]:
    """Yield one micro-batch for each number, which takes so many seconds."""
    for each in seconds:
        clock.now_s += each
        yield batch(rows)


def measured(meter: Meter, clock: Clock, engine: FakeEngine, batches: Iterator[list[Outcome]]) -> Measurement | None:
    """Run a chunk whose writer takes 7 s for each micro-batch; return what was measured."""
    chunk = ChunkMeter(meter, WORK)
    for _ in chunk.timed(engine, batches, version_digest="b" * 64):
        clock.now_s += 7.0
    ending = chunk.ending()
    return None if ending is None else ending.keywords["measurement"]  # type: ignore[attr-defined]


def test_first_micro_batch_of_an_engine_is_warm_up_and_no_speed(clock: Clock) -> None:
    meter, engine = Meter("GPU", lambda _engine: 3.5), FakeEngine()
    first = measured(meter, clock, engine, written(clock, [5.0, 1.0, 1.0]))
    assert first is not None
    assert (first.dialogues, first.tokens_in, first.tokens_out, first.seconds) == (4, 40, 20, 2.0)
    assert (first.load_s, first.warmup_s) == (3.5, 4.0)
    assert (first.engine, first.device_name, first.dtype, first.version_digest) == ("fake", "GPU", "none", "b" * 64)


def test_later_chunks_of_the_same_engine_count_whole(clock: Clock) -> None:
    meter, engine = Meter("GPU", lambda _engine: 3.5), FakeEngine()
    measured(meter, clock, engine, written(clock, [5.0]))
    second = measured(meter, clock, engine, written(clock, [1.0, 2.0]))
    assert second is not None
    assert (second.dialogues, second.seconds, second.load_s, second.warmup_s) == (4, 3.0, None, None)


def test_another_engine_warms_up_anew(clock: Clock) -> None:
    meter = Meter("GPU", lambda _engine: None)
    measured(meter, clock, FakeEngine(), written(clock, [5.0, 1.0]))
    other = measured(meter, clock, FakeEngine(), written(clock, [5.0]))
    assert other is not None
    assert (other.dialogues, other.seconds, other.warmup_s) == (0, 0.0, None)


def test_rows_that_failed_count_neither_as_dialogues_nor_as_the_first_micro_batch(clock: Clock) -> None:
    meter, engine = Meter("GPU", lambda _engine: None), FakeEngine()

    def batches() -> Iterator[list[Outcome]]:
        yield [Failure(9, GenerationFailed("too long"))]
        yield from written(clock, [5.0, 1.0])

    first = measured(meter, clock, engine, batches())
    assert first is not None
    assert (first.dialogues, first.seconds, first.warmup_s) == (2, 1.0, 4.0)


def test_waiting_for_the_next_page_is_no_time_of_the_engine(clock: Clock) -> None:
    meter = Meter("GPU", lambda _engine: None)

    def batches() -> Iterator[list[Outcome]]:
        yield from written(clock, [5.0, 1.0])
        yield []
        yield []
        yield from written(clock, [2.0])

    found = measured(meter, clock, FakeEngine(), batches())
    assert found is not None
    assert (found.dialogues, found.seconds) == (4, 3.0)


def test_chunk_whose_summaries_all_existed_measures_nothing() -> None:
    assert ChunkMeter(Meter("GPU", lambda _engine: None), WORK).ending() is None

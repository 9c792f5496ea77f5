"""Micro-batches worked on at once: every row ends once, one thread at a time asks, and nothing runs on when it has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest

from gistmill.errors import DeviceOutOfMemory, GenerationFailed
from gistmill.specs import GenerationParameters
from tests.support.servers import wait_until
from workers.engine.base import Completion, Failure, Outcome, Prompt, Row
from workers.engine.batched import BatchFailed
from workers.engine.fake import FakeEngine

GREEDY = GenerationParameters(max_new_tokens=40)
TEXTS = [f"word {number}" for number in range(24)]


class Laned(FakeEngine):
    """Two lanes of two rows, each batch in its own time; `on` is called in the lane before a batch is completed."""

    lanes = 2

    def __init__(self, on: Callable[[Sequence[Row]], None] = lambda rows: None, **knobs: Any) -> None:
        super().__init__(max_rows=2, **knobs)
        self.on = on
        self.at_once = self.most_at_once = 0
        self._counting = threading.Lock()

    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        with self._counting:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.on(rows)
            return super()._forward(rows, parameters, should_stop)
        finally:
            with self._counting:
                self.at_once -= 1


def start(engine: FakeEngine, texts: list[str] = TEXTS, *, should_stop: Callable[[], bool] = lambda: False) -> Any:
    prompts = [Prompt(key, text) for key, text in enumerate(texts)]
    return engine.generate(prompts, GREEDY, max_input_tokens=2048, on_overflow="fail", should_stop=should_stop)


def outcomes_of(engine: FakeEngine, texts: list[str] = TEXTS) -> dict[int, Outcome]:
    outcomes = [outcome for batch in start(engine, texts) for outcome in batch]
    assert sorted(outcome.key for outcome in outcomes) == list(range(len(texts)))
    return {outcome.key: outcome for outcome in outcomes}


def meeting() -> Callable[[Sequence[Row]], None]:
    """Return what holds the first batch of either lane until both have begun."""
    begun = threading.Barrier(2)

    def meet(rows: Sequence[Row]) -> None:
        if rows[0].prompt.key in (0, 2):
            begun.wait(10)

    return meet


def pairs_wait_for(event: threading.Event) -> Callable[[Sequence[Row]], None]:
    """Return what lets both lanes begin, and then holds batches of two rows until this is set."""
    meet = meeting()

    def hold(rows: Sequence[Row]) -> None:
        meet(rows)
        assert len(rows) == 1 or event.wait(10)

    return hold


def lanes_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_two_lanes_give_the_outcomes_of_one_and_work_at_once() -> None:
    engine = Laned(meeting())

    assert outcomes_of(engine) == outcomes_of(FakeEngine(max_rows=2))
    assert engine.most_at_once == 2
    assert lanes_alive() == []


def test_batches_come_in_the_order_in_which_they_finish() -> None:
    second_is_done = threading.Event()

    def hold_the_first(rows: Sequence[Row]) -> None:
        if rows[0].prompt.key == 0:
            assert second_is_done.wait(10)

    batches = start(Laned(hold_the_first), TEXTS[:4])
    assert [outcome.key for outcome in next(batches)] == [2, 3]
    second_is_done.set()
    assert [outcome.key for outcome in next(batches)] == [0, 1]


def test_next_batch_is_begun_before_one_is_handed_over() -> None:
    begun: list[int] = []
    with closing(start(Laned(lambda rows: begun.append(rows[0].prompt.key)))) as batches:
        next(batches)
        # Two, and one in the place of each that was finished by then; with two lanes at most two were.
        wait_until(lambda: len(begun) >= 3, what="the batch in the place of the one handed over")
        assert len(begun) <= 4


def test_one_thread_at_a_time_asks_whether_to_stop_and_never_while_the_caller_is_busy() -> None:
    asking, caller_is_busy = threading.Lock(), threading.Event()
    askers: set[str] = set()
    clashes = 0

    def should_stop() -> bool:
        nonlocal clashes
        if not asking.acquire(blocking=False) or caller_is_busy.is_set():
            clashes += 1
            return False
        askers.add(threading.current_thread().name)
        time.sleep(0.0005)
        asking.release()
        return False

    for _ in start(Laned(seconds_per_row=0.02), should_stop=should_stop):
        caller_is_busy.set()
        time.sleep(0.003)
        caller_is_busy.clear()

    assert clashes == 0
    assert threading.current_thread().name in askers
    assert len(askers) > 1, "a lane asks while the caller waits"


def test_stop_ends_both_lanes_and_is_asked_for_no_more() -> None:
    answers: list[bool] = []

    def stop_at_the_tenth() -> bool:
        answers.append(len(answers) == 9)
        return answers[-1]

    engine = Laned(meeting(), seconds_per_row=0.5)
    began_at = time.monotonic()

    assert list(start(engine, should_stop=stop_at_the_tenth)) == []

    assert time.monotonic() - began_at < 5
    assert len(answers) == 10
    assert engine.most_at_once == 2
    assert lanes_alive() == []


def test_what_was_yielded_before_a_stop_stays_and_no_more_comes() -> None:
    seen: list[list[Outcome]] = []

    for batch in start(Laned(), should_stop=lambda: bool(seen)):
        seen.append(batch)

    assert len(seen) == 1


def test_batch_that_fails_is_halved_while_the_other_lane_goes_on() -> None:
    texts = [*TEXTS[:5], "bad [[poison]]", *TEXTS[6:]]

    outcomes = outcomes_of(Laned(seconds_per_row=0.001), texts)

    assert isinstance(outcomes[5], Failure)
    assert isinstance(outcomes[5].error, GenerationFailed)
    assert sum(isinstance(outcome, Completion) for outcome in outcomes.values()) == len(texts) - 1


def test_row_that_lacks_memory_beside_another_is_tried_alone_before_it_fails() -> None:
    engine = Laned()
    beside: list[int] = []

    def fail_beside_another(rows: Sequence[Row]) -> None:
        heavy = [row for row in rows if row.prompt.key in (1, 2)]
        if heavy:
            beside.append(engine.at_once)
            # The first attempts fail even when the other lane happens to have nothing to do.
            if engine.at_once > 1 or len(beside) <= 4 or heavy[0].prompt.key == 2:
                raise BatchFailed(DeviceOutOfMemory())

    engine.on = fail_beside_another
    outcomes = outcomes_of(engine, TEXTS[:6])

    assert isinstance(outcomes[2], Failure), "it does not fit alone either"
    assert isinstance(outcomes[2].error, DeviceOutOfMemory)
    assert sum(isinstance(outcome, Completion) for outcome in outcomes.values()) == 5
    assert beside[-2:] == [1, 1], "the last attempt of each had the machine for itself"


def test_error_in_a_lane_comes_up_in_the_caller_and_ends_the_other() -> None:
    def break_down(rows: Sequence[Row]) -> None:
        if rows[0].prompt.key == 4:
            raise OSError("a broken disk")

    with pytest.raises(OSError, match="a broken disk"):
        list(start(Laned(break_down, seconds_per_row=0.01)))
    assert lanes_alive() == []


def test_closing_early_leaves_no_lane_running() -> None:
    first_is_out = threading.Event()

    def hold_the_others(rows: Sequence[Row]) -> None:
        assert rows[0].prompt.key == 0 or first_is_out.wait(10)

    engine = Laned(hold_the_others)
    began_at = time.monotonic()

    with closing(start(engine)) as batches:
        next(batches)
        engine.seconds_per_row = 30.0
        first_is_out.set()
        assert lanes_alive()

    assert time.monotonic() - began_at < 10
    assert engine.at_once == 0
    assert lanes_alive() == []


def test_no_rows_need_no_lane() -> None:
    assert list(start(Laned(), [])) == []


def test_lanes_get_the_next_rows_of_a_stream_while_others_still_run() -> None:
    has_asked = threading.Event()
    engine = Laned(pairs_wait_for(has_asked))
    pages = [rows_from(engine, start) for start in (0, 3, 6)]
    asked_at: list[int] = []

    def more() -> list[Row] | None:
        asked_at.append(engine.at_once)
        has_asked.set()
        # Not ready at first, while a lane still works and until nothing is left to do.
        return [] if [] not in batches else pages.pop(0) if pages else None

    batches: list[list[Outcome]] = []
    for outcomes in engine.complete(pages.pop(0), GREEDY, lambda: False, more):
        batches.append(outcomes)

    assert sorted(outcome.key for batch in batches for outcome in batch) == list(range(9))
    assert asked_at[0] == 1, "one lane had nothing to do, the other still worked"
    assert [] in batches, "nothing was left to do and no rows were ready"
    assert pages == []


def test_lane_with_nothing_to_do_asks_again_while_another_still_works() -> None:
    has_asked_often = threading.Event()
    engine = Laned(pairs_wait_for(has_asked_often))
    pages = [rows_from(engine, start) for start in (0, 3)]
    asked_at: list[int] = []

    def more() -> list[Row] | None:
        asked_at.append(engine.at_once)
        if len(asked_at) == 4:
            has_asked_often.set()
        return [] if len(asked_at) <= 3 else pages.pop(0) if pages else None

    batches = list(engine.complete(pages.pop(0), GREEDY, lambda: False, more))

    assert sorted(outcome.key for batch in batches for outcome in batch) == list(range(6))
    # Three rows in two lanes: the third one's lane has nothing to do while the other works.
    assert asked_at[:4] == [1, 1, 1, 1]
    assert [] not in batches


def rows_from(engine: FakeEngine, start: int) -> list[Row]:
    prompts = [Prompt(key, f"word {key}") for key in range(start, start + 3)]
    read = engine.read(prompts, max_input_tokens=99, on_overflow="fail", should_stop=lambda: False)
    return [row for row in read if isinstance(row, Row)]

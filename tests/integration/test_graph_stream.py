"""The engine graph fed page by page: the rows of the next page join while the last ones of this page are in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import pytest
import torch

from benchmarks import streams
from benchmarks.pretended import TOKENS_OUT, Device, measure, pretended
from benchmarks.streams import measure_ways
from gistmill.errors import DeviceOutOfMemory
from gistmill.specs import GenerationParameters
from tests.integration.test_engine_conformance import GREEDY, SAMPLED, Pages, complete, feed, never, prompts_of, read
from tests.integration.test_graph_engine import (
    FIRST,
    NO_MEMORY,
    SECOND,
    Recording,
    assert_same,
    with_adapters,
)
from tests.integration.test_transformers_engine import RecordingEngine
from tests.support.models import dialogues, make_tiny_t5
from workers.engine.base import Completion, Engine, Failure, Outcome, Prompt, Row
from workers.engine.graph.arena import Arena, Ending, Leaving

TEXTS = dialogues(64, most_words=40)
LONG = GREEDY.model_copy(update={"max_new_tokens": 120})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("flan"))


def pages_of(texts: Sequence[str], size: int) -> list[list[Prompt]]:
    """The texts in pages, shortest first, as a chunk has them."""
    prompts = sorted(prompts_of(list(texts)), key=lambda prompt: len(prompt.text))
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def flat(batches: Sequence[Sequence[Outcome]]) -> dict[int, Outcome]:
    outcomes = [outcome for batch in batches for outcome in batch]
    assert len({outcome.key for outcome in outcomes}) == len(outcomes), "a prompt has two outcomes"
    return {outcome.key: outcome for outcome in outcomes}


@pytest.mark.parametrize("parameters", [LONG, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("lag", "is_ahead"), [(0, False), (2, True)])
def test_stream_of_pages_writes_the_tokens_of_transformers_in_fewer_steps_than_page_by_page(
    flan: Path, parameters: GenerationParameters, lag: int, is_ahead: bool
) -> None:
    reference = RecordingEngine(flan)
    expected = complete(reference, prompts_of(TEXTS), parameters)
    pages = pages_of(TEXTS, 8)
    stream, alone = (Recording(flan, lag=lag, is_ahead=is_ahead) for _ in range(2))

    outcomes = flat(feed(stream, pages, parameters))

    if parameters is SAMPLED:
        assert outcomes == expected
    else:
        assert_same(stream, reference, outcomes, expected, TEXTS)
    assert flat([list(complete(alone, page, parameters).values()) for page in pages]) == outcomes
    assert len(stream.views) < 0.8 * len(alone.views)
    occupied = [mean(view.slots for view in engine.views) for engine in (stream, alone)]
    assert occupied[0] > 1.2 * occupied[1]


def test_rows_of_the_next_page_join_while_those_of_this_one_are_in_flight(flan: Path) -> None:
    engine = Recording(flan)
    (slow,) = read(engine, prompts_of(["the cat " * 10]))
    others = read(engine, [Prompt(key, text) for key, text in enumerate(TEXTS[:20], start=1)])

    batches = list(engine.complete([slow], GREEDY, never, Pages([], others[:4], [], others[4:])))

    seen = flat(batches)
    assert len(seen) == 21
    assert engine.views[0].slots == 1
    written = seen[0]
    assert isinstance(written, Completion)
    assert max(view.slots for view in engine.views[: written.tokens_out]) > 4, "the row that came first is still in flight"


def test_page_that_is_not_there_in_time_holds_up_no_row_in_flight_and_is_asked_for_at_every_step(flan: Path) -> None:
    engine = Recording(flan)
    first, second = (read(engine, page) for page in (prompts_of(TEXTS[:4]), [Prompt(9, TEXTS[9])]))
    asked_at: list[int] = []

    def more() -> Sequence[Row] | None:
        asked_at.append(len(engine.views))
        return [] if idle < 2 else second if 9 not in engine.tokens and len(asked_at) == asked_at_last + 1 else None

    idle, asked_at_last = 0, 0
    seen: list[list[Outcome]] = []
    for batch in engine.complete(first, GREEDY, never, more):
        seen.append(batch)
        if not batch:
            idle += 1
            asked_at_last = len(asked_at)

    assert flat(seen) == complete(engine, [*prompts_of(TEXTS[:4]), Prompt(9, TEXTS[9])])
    assert [not batch for batch in seen].count(True) == 2
    assert seen.index([]) == sum(bool(batch) for batch in seen[: seen.index([])]), "what was in flight came first"
    steps = max(o.tokens_out for o in flat(seen[: seen.index([])]).values() if isinstance(o, Completion))
    assert asked_at[: steps + 1] == list(range(steps + 1))


def test_row_longer_than_all_before_waits_for_an_arena_that_is_wide_enough(flan: Path) -> None:
    reference, engine = RecordingEngine(flan), Recording(flan)
    pages = [
        prompts_of(TEXTS[:20]),
        [Prompt(20, "the cat " * 100), Prompt(21, "the cat " * 250), *pages_of(TEXTS[22:40], 18)[0]],
    ]
    pages[1] = [*pages[1][:2], *(prompt._replace(key=prompt.key + 22) for prompt in pages[1][2:])]

    outcomes = flat(feed(engine, pages))

    assert outcomes == complete(reference, [prompt for page in pages for prompt in page])
    sources = [view.source for view in engine.views]
    assert max(sources[:10]) <= 64 < 500 <= max(sources)


def test_few_short_rows_join_a_long_one_instead_of_waiting_for_its_end(flan: Path) -> None:
    engine = Recording(flan, budget_tokens=5_000)
    pages = [[Prompt(0, "the cat " * 250)], [Prompt(key, TEXTS[key]) for key in range(1, 4)]]

    outcomes = flat(feed(engine, pages))

    assert outcomes == complete(RecordingEngine(flan), [prompt for page in pages for prompt in page])
    assert max(view.slots for view in engine.views if view.source > 500) == 4


@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("limit", [1, 64])
def test_limits_of_one_and_of_many_tokens_hold_in_a_stream(flan: Path, limit: int, lag: int) -> None:
    parameters = GenerationParameters(max_new_tokens=limit)

    outcomes = flat(feed(Recording(flan, lag=lag), pages_of(TEXTS, 8), parameters))

    assert outcomes == complete(RecordingEngine(flan), prompts_of(TEXTS), parameters)


def test_rows_at_the_limit_leave_before_the_device_has_said_that_they_are_done(flan: Path) -> None:
    parameters = GenerationParameters(max_new_tokens=4)
    told_at_once, told_late = Recording(flan), Recording(flan, lag=3)

    outcomes = flat(feed(told_at_once, pages_of(TEXTS, 8), parameters))

    assert flat(feed(told_late, pages_of(TEXTS, 8), parameters)) == outcomes
    assert all(isinstance(each, Completion) and each.finish_reason == "length" for each in outcomes.values())
    assert len(told_late.views) == len(told_at_once.views)


@pytest.mark.parametrize("limit", [1, 4, 64])
@pytest.mark.parametrize("lag", [0, 3])
def test_texts_are_made_when_further_steps_are_launched_or_no_row_is_in_flight(
    flan: Path, limit: int, lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Recording(flan, lag=lag)
    left_at: list[int] = []
    read_at: list[int] = []
    leave, read = Arena.leave, Leaving.read

    def leave_noted(arena: Arena, slots: Sequence[int]) -> Leaving:
        left_at.append(len(engine.views))
        return leave(arena, slots)

    def read_noted(leaving: Leaving) -> list[Ending]:
        read_at.append(len(engine.views))
        return read(leaving)

    monkeypatch.setattr(Arena, "leave", leave_noted)
    monkeypatch.setattr(Leaving, "read", read_noted)
    outcomes = flat(feed(engine, pages_of(TEXTS, 8), GenerationParameters(max_new_tokens=limit)))

    assert len(outcomes) == len(TEXTS)
    assert len(read_at) == len(left_at) > 2
    behind = [read - left for left, read in zip(left_at, read_at, strict=True) if left < len(engine.views) - lag]
    assert min(behind) == max(behind) == lag + 1


@pytest.mark.parametrize("lag", [0, 1])
def test_stop_in_the_middle_of_a_stream_ends_within_a_step(flan: Path, lag: int) -> None:
    engine = Recording(flan, lag=lag)
    wanted = complete(engine, prompts_of(TEXTS))
    engine.views.clear()
    seen: list[list[Outcome]] = []
    steps_at_stop: list[int] = []

    def should_stop() -> bool:
        if sum(map(len, seen)) >= 8:
            steps_at_stop.append(len(engine.views))
        return bool(steps_at_stop)

    first, *later = (read(engine, page) for page in pages_of(TEXTS, 16))
    more = Pages(*later)
    for batch in engine.complete(first, GREEDY, should_stop, more):
        seen.append(batch)

    assert 8 <= len(flat(seen)) < len(TEXTS)
    assert flat(seen).items() <= wanted.items()
    assert steps_at_stop == [len(engine.views)]
    assert more.left, "nothing more is asked for"
    assert complete(engine, prompts_of(TEXTS)) == wanted


def test_lack_of_memory_in_a_stream_costs_no_row_and_is_forgotten_with_the_next_page(flan: Path) -> None:
    engine = Recording(flan)
    wanted = complete(engine, prompts_of(TEXTS))
    full = max(view.slots for view in engine.views)
    engine.views.clear()
    struck: list[int] = []

    def strike_once(view: object) -> Exception | None:
        if len(engine.views) == 10:
            struck.append(len(engine.views))
            return NO_MEMORY
        return None

    engine.strike = strike_once

    assert flat(feed(engine, pages_of(TEXTS, 16))) == wanted
    assert struck == [10]
    assert max(view.slots for view in engine.views[20:]) == full


def test_row_that_fails_alone_in_a_stream_takes_none_of_another_page_with_it(flan: Path) -> None:
    engine = Recording(flan)
    pages = [
        prompts_of(TEXTS[:8]),
        [Prompt(8, "the cat " * 80)],
        [Prompt(9 + key, text) for key, text in enumerate(TEXTS[9:20])],
    ]
    wanted = complete(engine, [prompt for page in pages for prompt in page])
    engine.strike = lambda view: NO_MEMORY if view.source > 100 else None

    outcomes = flat(feed(engine, pages))

    failure = outcomes.pop(8)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, DeviceOutOfMemory)
    assert outcomes == {key: wanted[key] for key in outcomes}
    assert len(outcomes) == 19


@pytest.mark.parametrize("is_ahead", [False, True])
def test_two_streams_with_adapters_take_turns_and_write_what_they_write_alone(
    flan: Path, tmp_path: Path, is_ahead: bool
) -> None:
    engine = with_adapters(Recording(flan, is_ahead=is_ahead), flan, tmp_path)
    sources: dict[str, Engine] = {"base": engine, FIRST: engine.adapted(FIRST), SECOND: engine.adapted(SECOND)}
    pages = pages_of(TEXTS[:30], 10)
    wanted = {name: flat(feed(source, pages)) for name, source in sources.items()}
    assert len({str(outcomes) for outcomes in wanted.values()}) == 3

    def start(source: Engine) -> Callable[[], list[Outcome] | None]:
        first, *later = (read(source, page) for page in pages)
        batches = iter(source.complete(first, GREEDY, never, Pages(*later)))
        return lambda: next(batches, None)

    running = {name: start(source) for name, source in sources.items()}
    seen: dict[str, list[list[Outcome]]] = {name: [] for name in sources}
    while running:
        for name in list(running):
            batch = running[name]()
            if batch is None:
                del running[name]
            else:
                seen[name].append(batch)

    assert {name: flat(batches) for name, batches in seen.items()} == wanted
    assert sum(map(len, seen.values())) >= 9


def test_more_rows_in_a_page_than_slots_and_pages_of_nothing(flan: Path) -> None:
    engine = Recording(flan)
    pages = [[], prompts_of(TEXTS[:40]), [], [], [Prompt(40 + key, text) for key, text in enumerate(TEXTS[40:])]]

    outcomes = flat(feed(engine, pages))

    assert outcomes == complete(RecordingEngine(flan), prompts_of(TEXTS))
    assert max(view.slots for view in engine.views) < 20


def test_benchmark_runs_both_ways_on_a_cpu_and_counts_fewer_steps_of_the_stream(
    flan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A page that is read late leaves slots empty.
    monkeypatch.setattr(streams.Pages, "more", streams.Pages.take)
    found = measure_ways(Recording(flan), TEXTS[:32], GREEDY, rounds=1, sizes=[8])

    assert found["8"]["pages"] == 4
    stream, alone = found["8"]["stream"], found["8"]["page_by_page"]
    assert stream["steps"] < alone["steps"]
    assert alone["rows_in_flight"] < stream["rows_in_flight"] <= stream["most_in_flight"]


def test_host_gives_a_pretended_device_no_more_steps_than_the_rows_need_and_waits_for_it(flan: Path) -> None:
    engine, device = Recording(flan), Device(slowness=0.2)

    with pretended(engine, device, slots=16):
        found = measure(engine, device, TEXTS, rounds=1)

    assert found["complete"]["steps"] == len(TEXTS) // 16 * TOKENS_OUT
    for way in found.values():
        assert way["steps"] >= len(TEXTS) // 16 * TOKENS_OUT
        assert 0 < way["busy_percent"][0] <= 100
        assert way["rows_per_s"] <= way["device_rows_per_s"]

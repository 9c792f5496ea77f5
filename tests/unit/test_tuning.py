"""Tuning: which setting is tried next and on what, which one is chosen, and an engine that works meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistmill.specs import GenerationParameters
from workers.engine.base import Outcome, Prompt, Row
from workers.engine.batching import pack_evenly
from workers.engine.fake import FakeEngine
from workers.engine.tuned import TunedEngine
from workers.engine.tuning import FINAL_ROUNDS, ROUNDS, Setting, Tuner, choose, find_next, list_lanes, trial_rows

WIDE, NARROW = Setting(1, 40), Setting(1, 20)
BOTH, BOTH_NARROW = Setting(2, 20), Setting(2, 10)
SETTINGS = [WIDE, NARROW, BOTH, BOTH_NARROW]
GREEDY = GenerationParameters(max_new_tokens=40)


class Memory:
    """Notes that nobody keeps."""

    def __init__(self) -> None:
        self.speeds: dict[Setting, list[float]] = {}

    def read(self) -> dict[Setting, list[float]]:
        return self.speeds

    def add(self, setting: Setting, tokens_per_s: float) -> dict[Setting, list[float]]:
        self.speeds.setdefault(setting, []).append(tokens_per_s)
        return self.speeds


def test_threads_are_split_evenly_into_two_lanes_first_then_one_the_most_and_a_few_between() -> None:
    assert [list_lanes(threads) for threads in (1, 2, 3, 4, 6, 7)] == [[1], [2, 1], [1, 3], [2, 1, 4], [2, 1, 3, 6], [1, 7]]
    assert [list_lanes(threads) for threads in (16, 64, 13)] == [[2, 1, 4, 8], [2, 1, 4, 8], [1]]


def test_every_setting_is_tried_in_each_round_and_every_other_round_is_in_reverse() -> None:
    notes, tried = Memory(), []
    while choose(SETTINGS, notes.speeds) is None:
        tried.append(find_next(SETTINGS, notes.speeds))
        notes.add(tried[-1], 1.0)

    assert tried == [*SETTINGS, *reversed(SETTINGS)] * (FINAL_ROUNDS // 2)


def test_settings_that_are_far_from_the_fastest_are_tried_no_further() -> None:
    notes, tried = Memory(), []
    while choose(SETTINGS, notes.speeds) is None:
        tried.append(find_next(SETTINGS, notes.speeds))
        notes.add(tried[-1], SPEEDS[tried[-1]] if tried[-1] != NARROW else 121.0)

    assert tried == [*SETTINGS, *reversed(SETTINGS), *SETTINGS, BOTH, NARROW, NARROW, BOTH, BOTH, NARROW]
    alone = {setting: [100.0 if setting is BOTH else 79.0] * ROUNDS for setting in SETTINGS}
    assert choose(SETTINGS, alone) == BOTH


def test_setting_that_others_slowed_down_in_every_first_round_is_still_found() -> None:
    notes = Memory()
    while (chosen := choose(SETTINGS, notes.speeds)) is None:
        setting = find_next(SETTINGS, notes.speeds)
        is_disturbed = setting == BOTH and len(notes.speeds.get(BOTH, ())) < ROUNDS
        notes.add(setting, SPEEDS[setting] * (0.6 if is_disturbed else 1.0))
    assert chosen == BOTH


def test_fastest_trial_of_each_counts_and_what_is_as_good_as_equal_changes_nothing() -> None:
    speeds = {WIDE: [100.0, *[30.0] * 5], NARROW: [90.0] * 6, BOTH: [*[10.0] * 5, 140.0], BOTH_NARROW: [99.0] * 6}
    assert choose(SETTINGS, speeds) == BOTH
    assert choose(SETTINGS, speeds | {BOTH: [102.0] * 6}) == WIDE
    assert choose(SETTINGS, speeds | {BOTH: [102.0] * 5}) is None
    assert choose(SETTINGS, speeds | {BOTH: [140.0] * 2}) is None
    assert choose([WIDE, NARROW], speeds) == WIDE, "figures of what may not be chosen do not count"


@given(
    st.lists(st.integers(1, 3000), max_size=300),
    st.sampled_from(
        [
            [(2, 4096), (2, 8192), (1, 4096), (1, 8192)],
            [(1, 4096), (1, 2048), (2, 2048), (2, 1024)],
            [(1, 2560), (1, 1280), (2, 1280), (2, 640)],
            [(4, 512)],
        ]
    ),
)
def test_trial_fills_the_same_number_of_batches_in_every_lane(lengths: list[int], pairs: list[tuple[int, int]]) -> None:
    settings = [Setting(*pair) for pair in pairs]
    lengths = sorted(lengths, reverse=True)

    count = trial_rows(lengths, settings, max_rows=64)

    assert 0 <= count <= len(lengths)
    tokens = max(lanes * budget for lanes, budget in settings)
    for lanes, budget in settings if count else ():
        batches = pack_evenly(lengths[:count], budget_tokens=budget, max_rows=64, lanes=lanes)
        assert len(batches) <= tokens // budget
        assert len(batches) % lanes == 0


def test_too_few_rows_or_rows_too_long_for_a_batch_are_no_trial() -> None:
    settings = [Setting(1, 4096), Setting(2, 1024)]

    assert trial_rows([160] * 100, settings, max_rows=64) == 24
    assert trial_rows([160] * 23, settings, max_rows=64) == 0
    assert trial_rows([1100] * 100, settings, max_rows=64) == 0
    assert trial_rows([5] * 300, settings, max_rows=64) == 0, "64 rows of a batch are too few tokens"
    assert trial_rows([], settings, max_rows=64) == 0


class Simulated(FakeEngine, TunedEngine):
    """A fake engine whose time passes as the speeds of its settings say."""

    def __init__(self, tuner: Tuner, tokens_per_s: dict[Setting, float], *, cannot: Sequence[int] = (), **knobs: Any) -> None:
        super().__init__(budget_tokens=WIDE.budget_tokens, max_rows=64, **knobs)
        self.now = 0.0
        self.clock = lambda: self.now
        self.tuner = tuner
        self.tokens_per_s, self.cannot = tokens_per_s, cannot
        self.adopted: list[Setting] = []

    def _adopt(self, setting: Setting) -> bool:
        if setting.lanes in self.cannot:
            return False
        self.adopted.append(setting)
        self.lanes, self.budget_tokens = setting
        return True

    def _forward(
        self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]
    ) -> list[Outcome] | None:
        outcomes = super()._forward(rows, parameters, should_stop)
        self.now += 10 * len(rows) / self.tokens_per_s[Setting(self.lanes, self.budget_tokens)]
        return outcomes


def run(
    engine: FakeEngine, count: int, *, words: str = "a b c d", should_stop: Callable[[], bool] = lambda: False
) -> list[Outcome]:
    prompts = [Prompt(key, words) for key in range(count)]
    batches = engine.generate(prompts, GREEDY, max_input_tokens=2048, on_overflow="fail", should_stop=should_stop)
    return [outcome for batch in batches for outcome in batch]


SPEEDS = {WIDE: 100.0, NARROW: 110.0, BOTH: 150.0, BOTH_NARROW: 80.0}


def make(notes: Memory, **knobs: Any) -> Simulated:
    return Simulated(Tuner(SETTINGS, notes, max_rows=64), SPEEDS, **knobs)


def test_first_rows_are_the_trials_and_the_fastest_setting_does_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    notes = Memory()
    engine = make(notes)

    outcomes = run(engine, 200)

    assert sorted(outcome.key for outcome in outcomes) == list(range(200)), "no work is thrown away and none is done twice"
    assert engine.adopted == [*SETTINGS, *reversed(SETTINGS), *SETTINGS, BOTH]
    assert engine.tuner is None
    assert (engine.lanes, engine.budget_tokens) == BOTH
    logged = capsys.readouterr().out
    assert "engine_tuned" in logged
    assert "2 x 20" in logged


def test_small_jobs_are_not_held_up_and_those_that_fill_a_trial_add_up() -> None:
    notes = Memory()
    engine = make(notes)
    run(engine, 7)
    assert notes.speeds == {}
    assert engine.adopted == []

    for _ in range(2 * ROUNDS):
        run(make(notes), 20)

    assert sum(map(len, notes.speeds.values())) == len(SETTINGS) * ROUNDS
    assert Tuner(SETTINGS, notes, max_rows=64).best_known == BOTH


def test_row_too_long_for_the_smallest_batch_keeps_no_other_row_from_being_tried() -> None:
    notes = Memory()
    engine = make(notes)
    least = min(setting.budget_tokens for setting in SETTINGS)
    long, usual = Prompt(1000, " ".join("a" * (least + 1))), [Prompt(key, "a b c d") for key in range(20)]

    batches = list(
        engine.generate([*usual, long], GREEDY, max_input_tokens=2048, on_overflow="fail", should_stop=lambda: False)
    )

    assert [outcome.key for outcome in batches[0]] == [1000]
    assert sorted(outcome.key for batch in batches for outcome in batch) == [*range(20), 1000]
    assert engine.tuner is not None
    assert engine.tuner.trials == sum(map(len, notes.speeds.values())) == 2


def test_trial_that_was_stopped_or_had_a_row_that_failed_is_not_noted() -> None:
    notes, asked = Memory(), []

    def stop_in_the_second_trial() -> bool:
        asked.append(len(notes.speeds) == 1)
        return asked[-1]

    outcomes = run(make(notes), 40, should_stop=stop_in_the_second_trial)

    assert len(outcomes) == 8
    assert asked.count(True) == 1
    assert list(notes.speeds) == [WIDE]
    failing = Memory()
    assert len(run(make(failing), 10, words="a b c [[poison]]")) == 10
    assert failing.speeds == {}


def test_setting_that_cannot_be_adopted_ends_the_trials_and_not_the_job() -> None:
    notes = Memory()
    engine = make(notes, cannot=[2])

    assert len(run(engine, 60)) == 60

    assert set(notes.speeds) == {WIDE, NARROW}
    assert engine.tuner is None
    assert engine.lanes == 1


def test_what_is_known_is_used_without_a_trial() -> None:
    notes = Memory()
    notes.speeds = {setting: [speed] * ROUNDS for setting, speed in SPEEDS.items()}

    tuner = Tuner(SETTINGS, notes, max_rows=64)

    assert tuner.chosen == tuner.best_known == BOTH
    assert tuner.find_trial([4] * 100) is None
    assert Tuner(SETTINGS, Memory(), max_rows=64).best_known == WIDE


def test_trials_go_on_over_the_pages_of_a_stream_and_the_last_ones_are_the_chosen_setting_s() -> None:
    notes = Memory()
    engine = make(notes)
    read = engine.read(
        [Prompt(key, "a b c d") for key in range(200)], max_input_tokens=2048, on_overflow="fail", should_stop=lambda: False
    )
    rows = [row for row in read if isinstance(row, Row)]
    pages: list[list[Row] | None] = [rows[20:45], [], rows[45:120], rows[120:], None]

    batches = list(engine.complete(rows[:20], GREEDY, lambda: False, lambda: pages.pop(0)))

    assert sorted(outcome.key for batch in batches for outcome in batch) == list(range(200))
    assert [] in batches
    assert pages == []
    assert engine.tuner is None
    assert (engine.lanes, engine.budget_tokens) == BOTH
    assert {len(speeds) for speeds in notes.speeds.values()} == {ROUNDS}

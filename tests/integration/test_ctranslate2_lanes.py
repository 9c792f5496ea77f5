"""CTranslate2 in several lanes, and tuned: the same outcomes, a stop that ends all, and a choice that the host keeps."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gistmill.errors import DeviceOutOfMemory, GenerationFailed
from gistmill.specs import GenerationParameters
from models_store.store import Store
from tests.integration.test_engine_conformance import GREEDY, complete, prompts_of
from tests.support.models import dialogues, make_tiny_t5
from tests.support.servers import wait_until
from workers.engine import ctranslate2 as engines
from workers.engine.base import Completion, Failure, Prompt, Row
from workers.engine.ctranslate2 import CTranslate2Engine, load
from workers.engine.tuning import Setting

TEXTS = dialogues(60, most_words=30)
SHORT = GREEDY.model_copy(update={"max_new_tokens": 8})
LONG = GenerationParameters(max_new_tokens=512)


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("flan") / "model")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def in_lanes(flan: Path, store: Store, lanes: int, *, budget_tokens: int = 200) -> CTranslate2Engine:
    return load(flan, store, threads=2, lanes=lanes, budget_tokens=budget_tokens)


def start(engine: CTranslate2Engine, prompts: list[Prompt], parameters: GenerationParameters, stop: Callable[[], bool]) -> Any:
    return engine.generate(prompts, parameters, max_input_tokens=2048, on_overflow="fail", should_stop=stop)


def lanes_alive() -> int:
    return sum(thread.name.startswith("lane") for thread in threading.enumerate())


def test_two_lanes_give_the_outcomes_of_one(flan: Path, store: Store) -> None:
    engine = in_lanes(flan, store, 2)
    assert (engine.lanes, engine._translator.num_translators) == (2, 2)

    outcomes = complete(engine, prompts_of(TEXTS))

    assert outcomes == complete(in_lanes(flan, store, 1), prompts_of(TEXTS))
    assert len({outcome.text for outcome in outcomes.values() if isinstance(outcome, Completion)}) > len(TEXTS) // 2


def test_more_lanes_than_threads_are_not_made(flan: Path, store: Store) -> None:
    assert load(flan, store, threads=2, lanes=8, budget_tokens=200).lanes == 2


def wait_until_idle(engine: CTranslate2Engine) -> None:
    """Wait for the translator, which counts a batch as active until a little after it has given its results."""
    translator = engine._translator
    wait_until(lambda: translator.num_active_batches == translator.num_queued_batches == 0, what="idle lanes")


class Meeting(CTranslate2Engine):
    """Goes on from the first step of a batch when the other lane is at its own; no row ends before its limit."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._ends = [len(self._names) - 1]
        self.met = threading.Barrier(1)

    def _forward(self, rows: Sequence[Row], parameters: GenerationParameters, should_stop: Callable[[], bool]) -> Any:
        steps = count()

        def meet_and_ask() -> bool:
            if next(steps) == 0:
                self.met.wait()
            return should_stop()

        return super()._forward(rows, parameters, meet_and_ask)


def test_stop_ends_both_lanes_within_a_step(flan: Path, store: Store) -> None:
    in_lanes(flan, store, 2)
    (files,) = (store.root / "converted").iterdir()
    engine = Meeting(flan, files, threads=2, lanes=2, budget_tokens=2_000)
    met_at: list[float] = []
    engine.met = threading.Barrier(2, action=lambda: met_at.append(time.monotonic()), timeout=10)

    # Each lane has one batch.
    outcomes = list(start(engine, prompts_of(["the cat " * 120] * 16), LONG, lambda: bool(met_at)))

    assert outcomes == []
    assert time.monotonic() - met_at[0] < 10
    wait_until_idle(engine)
    assert lanes_alive() == 0
    engine.met = threading.Barrier(1)
    assert len(complete(engine, prompts_of(TEXTS[:4]), SHORT)) == 4, "it can be used again"


def test_closing_early_ends_the_batch_that_runs(flan: Path, store: Store) -> None:
    engine = in_lanes(flan, store, 2)

    with closing(start(engine, prompts_of(TEXTS), LONG, lambda: False)) as batches:
        assert next(batches)

    wait_until_idle(engine)
    assert lanes_alive() == 0


def test_translator_is_never_held_by_a_thread_of_its_own(flan: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = in_lanes(flan, store, 2)
    translate, kept = engine._translator.translate_batch, []

    class Kept:
        """Translates, and keeps what the engine is called back by, as CTranslate2's thread does for a while."""

        def translate_batch(self, *arguments: Any, callback: Any, **named: Any) -> Any:
            kept.append(callback)
            return translate(*arguments, callback=callback, **named)

    class Asking:
        """Asks whether to stop for somebody who holds the engine."""

        held = engine

        def __call__(self) -> bool:
            return False

    asking = Asking()
    alive = weakref.ref(asking)
    monkeypatch.setattr(engine, "_translator", Kept())
    assert list(start(engine, prompts_of(TEXTS[:8]), SHORT, asking))
    assert kept
    del asking
    gc.collect()
    assert alive() is None


class Failing(CTranslate2Engine):
    """Fails on batches with a row of these keys: with lack of memory unless the row is alone, or for good."""

    heavy: frozenset[int] = frozenset()
    bad: frozenset[int] = frozenset()

    def _translate(self, rows: Sequence[Row], *arguments: Any) -> list[tuple[Row, list[int]]]:
        keys = {row.prompt.key for row in rows}
        if keys & self.heavy and len(rows) > 1:
            raise RuntimeError("aligned_alloc: failed to allocate memory")
        if keys & self.bad:
            raise RuntimeError("shapes do not match")
        return super()._translate(rows, *arguments)


def test_batch_that_fails_leaves_the_other_lane_right(flan: Path, store: Store) -> None:
    wanted = complete(in_lanes(flan, store, 1), prompts_of(TEXTS), SHORT)
    (files,) = (store.root / "converted").iterdir()
    engine = Failing(flan, files, threads=2, lanes=2, budget_tokens=200)
    engine.heavy, engine.bad = frozenset({3, 20}), frozenset({7})

    outcomes = complete(engine, prompts_of(TEXTS), SHORT)

    failed = outcomes.pop(7)
    assert isinstance(failed, Failure)
    assert isinstance(failed.error, GenerationFailed)
    assert not isinstance(failed.error, DeviceOutOfMemory)
    assert outcomes == {key: outcome for key, outcome in wanted.items() if key != 7}


@pytest.mark.parametrize(
    ("threads", "million", "wanted"),
    [
        pytest.param(2, 77, {2: (4_096, 8_192), 1: (4_096, 8_192)}, id="flan-t5-small"),
        pytest.param(2, 250, {2: (1_280, 2_560), 1: (2_560, 5_120)}, id="flan-t5-base"),
        pytest.param(2, 2_850, {2: (512,), 1: (512,)}, id="flan-t5-xl"),
        pytest.param(16, 250, {2: (4_096, 8_192), 1: (4_096, 8_192), 4: (4_096, 8_192), 8: (2_048, 4_096)}, id="16-threads"),
    ],
)
def test_batches_that_are_tried_are_large_as_far_as_model_and_lanes_let_them(
    threads: int, million: int, wanted: dict[int, tuple[int, ...]]
) -> None:
    settings = engines._list_settings(threads, million * 10**6, lanes=0, budget_tokens=0)

    assert settings == [Setting(lanes, budget) for lanes, budgets in wanted.items() for budget in budgets]


def test_more_lanes_than_share_what_all_may_hold_get_the_least_batches() -> None:
    assert engines._list_settings(128, 77 * 10**6, lanes=128, budget_tokens=0) == [Setting(128, engines.LEAST_TOKENS)]


@pytest.fixture
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "MOST_TOKENS", 200)
    monkeypatch.setattr(engines, "MOST_TOKENS_AT_ONCE", 200)
    monkeypatch.setattr(engines, "LEAST_TOKENS", 50)


@pytest.mark.usefixtures("small_budgets")
def test_first_rows_tune_it_and_the_next_worker_of_the_host_begins_with_what_was_chosen(
    flan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, prompts = Store(tmp_path), prompts_of(dialogues(400, most_words=30))
    engine = load(flan, store, threads=2)
    assert (engine.lanes, engine.budget_tokens) == (2, 50)

    outcomes = complete(engine, prompts, SHORT)

    assert outcomes == complete(load(flan, store, threads=2, lanes=1, budget_tokens=600), prompts, SHORT)
    assert engine.tuner is None
    assert "engine_tuned" in capsys.readouterr().out
    (file,) = (tmp_path / "tuning").iterdir()
    assert file.name.startswith("ctranslate2-float32-2-")
    assert file.read_text().count("lanes") == 4
    again = load(flan, store, threads=2)
    assert again.tuner is None
    assert Setting(again.lanes, again.budget_tokens) == Setting(engine.lanes, engine.budget_tokens)

    file.unlink()
    assert load(flan, store, threads=2).tuner is not None, "forgotten, so it is tried anew"


@pytest.mark.usefixtures("small_budgets")
def test_what_is_set_is_not_tuned(flan: Path, store: Store) -> None:
    assert load(flan, store, threads=2, lanes=2, budget_tokens=77).tuner is None
    assert load(flan, store, threads=1, budget_tokens=77).tuner is None

    for lanes, budget_tokens, wanted in ((2, 0, {(2, 100), (2, 50)}), (0, 77, {(1, 77), (2, 77)})):
        engine = load(flan, store, threads=2, lanes=lanes, budget_tokens=budget_tokens)
        assert engine.tuner is not None
        assert (engine.lanes, engine.budget_tokens) in wanted
        assert set(engine.tuner.settings) == wanted


@pytest.mark.usefixtures("small_budgets")
def test_model_whose_files_are_gone_goes_on_as_it_is(flan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = prompts_of(TEXTS)
    engine = load(flan, Store(tmp_path), threads=2)
    for file in (tmp_path / "converted").glob("*/*"):
        file.unlink()

    outcomes = complete(engine, prompts, SHORT)

    assert len(outcomes) == len(prompts)
    assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
    assert (engine.tuner, engine.lanes) == (None, 2)
    assert "lanes_not_changed" in capsys.readouterr().out

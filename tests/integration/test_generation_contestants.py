"""The contestants of `make bench` do the same work: the same texts from the same rows, and as many tokens as they may write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.generation import models, work
from benchmarks.generation.booth import make
from benchmarks.generation.contestants import DIRECT, LOOP, SORTED, Answer, Contestant, Entry, list_ours
from benchmarks.generation.peers import CPU_BATCHES
from gistmill import prompts

MOST_TOKENS = 12
ROWS = 40


@pytest.fixture(scope="module")
def texts() -> list[str]:
    template = prompts.get(work.PROMPT)
    return [template.render(dialogue) for dialogue in work.make_dialogues(ROWS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    return models.make_model(tmp_path_factory.mktemp("bench") / "model", "tiny", texts)


def contestant(entry: Entry, model: Path, scratch: Path) -> Contestant:
    spec: dict[str, Any] = vars(entry) | {"model": str(model), "device": "cpu", "threads": 1, "most_tokens": MOST_TOKENS}
    return make(spec | {"scratch": str(scratch)})


@pytest.fixture
def by_loop(model: Path, tmp_path: Path, texts: list[str]) -> Answer:
    return contestant(LOOP, model, tmp_path).answer(texts, ROWS)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "entry",
    [SORTED, DIRECT, *(entry for entry in list_ours() if entry.precision == "float32")],
    ids=lambda entry: entry.name,
)
def test_all_write_the_same_texts_and_as_many_tokens_as_they_may(
    entry: Entry, model: Path, tmp_path: Path, texts: list[str], by_loop: Answer
) -> None:
    answer = contestant(entry, model, tmp_path).answer(texts, ROWS)
    assert answer.tokens_out == by_loop.tokens_out == ROWS * MOST_TOKENS
    assert answer.tokens_in == by_loop.tokens_in
    assert len(set(by_loop.texts.values())) > ROWS / 2
    # Random weights have near ties, which another order of additions decides.
    assert sum(answer.texts[row] == text for row, text in by_loop.texts.items()) >= 0.9 * ROWS
    assert answer.positions is None or answer.positions >= answer.tokens_in


def test_sample_of_the_sorted_batches_is_whole_batches(model: Path, tmp_path: Path, texts: list[str]) -> None:
    answer = contestant(SORTED, model, tmp_path).answer(texts, 1)
    assert answer.batches is not None
    assert [len(batch) for batch in answer.batches] == [CPU_BATCHES[0]]


def test_sample_of_the_loop_stands_for_all_lengths(model: Path, tmp_path: Path, texts: list[str], by_loop: Answer) -> None:
    sample = contestant(LOOP, model, tmp_path).answer(texts, 8)
    assert len(sample.texts) == 8
    assert sample.tokens_in / 8 == pytest.approx(by_loop.tokens_in / ROWS, rel=0.1)
    assert json.loads(json.dumps(sample.texts)) == {str(row): by_loop.texts[row] for row in sample.texts}

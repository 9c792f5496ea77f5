"""The engine graph beside transformers on more rows, and longer ones, than a quick test can take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gistmill.specs import GenerationParameters
from tests.integration.test_engine_conformance import GIST_TINY, GREEDY, complete, feed, prompts_of
from tests.integration.test_graph_engine import Recording, assert_same
from tests.integration.test_transformers_engine import RecordingEngine
from tests.support.models import dialogues, make_tiny_t5


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_prompts_of_one_token_and_of_512_write_up_to_512_tokens(tmp_path: Path) -> None:
    directory = make_tiny_t5(tmp_path / "flan")
    reference, engine = RecordingEngine(directory), Recording(directory, budget_tokens=16_000)
    texts = ["", "the cat " * 255 + "the", *dialogues(20)]
    parameters = GenerationParameters(max_new_tokens=512)

    expected, outcomes = (complete(one, prompts_of(texts), parameters) for one in (reference, engine))

    assert max(len(tokens) for tokens in engine.tokens.values()) == 512
    assert min(len(tokens) for tokens in engine.tokens.values()) < 100
    assert_same(engine, reference, outcomes, expected, texts)

    stream, prompts = Recording(directory, budget_tokens=16_000, lag=2, is_ahead=True), prompts_of(texts)
    pages = [prompts[2:9], prompts[:1], prompts[9:16], prompts[1:2], prompts[16:]]
    streamed = {outcome.key: outcome for batch in feed(stream, pages, parameters) for outcome in batch}
    assert_same(stream, reference, streamed, expected, texts)
    assert len(stream.views) < 1_100, "five pages one after the other take 512 steps each"


def test_five_hundred_dialogues_are_summarized_as_by_transformers() -> None:
    if not (GIST_TINY / "config.json").exists():
        pytest.skip("gist-tiny is not built")
    reference, engine = RecordingEngine(GIST_TINY, budget_tokens=4_000), Recording(GIST_TINY, budget_tokens=4_000)
    texts = dialogues(500, seed=6, most_words=120)

    expected, outcomes = (complete(one, prompts_of(texts), GREEDY) for one in (reference, engine))

    assert_same(engine, reference, outcomes, expected, texts)
    assert len({str(tokens) for tokens in engine.tokens.values()}) > 250

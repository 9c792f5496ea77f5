"""The model for tuning: small, fluent, ignorant of the task. scripts/check_gist_tiny_base.py shows what tuning adds."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from gistmill import prompts
from gistmill.specs import GenerationParameters
from models_store.builtin.dialogues import Example, generate
from scripts.check_gist_tiny import MODEL as GIST_TINY
from scripts.check_gist_tiny import SEED, measure
from scripts.check_gist_tiny_base import pieces_right
from scripts.train_gist_tiny_base import OUT, TOKENIZER_FILES, exercises
from workers.engine.base import Completion, Prompt
from workers.engine.loading import load_engine

MOST_BYTES = 4_000_000
FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors", *TOKENIZER_FILES}


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return list(generate(60, seed=SEED, split="held_out"))


def complete(texts: list[str]) -> list[str]:
    """Return what a worker on a CPU writes for each text."""
    engine = load_engine("transformers", OUT, device="cpu", precision="native")
    asked = [Prompt(key, text) for key, text in enumerate(texts)]
    parameters = GenerationParameters(max_new_tokens=64)
    outcomes = [
        outcome
        for batch in engine.generate(asked, parameters, max_input_tokens=2048, on_overflow="fail", should_stop=lambda: False)
        for outcome in batch
    ]
    engine.close()
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    return [outcome.text for outcome in sorted(outcomes, key=lambda outcome: outcome.key) if isinstance(outcome, Completion)]


@pytest.mark.parametrize("prompt", sorted(prompts.BUILT_IN))
def test_gist_tiny_base_cannot_summarize_before_tuning(examples: list[Example], prompt: str) -> None:
    template = prompts.get(prompt)

    written = complete([template.render(example.dialogue) for example in examples])

    assert measure(examples, written).rouge1 < 0.3


def test_gist_tiny_base_reads_the_kind_and_the_end_of_dialogues_it_has_not_seen(examples: list[Example]) -> None:
    written = complete([f"Tell topic, end: {example.dialogue}" for example in examples])

    facts = [f"{example.facts.scenario}, {example.facts.outcome}" for example in examples]
    assert sum(text == fact for text, fact in zip(written, facts, strict=True)) >= 0.8 * len(examples)


def test_gist_tiny_base_knows_the_language_of_dialogues_and_summaries(examples: list[Example]) -> None:
    shares = pieces_right(examples, OUT)

    # The texts leave much open: no model can guess every lost name.
    assert shares["restore_sentence"] >= 0.75
    assert shares["go_on"] >= 0.75
    assert shares["read_facts"] >= 0.75


def test_no_exercise_pairs_a_dialogue_with_its_summary() -> None:
    summaries = {example.summary for seed in range(3) for example in generate(500, seed=seed, split="train")}

    for seed in range(3):
        for exercise in exercises(500, seed=seed):
            is_sentence = exercise.source.startswith("Restore the sentence: ")
            assert is_sentence or exercise.target not in summaries
            assert not (is_sentence and ":" in exercise.source.removeprefix("Restore the sentence: "))
            assert "Summar" not in exercise.source


def test_gist_tiny_base_is_small_and_has_the_tokenizer_of_gist_tiny() -> None:
    assert {path.name for path in OUT.iterdir()} == FILES
    assert sum(path.stat().st_size for path in OUT.iterdir()) <= MOST_BYTES
    for name in TOKENIZER_FILES:
        assert (OUT / name).read_bytes() == (GIST_TINY / name).read_bytes()


def test_adapter_of_rank_16_has_less_than_a_tenth_of_the_parameters() -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(OUT, dtype=torch.float32)
    targets = [module for name, module in model.named_modules() if name.endswith((".q", ".v"))]

    adapter = sum(16 * (target.in_features + target.out_features) for target in targets)

    assert len(targets) == 18
    assert adapter / (adapter + model.num_parameters()) < 0.1

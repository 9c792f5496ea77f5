"""The built-in model on held-out dialogues, as a worker on a CPU runs it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from gistmill import prompts
from models_store.builtin.dialogues import Example, generate
from scripts.check_gist_tiny import MODEL, SEED, measure, summarize

END = 1


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return list(generate(100, seed=SEED, split="held_out"))


def test_gist_tiny_names_the_right_people_thing_and_outcome(examples: list[Example]) -> None:
    report = measure(examples, summarize(examples, MODEL))

    assert report.rouge1 >= 0.88
    assert report.names_and_thing >= 0.85
    assert report.outcome >= 0.85


@pytest.mark.parametrize("prompt", ["none", "instruction-dialogue"])
def test_gist_tiny_understands_every_built_in_prompt(examples: list[Example], prompt: str) -> None:
    report = measure(examples[:30], summarize(examples[:30], MODEL, prompt=prompt))

    assert report.rouge1 >= 0.85
    assert report.names_and_thing >= 0.75


def test_every_output_of_gist_tiny_ends_by_the_end_token(examples: list[Example]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForSeq2SeqLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    texts = [prompts.get("instruction").render(example.dialogue) for example in examples[:30]]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")

    outputs = model.generate(**{name: inputs[name] for name in ("input_ids", "attention_mask")}, max_new_tokens=64)

    assert all(END in row[1:] for row in outputs.tolist())


def test_tokenizer_of_gist_tiny_reads_line_breaks_and_tabs_as_spaces() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    assert tokenizer("Anna: Hi!\r\n\tBen: Hello.\n\n")["input_ids"] == tokenizer("Anna: Hi! Ben: Hello.")["input_ids"]
    assert tokenizer("")["input_ids"] == [END]

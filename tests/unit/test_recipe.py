"""The recipe: everything but the dialogue that decides a text."""

from __future__ import annotations

from typing import Any

import pytest

from gistmill.specs import SummarizeSpec, digest_of, recipe

PLAIN: dict[str, Any] = {"dataset": "d"}
SAMPLING: dict[str, Any] = {"do_sample": True}


def digest(spec: dict[str, Any] | None = None, *, model: str = "m", prompt: str = "p") -> str:
    return digest_of(recipe(SummarizeSpec.model_validate(PLAIN | (spec or {})), model_digest=model, prompt_digest=prompt))


def test_whatever_decides_a_text_changes_the_recipe() -> None:
    specs: list[dict[str, Any]] = [
        {},
        {"max_input_tokens": 100},
        {"precision": "bfloat16"},
        {"precision": "int8"},
        {"generation": {"max_new_tokens": 7}},
        {"generation": {"num_beams": 2}},
        {"generation": SAMPLING},
        {"generation": SAMPLING | {"temperature": 0.5}},
        {"generation": SAMPLING | {"top_p": 0.5}},
        {"generation": SAMPLING | {"top_k": 5}},
        {"generation": SAMPLING | {"seed": 5}},
    ]
    digests = [digest(spec) for spec in specs] + [digest(model="other"), digest(prompt="other")]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("spec", [{"dataset": "e"}, {"select": "[0:1]"}, {"priority": 5}, {"labels": {"a": "b"}}])
def test_what_does_not_decide_a_text_leaves_the_recipe(spec: dict[str, Any]) -> None:
    assert digest(spec) == digest()

"""Prompts as texts: what they render, what makes two equal, and what cannot be one."""

from __future__ import annotations

import pytest

from gistmill import prompts
from gistmill.errors import InvalidInput, InvalidName, UnknownPrompt
from gistmill.prompts import Example, PromptTemplate

# Recipes of stored summaries carry these digests: a change would have everything generated anew.
DIGESTS = {
    "none": "7af9e11284ef77b0d7da910df366ec1d44717f98d9da85cc09c97e2a667928c1",
    "instruction": "c7458aea62299187ad156921c2e27e178957c3848619884c1aa34dcda42b10b2",
    "instruction-dialogue": "1efe8957ce06be9fec0d2fb6be046b0c7a94d35089da4f04e8f882c9bd7c084b",
}


def test_digests_of_the_built_in_prompts_never_change() -> None:
    assert {name: prompt.digest for name, prompt in prompts.BUILT_IN.items()} == DIGESTS


def test_template_written_out_is_the_same_prompt_as_the_built_in_one() -> None:
    for built_in in prompts.BUILT_IN.values():
        assert prompts.digest_of(*prompts.split(built_in.template)) == built_in.digest


def test_examples_are_shown_in_the_form_of_the_notebook() -> None:
    shown = prompts.show([Example("Ann: hi\nBen: hi", "They greet."), Example("Cy: bye", "Cy leaves.")])
    assert PromptTemplate("shots", 1, *shown).render("Dan: where?") == (
        "Dialogue:\nAnn: hi\nBen: hi\nSummarize the dialogue.\nThey greet.\n\n"
        "Dialogue:\nCy: bye\nSummarize the dialogue.\nCy leaves.\n\n"
        "Dialogue:\nDan: where?\nSummarize the dialogue.\n"
    )


@pytest.mark.parametrize("text", ["{dialogue}", "a {dialogue} b {dialogue}", "{0} {x!r} %s {{}}", "Änne: 你好 🙂\u2028", "\\n"])
def test_dialogues_and_examples_are_never_read_as_templates(text: str) -> None:
    shown = prompts.show([Example(text, text)])
    rendered = PromptTemplate("shots", 1, *shown).render(text)
    assert rendered == (f"Dialogue:\n{text}\nSummarize the dialogue.\n{text}\n\nDialogue:\n{text}\nSummarize the dialogue.\n")


def test_prompts_that_only_look_alike_are_not_equal() -> None:
    first = PromptTemplate("first", 1, "a ", " b {dialogue} c")
    second = PromptTemplate("second", 1, "a {dialogue} b ", " c")
    assert first.template == second.template
    assert first.render("x") != second.render("x")
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("Summarize.", "no place"),
        ("{Dialogue}", "no place"),
        ("{dialogue} {dialogue}", "2 places"),
        ("x" * 100_001 + "{dialogue}", "100001 characters"),
        ("a\x00{dialogue}", "NUL"),
        ("{dialogue}ab\ud800", "surrogate pair at character 3"),
    ],
)
def test_template_that_cannot_be_used_says_why(template: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        prompts.split(template)


def test_too_many_examples_are_refused() -> None:
    with pytest.raises(InvalidInput, match="100000 are allowed"):
        prompts.show([Example("word " * 5_000, "short")] * 5)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a..b", "-x", ".x", "a b", "a@1", "é", "x" * 91, "a\n", "a\x00"])
def test_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidName):
        prompts.check_name(name)


def test_longest_name_with_a_version_fits_a_spec() -> None:
    assert len(f"{prompts.check_name('x' * 90)}@{10**9 - 1}") == 100


def test_built_in_prompts_have_one_version() -> None:
    assert prompts.get("instruction@1") is prompts.get("instruction")
    assert prompts.get("instruction").reference == "instruction"
    assert PromptTemplate("mine", 3, "a", "b").reference == "mine@3"
    with pytest.raises(UnknownPrompt):
        prompts.get("instruction@2")


def test_unknown_prompt_names_the_nearest_or_how_to_make_it() -> None:
    with pytest.raises(UnknownPrompt, match="Did you mean 'instruction'"):
        prompts.get("instructoin")
    with pytest.raises(UnknownPrompt, match="gistmill prompts add few-shot --kind few-shot --data FILE --select"):
        prompts.get("few-shot")
    with pytest.raises(UnknownPrompt, match="--kind one-shot"):
        prompts.get("one-shot@1")

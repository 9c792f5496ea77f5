"""The generator of dialogues, the sample made by it, and the files of the model trained on it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from models_store.builtin.dialogues import Example, Split, generate
from models_store.builtin.scenarios import NAMES, SCENARIOS
from scripts import make_sample

MODEL = Path(__file__).parents[2] / "models_store" / "builtin" / "gist-tiny"
MODEL_FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
MOST_BYTES = 4 * 1024 * 1024


def make(count: int, *, seed: int = 1, split: Split = "train") -> list[Example]:
    return list(generate(count, seed=seed, split=split))


def test_same_seed_makes_the_same_dialogues_and_another_seed_others() -> None:
    assert make(50) == make(50)
    assert make(20) == make(50)[:20]
    assert make(50) != make(50, seed=2)


def test_no_combination_of_facts_is_in_both_splits() -> None:
    train = {example.facts.combination for example in make(5_000)}
    held_out = {example.facts.combination for seed in range(3) for example in make(1_000, seed=seed, split="held_out")}

    assert not train & held_out
    assert len(held_out) > 2_000


def test_split_is_decided_by_the_facts_alone_so_that_no_seed_can_mix_them() -> None:
    for split in ("train", "held_out"):
        assert {example.facts.split for seed in range(5) for example in make(200, seed=seed, split=split)} == {split}


def test_about_a_tenth_of_the_combinations_is_held_out() -> None:
    names = [(first, second) for first in NAMES for second in NAMES if first != second]
    facts = make(1)[0].facts
    splits = [type(facts)(**(vars(facts) | {"first": first, "second": second})).split for first, second in names]

    assert 0.05 < splits.count("held_out") / len(splits) < 0.15


def test_there_are_a_dozen_scenarios_each_with_several_phrasings_things_and_outcomes() -> None:
    assert len(SCENARIOS) == 12
    assert len({scenario.name for scenario in SCENARIOS}) == 12
    for scenario in SCENARIOS:
        assert len(scenario.openings) >= 3
        assert len(scenario.things) >= 6
        assert len(scenario.outcomes) >= 2
        assert min(len(scenario.questions), len(scenario.answers), *(len(o.lines) for o in scenario.outcomes)) >= 2


def test_every_scenario_comes_up_in_many_wordings() -> None:
    wordings: dict[str, set[str]] = defaultdict(set)
    for example in make(1_200):
        facts = example.facts
        text = example.dialogue
        for fact in (facts.first, facts.second, facts.thing, facts.time, facts.place):
            text = text.replace(fact, "…")
        wordings[facts.scenario].add(text)

    assert set(wordings) == {scenario.name for scenario in SCENARIOS}
    assert min(len(texts) for texts in wordings.values()) > 50


def test_summary_is_one_sentence_whose_facts_the_dialogue_tells() -> None:
    for example in make(1_000):
        facts = example.facts
        assert example.summary.endswith(".")
        assert ". " not in example.summary
        assert facts.thing in example.summary
        assert facts.first in example.summary or facts.second in example.summary
        for fact in (facts.first, facts.second, facts.thing, facts.time, facts.place):
            assert fact not in example.summary or fact in example.dialogue


def test_every_line_of_a_dialogue_is_spoken_by_one_of_the_two_and_no_place_is_left_unfilled() -> None:
    for example in make(500):
        speakers = {line.partition(": ")[0] for line in example.dialogue.splitlines()}
        assert speakers == {example.facts.first, example.facts.second}
        assert "{" not in example.dialogue + example.summary


def test_articles_fit_the_things_that_follow_them() -> None:
    for example in make(3_000):
        text = f"{example.dialogue} {example.summary}".lower()
        assert not any(f" a {vowel}" in text for vowel in "aeio"), text


def test_sample_file_is_what_the_script_makes() -> None:
    assert make_sample.OUT.read_text(encoding="utf-8").splitlines() == make_sample.make_lines()


def test_sample_has_two_hundred_held_out_dialogues_of_which_twenty_are_repeated() -> None:
    rows = [json.loads(line) for line in make_sample.make_lines()]
    held_out = {example.dialogue for example in make(make_sample.DISTINCT, seed=make_sample.SEED, split="held_out")}

    assert len(rows) == len({row["id"] for row in rows}) == 200
    assert len({row["dialogue"] for row in rows}) == 180
    assert {row["dialogue"] for row in rows} == held_out


def test_model_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]

    assert {path.name for path in files} == MODEL_FILES
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES


def test_model_can_be_opened_by_the_classes_of_transformers_and_ends_its_outputs() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    generation = json.loads((MODEL / "generation_config.json").read_text())
    tokens = {token["content"]: token["id"] for token in json.loads((MODEL / "tokenizer.json").read_text())["added_tokens"]}

    assert config["architectures"] == ["T5ForConditionalGeneration"]
    for settings in (config, generation):
        assert settings["eos_token_id"] == tokens["</s>"] == 1
        assert settings["pad_token_id"] == settings["decoder_start_token_id"] == tokens["<pad>"] == 0

"""Our ROUGE is rouge_score's, to the last bit; and what a case with several references gets."""

from __future__ import annotations

import random
import sys

import pytest
import structlog
from rouge_score.rouge_scorer import RougeScorer

from gistmill.errors import MetricFailed
from workers.evaluation import rouge
from workers.evaluation.rouge import MEASURES, Score, score_pairs, score_pairs_slowly
from workers.evaluation.rules import combine

# Endings that the stemmer treats, a word without a vowel, digits inside words.
STEMS = """
    the a cat cats running ran ponies caresses sky dying news innings 3ies 4ing2 b2b skies proceed exceed generalizations
    hopping falling agreed plastered feed bled sing motoring conflated troubled sized happy rationalize
    yyyyy x 42 don't U.S. anna's
"""
WORDS = STEMS.split()
# What lower-casing turns into a-z or into several characters (the Kelvin sign, I with a dot), marks, other scripts, what looks
# like a digit, half a surrogate.
LETTERS = [
    "naïve",
    "café",
    "É",
    "\u212a",
    "\u0130",
    "ǅ",
    "ß",
    "ſt",
    "ﬁ",
    "ΑΣ",
    "日本語",
    "１２",
    "²",
    "Ⅻ",
    "e\u0301",
    "x\u200by",
]
LETTERS += ["\ud800", "👍🏽", "Привет"]
# What Python, Unicode or regular expressions may take for an end of line or a space, though rougeLsum knows only \n.
SPACES = ["\n", "\n\n", "\r", "\r\n", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\u3000", "\xa0", "\x00", "  "]
EDGES = [
    "",
    " ",
    "\n",
    "\n\n\n",
    "...",
    "?! -- ...\n,",
    "the the the the",
    "the\nthe\nthe\n",
    "\nthe cat\n\nsat\n",
    "the cat sat\non the mat",
    "on the mat\nthe cat sat",
    "THE CAT SAT ON THE MAT",
    "日本語",
    "y" * 3000,
    "a" * 3000 + "ing",
    "running " * 300,
    *LETTERS,
    *SPACES,
]


def generated(count: int, seed: int) -> list[tuple[str, str]]:
    """Return pairs of a text and a reference; in most one was made from the other by cutting, doubling and moving."""
    draw = random.Random(seed)

    def text() -> str:
        length = draw.choice([1, 2, 3, 8, 20, 40])
        words = [draw.choice(WORDS if draw.random() < 0.85 else LETTERS) for _ in range(length)]
        return "".join(word + (" " if draw.random() < 0.8 else draw.choice(SPACES)) for word in words)

    def changed(original: str) -> str:
        words = original.split(" ")
        for _ in range(draw.randint(0, 6)):
            place = draw.randrange(len(words))
            words[place : place + 1] = draw.choice([[], [words[place]] * 2, ["\n"], [draw.choice(WORDS)], words[-2:]])
            words = words or [draw.choice(WORDS)]
        return " ".join(words)

    references = [text() for _ in range(count)]
    return [(changed(reference) if draw.random() < 0.7 else text(), reference) for reference in references]


@pytest.mark.parametrize("stemming", [True, False])
def test_scores_are_those_of_rouge_score_to_the_last_bit(stemming: bool) -> None:
    pairs = [(text, reference) for text in EDGES for reference in EDGES if len(text) + len(reference) < 2000]
    pairs += generated(2000, seed=7)
    pairs += [(text, reference) for text in EDGES if len(text) >= 2000 for reference in EDGES[:8]]
    definition = RougeScorer(list(MEASURES), use_stemmer=stemming)

    found = score_pairs(*zip(*pairs, strict=True), stemming=stemming)

    assert len(found) == len(pairs) > 3000
    for (text, reference), scores in zip(pairs, found, strict=True):
        wanted = definition.score(reference, text)
        assert scores == {name: tuple(wanted[name]) for name in MEASURES}, (text[:200], reference[:200])
    assert sum(0 < scores["rougeLsum"].fmeasure != scores["rougeL"].fmeasure for scores in found) > 100


def test_stemming_is_done_only_when_asked_for() -> None:
    assert score_pairs(["cats running"], ["cat run"], stemming=True)[0]["rouge1"].fmeasure == 1.0
    assert score_pairs(["cats running"], ["cat run"], stemming=False)[0]["rouge1"].fmeasure == 0.0


def test_rouge_lsum_takes_lines_for_sentences_and_nothing_else() -> None:
    scores = score_pairs(["b c\na b", "b c. a b"], ["a b\nb c", "a b. b c"], stemming=False)
    assert [pair["rougeLsum"].fmeasure for pair in scores] == [1.0, 0.5]
    assert [pair["rougeL"].fmeasure for pair in scores] == [0.5, 0.5]


def test_pairs_without_partners_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="2 predictions cannot be paired with 1"):
        score_pairs(["a", "b"], ["a"], stemming=True)
    assert score_pairs([], [], stemming=True) == []


def test_pair_that_would_take_gigabytes_is_refused() -> None:
    long, short = "no,way " * 6_000, "yes"
    score_pairs([long, short], [short, long], stemming=False)

    with pytest.raises(MetricFailed, match="12,000 words with a reference of 12,000") as caught:
        score_pairs([short, long], [short, long], stemming=False)
    assert caught.value.fields["pair"] == 1


def test_host_without_the_fast_library_gets_the_same_figures_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("", "a"), ("the cat sat", "the cats sit"), ("a b\nb c", "b c\na b")]
    fast, named = score_pairs(*zip(*pairs, strict=True), stemming=True), rouge.implementation()
    monkeypatch.setitem(sys.modules, "rouge_score_rs", None)
    rouge._find_native.cache_clear()
    with structlog.testing.capture_logs() as logs:
        slow = [score_pairs(*zip(*pairs, strict=True), stemming=True) for _ in range(2)]
    try:
        assert slow == [fast, fast]
        for case in [*fast, *slow[0]]:
            assert list(case) == list(MEASURES)
            assert all(type(value) is float for score in case.values() for value in score)
            assert all(score._fields == Score._fields for score in case.values())
        assert [entry["event"] for entry in logs] == ["rouge_is_slow"]
        assert rouge.implementation() == "rouge_score 0.1.2"
        assert named.startswith("rouge_score 0.1.2 through rouge-score-rs 0.")
    finally:
        rouge._find_native.cache_clear()


def test_best_reference_is_chosen_by_measure_as_rouge_score_does() -> None:
    text, references = "the cat sat on the mat", ["the mat the cat", "a cat sat on", "on the mat sat the cat", ""]
    wanted = RougeScorer(list(MEASURES), use_stemmer=True).score_multi(references, text)
    scores = score_pairs_slowly([text] * 4, references, stemming=True)

    (best,) = combine(scores, "max")

    assert best == {name: tuple(wanted[name]) for name in MEASURES}
    assert best["rouge1"] == scores[2]["rouge1"]
    assert best["rougeL"] != scores[2]["rougeL"]


def test_rules_differ() -> None:
    pairs = [{"m": Score(0.5, 1.0, 0.6)}, {"m": Score(1.0, 0.5, 0.8)}]
    assert combine(pairs, "max") == [{"m": Score(1.0, 0.5, 0.8)}]
    assert combine(pairs, "mean") == [{"m": Score(0.75, 0.75, 0.7)}]
    assert combine(pairs, "each") == pairs
    assert combine([{"m": Score(0.5, 0.5, 0.3)}, {"m": Score(0.1, 0.9, 0.3)}], "max") == [{"m": Score(0.5, 0.5, 0.3)}]


def test_measures_without_precision_and_recall_have_none_under_every_rule() -> None:
    pairs = [{"m": Score(None, None, 2.0)}, {"m": Score(None, None, 4.0)}]
    assert combine(pairs, "mean") == [{"m": Score(None, None, 3.0)}]
    assert combine(pairs, "max") == [{"m": Score(None, None, 4.0)}]


@pytest.mark.parametrize("rule", ["max", "mean", "each"])
def test_case_without_references_is_a_mistake(rule: str) -> None:
    with pytest.raises(ValueError, match="without references"):
        combine([], rule)  # type: ignore[arg-type]

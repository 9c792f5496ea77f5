"""Check gist-tiny on held-out generated dialogues, in float32 as a worker on a CPU runs it.

Prints ROUGE-1, how often names, thing and outcome are exactly right, and the best fixed template; exits 1 when a bar is missed.

Usage: python scripts/check_gist_tiny.py [--count 500] [--model DIR]
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from gistmill import prompts
from models_store.builtin.dialogues import Example, generate
from models_store.builtin.scenarios import NAMES, PLACES, SCENARIOS, TIMES

MODEL = Path(__file__).parent.parent / "models_store" / "builtin" / "gist-tiny"
SEED = 2026
BATCH = 50
LEAST_ROUGE1 = 0.90
LEAST_EXACT = 0.90
MOST_TEMPLATE = 0.60


@dataclass(frozen=True)
class Report:
    """Shares between 0 and 1 over all examples."""

    rouge1: float
    names_and_thing: float
    outcome: float
    identical: float


def main() -> int:
    """Print the figures; return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--model", type=Path, default=MODEL)
    arguments = parser.parse_args()
    examples = list(generate(arguments.count, seed=SEED, split="held_out"))
    report = measure(examples, summarize(examples, arguments.model))
    template, template_rouge1 = best_template(examples)
    print(f"held-out dialogues       {len(examples)}")
    print(f"ROUGE-1 F                {report.rouge1:.4f}   (at least {LEAST_ROUGE1})")
    print(f"names and thing exact    {report.names_and_thing:.4f}   (at least {LEAST_EXACT})")
    print(f"outcome right            {report.outcome:.4f}   (at least {LEAST_EXACT})")
    print(f"summary identical        {report.identical:.4f}")
    print(f"best fixed template      {template_rouge1:.4f}   (under {MOST_TEMPLATE}): {template}")
    is_good = report.rouge1 >= LEAST_ROUGE1 and min(report.names_and_thing, report.outcome) >= LEAST_EXACT
    return 0 if is_good and template_rouge1 < MOST_TEMPLATE else 1


def summarize(examples: Sequence[Example], directory: Path, *, prompt: str = "instruction") -> list[str]:
    """Return the model's greedy summaries."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32).eval()
    texts = [prompts.get(prompt).render(example.dialogue) for example in examples]
    summaries: list[str] = []
    for start in range(0, len(texts), BATCH):
        inputs = tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=64, do_sample=False
            )
        summaries += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return summaries


def measure(examples: Sequence[Example], summaries: Sequence[str]) -> Report:
    """Compare summaries with what happened."""
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    pairs = list(zip(examples, summaries, strict=True))
    count = len(pairs)
    return Report(
        rouge1=sum(scorer.score(e.summary, s)["rouge1"].fmeasure for e, s in pairs) / count,
        names_and_thing=sum(has_names_and_thing(e, s) for e, s in pairs) / count,
        outcome=sum(has_outcome(e, s) for e, s in pairs) / count,
        identical=sum(e.summary == s for e, s in pairs) / count,
    )


def has_names_and_thing(example: Example, summary: str) -> bool:
    """True when the summary names the people and the thing of the reference, in its order, and no others."""
    return _named(example, summary) == _named(example, example.summary)


def _named(example: Example, summary: str) -> list[str]:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == example.facts.scenario)
    return re.findall(rf"\b(?:{'|'.join((*NAMES, *scenario.things))})\b", summary)


def has_outcome(example: Example, summary: str) -> bool:
    """True when the summary has the sentence of the right outcome, whatever names, thing, time and place it puts in."""
    return _sentence(summary) == _sentence(example.summary)


def _sentence(summary: str) -> str:
    things = [thing for scenario in SCENARIOS for thing in scenario.things]
    return re.sub(rf"\b(?:{'|'.join((*NAMES, *TIMES, *PLACES, *things))})\b", "…", summary)


def best_template(examples: Sequence[Example]) -> tuple[str, float]:
    """Return the sentence that does best for all dialogues when only the speakers' names are filled in."""
    scorer = RougeScorer(["rouge1"], use_stemmer=True)
    sentences = {
        outcome.summary.format(first="{first}", second="{second}", thing="thing", time="on Monday", place="the station")
        for scenario in SCENARIOS
        for outcome in scenario.outcomes
    }
    words = Counter(
        word for e in examples for word in e.summary.split() if word.rstrip(".,") not in (e.facts.first, e.facts.second)
    )
    sentences.add("{first} {second} " + " ".join(word for word, _ in words.most_common(8)))

    def rouge1(template: str) -> float:
        filled = ((e.summary, template.format(first=e.facts.first, second=e.facts.second)) for e in examples)
        return sum(float(scorer.score(summary, guess)["rouge1"].fmeasure) for summary, guess in filled) / len(examples)

    scores = {template: rouge1(template) for template in sentences}
    best = max(scores, key=scores.__getitem__)
    return best, scores[best]


if __name__ == "__main__":
    sys.exit(main())

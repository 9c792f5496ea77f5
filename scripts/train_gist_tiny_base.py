"""Train the built-in model gist-tiny-base from scratch and write it to models_store/builtin/gist-tiny-base.

It learns the language of the generated dialogues and of their summaries, but not the task: it restores gaps in dialogues, says
the next line, reads facts off a dialogue, and restores gaps in sentences taken from summaries. A dialogue and its summary are
never in the same example, and the prompts that ask for a summary never occur.

Usage: python -m scripts.train_gist_tiny_base [--steps 1200] [--out DIR]
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration

from models_store.builtin.dialogues import Example, generate
from scripts.train_gist_tiny import BIAS, make_model, save

BUILT_IN = Path(__file__).parent.parent / "models_store" / "builtin"
TOKENIZER = BUILT_IN / "gist-tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
OUT = BUILT_IN / "gist-tiny-base"
SEED = 11
# Another number of threads adds in another order and gives slightly other weights.
THREADS = 1
STEPS = 1_200
BATCH = 32
POOL = BATCH * 16
PEAK_RATE = 2e-3
WARMUP_STEPS = 100
GAP = "#"
# What is asked for, and the fact that answers it.
QUESTIONS = {
    "who asks": "first",
    "who answers": "second",
    "thing": "thing",
    "time": "time",
    "place": "place",
    "end": "outcome",
    "topic": "scenario",
}
ALWAYS_KNOWN = ("first", "second", "thing", "outcome", "scenario")


class Exercise(NamedTuple):
    """What the model reads, and what it shall write."""

    source: str
    target: str


def main() -> None:
    """Train the model on exercises and save it with gist-tiny's tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(THREADS)
    tokenizer: Any = AutoTokenizer.from_pretrained(TOKENIZER)
    model = make_model(len(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {THREADS} thread", flush=True)
    train(model, tokenizer, steps=arguments.steps)
    save(model, tokenizer, arguments.out)
    for name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / name, arguments.out / name)


def exercises(count: int, *, seed: int) -> Iterator[Exercise]:
    """Yield exercises made from training dialogues; the same seed yields the same ones."""
    source = random.Random(seed)
    makers, weights = zip(*MAKERS.items(), strict=True)
    for example in generate(count, seed=seed, split="train"):
        (maker,) = source.choices(makers, weights)
        yield maker(source, example)


def restore_dialogue(source: random.Random, example: Example) -> Exercise:
    """Ask for what stood in the gaps of a dialogue: one word in six is left out, in runs of up to three."""
    kept, lost = cut_gaps(source, example.dialogue.split(), share=0.16, longest=3)
    return Exercise(f"{kept}\n\n{GAP}: ", lost)


def restore_sentence(source: random.Random, example: Example) -> Exercise:
    """Ask for the whole of a sentence with gaps, without any dialogue."""
    kept, _ = cut_gaps(source, example.summary.split(), share=source.uniform(0.2, 0.8), longest=1)
    return Exercise(f"Restore the sentence: {kept}", example.summary)


def cut_gaps(source: random.Random, words: Sequence[str], *, share: float, longest: int) -> tuple[str, str]:
    """Return the words with about `share` of them in gaps, and what the gaps held, each after a gap mark of its own."""
    kept: list[str] = []
    lost: list[str] = []
    ahead = iter(words)
    while run := list(islice(ahead, source.randint(1, longest))):
        if source.random() >= share:
            kept += run
        elif kept[-1:] == [GAP]:
            lost += run
        else:
            kept.append(GAP)
            lost += [GAP, *run]
    return " ".join(kept), " ".join(lost)


def go_on(source: random.Random, example: Example) -> Exercise:
    """Ask for the next line of a dialogue that was cut somewhere."""
    lines = example.dialogue.splitlines()
    cut = source.randrange(1, len(lines))
    head = source.choice(("", "Continue the following conversation.\n\n", "Continue the following dialogue.\n"))
    tail = source.choice(("", "\n\nNext: "))
    return Exercise(head + "\n".join(lines[:cut]) + tail, lines[cut])


def read_facts(source: random.Random, example: Example) -> Exercise:
    """Ask for two to five facts of a dialogue, in any order, each as a word or two."""
    known = [question for question, fact in QUESTIONS.items() if is_known(example, fact)]
    asked = source.sample(known, source.randint(2, 5))
    answers = [getattr(example.facts, QUESTIONS[question]) for question in asked]
    return Exercise(f"Tell {', '.join(asked)}: {example.dialogue}", ", ".join(answers))


def is_known(example: Example, fact: str) -> bool:
    """True when the dialogue says it; not every dialogue has a time and a place."""
    return fact in ALWAYS_KNOWN or getattr(example.facts, fact) in example.dialogue


# How often each exercise is met.
MAKERS: dict[Callable[[random.Random, Example], Exercise], int] = {
    restore_dialogue: 2,
    restore_sentence: 2,
    go_on: 2,
    read_facts: 4,
}


def train(model: T5ForConditionalGeneration, tokenizer: Any, *, steps: int) -> None:
    """Run AdamW with a short warm-up and a linear decay; every batch is new text."""
    biases = [parameter for name, parameter in model.named_parameters() if BIAS in name]
    others = [parameter for name, parameter in model.named_parameters() if BIAS not in name]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": biases, "lr": 10 * PEAK_RATE, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP_STEPS, (steps - step) / max(1, steps - WARMUP_STEPS))
    )
    model.train()
    started_at = time.monotonic()
    losses: list[float] = []
    for step, batch in zip(range(steps), batches(tokenizer), strict=False):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps - 1:
            recent = losses[-50:]
            seconds = time.monotonic() - started_at
            print(f"step {step:5d}  mean loss {sum(recent) / len(recent):.4f}  {seconds:.0f} s", flush=True)


def batches(tokenizer: Any) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of similar length without end."""
    source = random.Random(SEED)
    for epoch in range(1_000_000):
        pool = sorted(exercises(POOL, seed=5_000 + epoch), key=lambda exercise: len(exercise.source))
        groups = [pool[start : start + BATCH] for start in range(0, len(pool), BATCH)]
        source.shuffle(groups)
        yield from (collate(tokenizer, group) for group in groups)


def collate(tokenizer: Any, group: Sequence[Exercise]) -> dict[str, torch.Tensor]:
    """Return the batch that the model reads, its labels -100 where padded."""
    inputs = tokenizer([exercise.source for exercise in group], padding=True, return_tensors="pt")
    labels = tokenizer([exercise.target for exercise in group], padding=True, return_tensors="pt")["input_ids"]
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "labels": labels.masked_fill(labels == 0, -100),
    }


if __name__ == "__main__":
    main()

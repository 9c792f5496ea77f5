"""The dialogues that every contestant summarizes: a file's, or generated ones as long as DialogSum's.

DialogSum's dialogues have 131 words on average (Chen et al., Findings of ACL 2021, table 1). The spread is not published: on
the 500 of its validation set the logarithm of the words has a standard deviation of 0.50, with 40 words at least and 472 at
most, so that a log-normal distribution of that mean and spread is drawn from, cut at both ends.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from models_store.builtin.dialogues import generate

MEAN_WORDS, LOG_SPREAD = 131.0, 0.5
LEAST_WORDS, MOST_WORDS = 40, 480
SEED = 7
PROMPT = "instruction"


def make_dialogues(count: int, *, seed: int = SEED) -> list[str]:
    """Return distinct dialogues, the same for the same seed: lines of the generator's, strung together to the drawn length."""
    draw = random.Random(seed)
    lines = _lines(seed)
    made: dict[str, None] = {}
    while len(made) < count:
        made[_compose(lines, _draw_words(draw))] = None
    return list(made)


def make_short_dialogues(count: int, *, seed: int = SEED) -> list[str]:
    """Return distinct dialogues as gist-tiny was trained on, which is what it ends by itself."""
    examples = generate(2 * count, seed=seed, split="held_out")
    return list(dict.fromkeys(example.dialogue for example in examples))[:count]


def read_dialogues(path: Path, count: int) -> list[str]:
    """Return the first distinct dialogues of a JSON Lines file with `dialogue`, at most `count`."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return list(dict.fromkeys(row["dialogue"] for row in rows))[:count]


def write_rows(path: Path, dialogues: Sequence[str], *, copies: int = 1) -> None:
    """Write a JSON Lines file with so many copies of each dialogue side by side, as in DialogSum's test set on the hub."""
    rows = [json.dumps({"dialogue": dialogue}) + "\n" for dialogue in dialogues for _ in range(copies)]
    path.write_text("".join(rows), encoding="utf-8")


def spread_evenly(lengths: Sequence[int], count: int) -> list[int]:
    """Return the indexes of at most `count` rows in their order, spread evenly over the lengths: their mean is that of all."""
    if count >= len(lengths):
        return list(range(len(lengths)))
    ranked = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return sorted(ranked[int((place + 0.5) * len(ranked) / count)] for place in range(count))


def _draw_words(draw: random.Random) -> int:
    words = draw.lognormvariate(math.log(MEAN_WORDS) - LOG_SPREAD**2 / 2, LOG_SPREAD)
    return round(min(max(words, LEAST_WORDS), MOST_WORDS))


def _compose(lines: Iterator[str], words: int) -> str:
    """Return lines with so many words in all; the last one is cut."""
    taken: list[str] = []
    while words > 0:
        line = next(lines).split(" ")[:words]
        words -= len(line)
        taken.append(" ".join(line))
    return "\n".join(taken)


def _lines(seed: int) -> Iterator[str]:
    for number in range(2**31):
        for example in generate(100, seed=seed + number, split="train"):
            yield from example.dialogue.split("\n")

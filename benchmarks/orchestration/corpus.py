"""Distinct dialogues of about a hundred characters, the same ones for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

NAMES = ("Ann", "Bob", "Cem", "Dia", "Eli", "Fay", "Gus", "Hua", "Ida", "Jon", "Kim", "Lea", "Max", "Noa", "Ola", "Pia")
THINGS = ("the invoice", "my parcel", "the router", "a refund", "the contract", "my flight", "the keys", "our table")
WISHES = ("arrived", "is late", "is broken", "was lost", "costs too much", "is ready", "is gone", "needs a check")
REPLIES = ("I look into it", "call me back", "that is fine", "we will see", "give me a day", "wait a moment")


def dialogues(items: int, *, seed: int = 0) -> Iterator[str]:
    """Yield dialogues that all differ: each names its number."""
    draw = random.Random(seed)
    choose = draw.choice
    for number in range(items):
        asks, answers = choose(NAMES), choose(NAMES)
        case = f"{seed}-{number:07d}"
        yield (
            f"#{asks}#: Hi, {choose(THINGS)} {choose(WISHES)}, case {case}.\n"
            f"#{answers}#: Thanks, {choose(REPLIES)}. Is {choose(THINGS)} fine?"
        )


def write_corpus(path: Path, items: int, *, seed: int = 0) -> float:
    """Write a JSON Lines file of so many rows; return the mean characters of a dialogue."""
    characters = 0
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(dialogues(items, seed=seed)):
            characters += len(text)
            file.write(json.dumps({"id": f"call-{number}", "dialogue": text}, ensure_ascii=False) + "\n")
    return characters / items

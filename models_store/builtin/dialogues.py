"""A seeded generator of everyday dialogues with their summaries: what gist-tiny learned from, and demos and tests read.

Every dialogue is made of facts (two people, a thing, an outcome, a time, a place), several ways to say each, and small talk
that a summary leaves out. The combinations of facts are split once by their hash, so that no held-out dialogue shares one with
a training dialogue.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from models_store.builtin.scenarios import NAMES, PLACES, SCENARIOS, SMALL_TALK, TIMES, Outcome, Scenario

Split = Literal["train", "held_out"]

# One combination of facts in ten is held out.
HELD_OUT_SHARE = 10


@dataclass(frozen=True)
class Facts:
    """What happened."""

    scenario: str
    first: str
    second: str
    thing: str
    outcome: str
    time: str
    place: str

    @property
    def combination(self) -> str:
        """The facts that must not be shared between the splits."""
        return "|".join((self.scenario, self.first, self.second, self.thing, self.outcome))

    @property
    def split(self) -> Split:
        """The side on which this combination lies, by its hash."""
        return "held_out" if hashlib.sha256(self.combination.encode()).digest()[0] % HELD_OUT_SHARE == 0 else "train"


@dataclass(frozen=True)
class Example:
    """A dialogue, its summary and the facts behind both."""

    dialogue: str
    summary: str
    facts: Facts


def generate(count: int, *, seed: int, split: Split) -> Iterator[Example]:
    """Yield `count` examples of one split; the same seed yields the same examples."""
    source = random.Random(f"{seed}/{split}")
    made = 0
    while made < count:
        scenario = source.choice(SCENARIOS)
        outcome = source.choice(scenario.outcomes)
        first, second = source.sample(NAMES, 2)
        facts = Facts(
            scenario.name,
            first,
            second,
            source.choice(scenario.things),
            outcome.name,
            source.choice(TIMES),
            source.choice(PLACES),
        )
        example = _write(source, scenario, outcome, facts)
        if facts.split == split:
            made += 1
            yield example


def _write(source: random.Random, scenario: Scenario, outcome: Outcome, facts: Facts) -> Example:
    fields = {
        "first": facts.first,
        "second": facts.second,
        "thing": facts.thing,
        "time": facts.time,
        "place": facts.place,
    }
    talk = source.sample(SMALL_TALK, source.choice((0, 1, 1, 2)))
    lines: list[tuple[int, str]] = [
        (
            0,
            source.choice(("Hi {second}!", "Hello {second}.", "Hey {second}, got a minute?", "Good morning, {second}.")),
        ),
        (1, source.choice(("Hi {first}, what's up?", "Hello {first}.", "Hey {first}! Sure.", "Yes, {first}?"))),
    ]
    lines += [line for pair in talk[:1] for line in enumerate(pair)]
    lines.append((0, source.choice(scenario.openings)))
    lines += [line for pair in talk[1:2] for line in ((1, pair[0]), (0, pair[1]))]
    lines += [(1, source.choice(scenario.questions)), (0, source.choice(scenario.answers))]
    lines.append((1, source.choice(outcome.lines)))
    lines.append((0, source.choice(("Great, thank you!", "Thanks a lot.", "All right, thanks.", "Okay. Thanks!"))))
    speakers = (facts.first, facts.second)
    dialogue = "\n".join(f"{speakers[who]}: {text.format(**fields)}" for who, text in lines)
    return Example(dialogue, outcome.summary.format(**fields), facts)

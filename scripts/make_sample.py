"""Write examples/sample-dialogues.jsonl: 200 held-out generated dialogues, 20 of them repeated ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

from models_store.builtin.dialogues import generate

OUT = Path(__file__).parent.parent / "examples" / "sample-dialogues.jsonl"
DISTINCT = 180
REPEATED = 20
SEED = 11


def make_lines() -> list[str]:
    """Return the lines of the sample."""
    examples = list(generate(DISTINCT, seed=SEED, split="held_out"))
    source = random.Random(SEED)
    chosen = examples + source.sample(examples, REPEATED)
    source.shuffle(chosen)
    rows = (
        {
            "id": f"call-{number:03d}",
            "dialogue": example.dialogue,
            "summary": example.summary,
            "scenario": example.facts.scenario,
        }
        for number, example in enumerate(chosen, start=1)
    )
    return [json.dumps(row, ensure_ascii=False) for row in rows]


if __name__ == "__main__":
    OUT.write_text("\n".join(make_lines()) + "\n", encoding="utf-8")

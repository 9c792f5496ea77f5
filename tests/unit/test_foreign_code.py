"""Nothing that a checkpoint brings along is ever run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PRODUCT = ("gistmill", "models_store", "workers", "api")
# The ways of transformers to read a checkpoint that would run its code when `trust_remote_code` is on.
READERS = ("AutoConfig", "AutoTokenizer", "AutoModelForSeq2SeqLM")


def reading_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in (path for package in PRODUCT for path in (REPOSITORY / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and is_reader(node.func):
                yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", node


def is_reader(called: ast.expr) -> bool:
    return isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id in READERS


def test_trust_remote_code_is_off_wherever_a_checkpoint_is_read() -> None:
    calls = list(reading_calls())
    assert len(calls) >= 5
    for place, call in calls:
        words = {word.arg: word.value for word in call.keywords}
        trust = words.get("trust_remote_code")
        assert isinstance(trust, ast.Constant), place
        assert trust.value is False, place

"""`python -m benchmarks.generation.booth SPEC`: a contestant in a process of its own that reads commands and prints answers.

A process each keeps the memory and the threads of one away from the others. A command and its answer are lines of JSON:
    {"do": "tune", "rows": [...]}                      -> {"setting": "batch 16"}
    {"do": "answer", "rows": [...], "most_rows": 24}   -> seconds and the fields of an Answer
The rows are numbers of lines of the spec's file of prompts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from transformers.utils import logging

from benchmarks.generation.contestants import Contestant
from benchmarks.generation.ours import OurEngine
from benchmarks.generation.peers import Direct, Loop, SortedBatches


def main(arguments: Sequence[str]) -> int:
    """Serve commands until standard input ends."""
    spec = json.loads(arguments[0])
    # Libraries print; only answers may reach the one who reads them.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(spec["threads"])
    prompts = json.loads(Path(spec["prompts"]).read_text(encoding="utf-8"))
    contestant = make(spec)
    _say(answers, {"setting": contestant.setting})
    for line in sys.stdin:
        _say(answers, _carry_out(json.loads(line), contestant, prompts))
    return 0


def make(spec: dict[str, Any]) -> Contestant:
    """Load the contestant of a spec."""
    directory, device, most_tokens = Path(spec["model"]), spec["device"], spec["most_tokens"]
    if spec["kind"] == "loop":
        return Loop(directory, device=device, most_tokens=most_tokens)
    if spec["kind"] == "sorted":
        return SortedBatches(directory, device=device, most_tokens=most_tokens)
    rest = {name: spec[name] for name in ("precision", "threads")} | {"scratch": Path(spec["scratch"])}
    if spec["kind"] == "ctranslate2":
        return Direct(directory, device=device, most_tokens=most_tokens, **rest)
    return OurEngine(directory, engine=spec["engine"], device=device, most_tokens=most_tokens, **rest)


def _carry_out(command: dict[str, Any], contestant: Contestant, prompts: Sequence[str]) -> dict[str, Any]:
    chosen = [prompts[row] for row in command["rows"]]
    if command["do"] == "tune":
        contestant.tune(chosen)
        return {"setting": contestant.setting}
    begun = time.perf_counter()
    answer = contestant.answer(chosen, command["most_rows"])
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "tokens_in": answer.tokens_in,
        "tokens_out": answer.tokens_out,
        "positions": answer.positions,
        "texts": {command["rows"][place]: text for place, text in answer.texts.items()},
    }


def _say(answers: IO[str], fields: dict[str, Any]) -> None:
    answers.write(json.dumps(fields) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

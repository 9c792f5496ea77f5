"""`python -m benchmarks.pretended`: how well the host keeps a device busy, on a machine without a GPU.

The engine graph runs on a pretended device: each step and each encoding takes it the time that was measured on an H200, one
after the other, times a slowness that a host with few cores can follow, and nothing is computed. What the host does is real: it
reads text, chooses who joins and who leaves, launches, waits, and makes texts. So no figure here is a speed; what counts is
which share of the time the device is busy, and how many steps it needs.

On a GPU an encoding runs beside the steps, launching takes the host longer, steps are recorded first, sources of other widths
take other times, and what waits for the device there without being meant to does not wait here. Every row writes all it may.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.generation.models import make_model
from benchmarks.generation.work import PROMPT, make_dialogues
from benchmarks.orchestration.machine import describe_run
from benchmarks.streams import as_stream, cut, never, read, time_run
from gistmill import prompts
from gistmill.specs import GenerationParameters
from workers.engine.base import Outcome, Prompt
from workers.engine.graph import stream
from workers.engine.graph.arena import Arena, Ending, Leaving, View
from workers.engine.graph.buckets import bucket_slots
from workers.engine.graph.engine import GraphEngine
from workers.engine.graph.engine import load as load_graph
from workers.engine.graph.lane import Result
from workers.engine.graph.step import Choice
from workers.engine.graph.weights import T5Weights

# FLAN-T5-base's shape in bfloat16 on an H200, benchmarks/results/cuda.json: seconds of a step by its rows, straight in between;
# 80 sources of 189 tokens were encoded in 5.58 ms.
STEPS = {0: 0.65e-3, 32: 0.724e-3, 256: 1.183e-3, 512: 1.811e-3, 1_024: 3.191e-3}
ENCODE_S_PER_TOKEN = 5.58e-3 / (80 * 189)
LAG = 3
TOKENS_OUT = 40
# Whatever is written stands for text: tokens of whole pieces.
FIRST_TOKEN, LAST_TOKEN = 300, 900


@dataclass
class Device:
    """Carries out what is launched, one after the other, `slowness` times slower than what was measured; seconds."""

    slowness: float = 1.0
    free_at: float = 0.0
    busy_s: float = 0.0
    steps: int = 0

    def launch(self, seconds: float) -> float:
        """Take on work; return when it will be done, by `time.perf_counter`."""
        seconds *= self.slowness
        self.busy_s += seconds
        self.free_at = max(time.perf_counter(), self.free_at) + seconds
        return self.free_at


def wait_until(moment: float) -> None:
    """Wait as for a device: other threads may run."""
    left = moment - time.perf_counter()
    if left > 0:
        time.sleep(left)


class PretendedLane:
    """Steps that only take their time. Every row writes as many tokens as it may."""

    lag = LAG

    def __init__(self, device: Device, arena: Arena) -> None:
        self._device = device
        self._arena = arena
        self._unread: deque[tuple[float, Tensor]] = deque()
        arena.written.random_(FIRST_TOKEN, LAST_TOKEN)

    def fit(self, needed: View, size: View) -> View:
        """Return the bucket, as on a GPU."""
        return size._replace(slots=bucket_slots(needed.slots, size.slots))

    def step(self, view: View) -> None:
        """Launch a step."""
        arrives_at = self._device.launch(float(np.interp(view.slots, list(STEPS), list(STEPS.values()))))
        self._device.steps += 1
        steps, is_done = self._arena.steps[: view.slots], self._arena.is_done[: view.slots]
        is_done |= steps + 1 >= self._arena.limit
        steps += ~is_done
        if len(self._unread) <= LAG:
            self._unread.append((arrives_at, self._arena.is_done.clone()))

    def read_done(self) -> list[bool] | None:
        """Return which slots were done `LAG` steps ago, when the device is so far."""
        if len(self._unread) <= LAG:
            return None
        arrives_at, is_done = self._unread.popleft()
        wait_until(arrives_at)
        done: list[bool] = is_done.tolist()
        return done

    def forget(self) -> None:
        """Drop what was to be read."""
        self._unread.clear()


class PretendedSide:
    """Work beside the steps; here it stands in the same line."""

    def begin(self) -> None: ...

    def run(self, compute: Callable[[], Result]) -> tuple[Result, None]:
        """Launch it."""
        return compute(), None

    def join(self, mark: Any, tensors: tuple[Tensor, ...]) -> None: ...

    def end(self) -> None: ...


class PretendedLeaving(Leaving):
    """Endings that arrive when the device is so far."""

    def __init__(self, leaving: Leaving, arrives_at: float) -> None:
        self._leaving = leaving
        self._arrives_at = arrives_at

    def read(self) -> list[Ending]:
        """Wait for the device, and return them."""
        wait_until(self._arrives_at)
        return self._leaving.read()


@contextmanager
def pretended(engine: GraphEngine, device: Device, *, slots: int) -> Iterator[None]:
    """Let the engine work on this device with so many slots. It was made for a CPU, of a model of any size."""
    desk, leave = engine._desk, Arena.leave

    def make_lane(weights: T5Weights, arena: Arena, choice: Choice) -> PretendedLane:
        return PretendedLane(device, arena)

    def encode(weights: T5Weights, tokens: Tensor, lengths: Tensor) -> Tensor:
        device.launch(ENCODE_S_PER_TOKEN * tokens.numel())
        return torch.empty(tokens.shape[0], 1, 1)

    def keep_source(*_: Any) -> None: ...

    def leave_later(arena: Arena, slots: Sequence[int]) -> Leaving:
        return PretendedLeaving(leave(arena, slots), device.free_at)

    operations = type(desk.weights.operations)
    with (
        patch.multiple(desk, max_rows=slots, budget_tokens=slots * 1_152, side=PretendedSide(), _make_lane=make_lane),
        patch.object(engine, "page_rows", 8 * slots),
        patch.object(stream, "encode", encode),
        patch.object(operations, "keep_source", keep_source),
        patch.object(operations, "reads_beyond_lengths", False),
        patch.object(Arena, "leave", leave_later),
    ):
        yield


def measure(engine: GraphEngine, device: Device, texts: Sequence[str], *, rounds: int) -> dict[str, Any]:
    """Return how busy the device was: with rows that were read before, and with those that another thread reads meanwhile."""
    parameters = GenerationParameters(max_new_tokens=TOKENS_OUT)
    items = [Prompt(key, text) for key, text in enumerate(texts)]
    rows = read(engine, items)
    ways: dict[str, Callable[[], Iterator[list[Outcome]]]] = {
        "complete": lambda: engine.complete(rows, parameters, never),
        "together": lambda: as_stream(engine, cut(items, engine.page_rows), parameters),
    }
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            device.busy_s, device.steps = 0.0, 0
            found[name].append((time_run(run(), len(rows)), device.busy_s, device.steps))
    return {
        name: {
            "steps": each[0][2],
            "device_rows_per_s": round(len(rows) / each[0][1], 1),
            "rows_per_s": round(len(rows) / median(seconds for seconds, _, _ in each), 1),
            "busy_percent": [round(100 * busy_s / seconds, 1) for seconds, busy_s, _ in each],
        }
        for name, each in found.items()
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretended", description=__doc__)
    parser.add_argument("--rows", type=int, default=8_192)
    parser.add_argument("--slots", type=int, default=512, help="the engine on a GPU has 1,024")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slowness", type=float, default=4.0, help="times slower than an H200, for a host with few cores")
    options = parser.parse_args()
    some = make_dialogues(min(options.rows, 2_048))
    texts = [prompts.get(PROMPT).render(f"{some[row % len(some)]}\n#Person1#: {row}.") for row in range(options.rows)]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="gm-pretended-") as name:
        engine = load_graph(make_model(Path(name) / "model", "tiny", texts[:2_000]), device="cpu", precision="native")
        device = Device(options.slowness)
        with pretended(engine, device, slots=options.slots):
            found = measure(engine, device, texts, rounds=options.rounds)
    asked = {"rows": options.rows, "slots": options.slots, "slowness": options.slowness}
    sys.stdout.write(json.dumps(describe_run() | asked | found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make bench-gpu`: the engine graph on a CUDA device beside transformers, on the same dialogues in the same run.

FLAN-T5-base's shape with random weights, bfloat16, dialogues as long as DialogSum's, 40 tokens out, warm. Tokenization is in
every figure: of ours it runs a page ahead on another thread, and the engine gets pages as one stream, as in a worker. The part
`pages` sets that beside one page after the other, as it was before.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.generation.models import SHAPES, make_model
from benchmarks.generation.peers import GPU_BATCHES, SortedBatches
from benchmarks.generation.report import write_json
from benchmarks.generation.system import Form, Stack
from benchmarks.generation.work import PROMPT, make_dialogues
from benchmarks.orchestration.machine import describe_run
from benchmarks.orchestration.processes import REPOSITORY
from benchmarks.streams import as_stream, cut, measure_ways, never, read
from gistmill import prompts
from gistmill.specs import GenerationParameters
from workers.engine.base import Completion, Prompt, Row
from workers.engine.graph.arena import Arena, View
from workers.engine.graph.encoder import encode, pad_sources
from workers.engine.graph.engine import GraphEngine
from workers.engine.graph.engine import load as load_graph
from workers.engine.graph.step import choose_best

RESULTS = REPOSITORY / "benchmarks" / "results" / "cuda.json"
PARTS = ("engine", "pages", "steps", "system", "transformers")
TOKENS_OUT = 40
PARAMETERS = GenerationParameters(max_new_tokens=TOKENS_OUT)


def main() -> int:
    """Measure and print; only a run of all parts is written down unless an output is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="base")
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--system-rows", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only shows that the paths work")
    parser.add_argument(
        "--model", type=Path, help="another model than the shape's with random weights, for the part pages alone"
    )
    parser.add_argument("--page-rows", type=int, nargs="+", help="sizes of pages for the part pages; by default the engine's")
    parser.add_argument("--profile", action="store_true", help="print what a step, an encoding and a run spend their time on")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    options = parser.parse_args()
    is_full = set(options.parts) == set(PARTS) and options.device == "cuda" and options.shape == "base"
    found = describe_run() | {"rows": options.rows}
    found["versions"]["torch"] = torch.__version__
    texts = [prompts.get(PROMPT).render(dialogue) for dialogue in make_dialogues(options.rows)]
    with tempfile.TemporaryDirectory(prefix="gm-cuda-") as name:
        directory = options.model or make_model(Path(name) / "model", options.shape, texts[:2_000])
        if {"engine", "pages", "steps"} & set(options.parts):
            found |= measure_bare(directory, texts, options)
        if "system" in options.parts:
            found["system"] = measure_system(directory, Path(name) / "stack", options)
        if "transformers" in options.parts:
            found["transformers"] = measure_transformers(directory, texts[:2_048], options.device)
    if options.device == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    if options.output or is_full:
        write_json(options.output or RESULTS, found)
    return 0


def measure_bare(directory: Path, texts: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Return what is measured of the engine without queue and SQL, and print profiles when asked."""
    engine = load_graph(directory, device=options.device, precision="bfloat16" if options.device == "cuda" else "native")
    found: dict[str, Any] = {}
    if "engine" in options.parts:
        found["engine"] = measure_engine(engine, texts, options.rounds)
    if "pages" in options.parts:
        sizes = options.page_rows or [engine.page_rows]
        found["pages"] = measure_ways(engine, texts, PARAMETERS, rounds=options.rounds, sizes=sizes)
    if "steps" in options.parts:
        found["steps"] = measure_steps(engine, texts, options.profile)
    if options.profile:
        rows = read(engine, [Prompt(key, text) for key, text in enumerate(texts[:4_096])])
        print_profile("completion", lambda: consume(engine.complete(rows, PARAMETERS, never), len(rows)))
    engine.close()
    return found


def measure_engine(engine: GraphEngine, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return dialogues/s: reading alone, completion of what was read before, and both together."""
    items = [Prompt(key, text) for key, text in enumerate(texts)]
    begun = time.perf_counter()
    rows = read(engine, items)
    read_s = time.perf_counter() - begun
    first = rows[:1_024]
    cold_s = timed(lambda: consume(engine.complete(first, PARAMETERS, never), len(first)))
    complete_s = [timed(lambda: consume(engine.complete(rows, PARAMETERS, never), len(rows))) for _ in range(rounds)]
    pages = cut(items, engine.page_rows)
    together_s = [timed(lambda: consume(as_stream(engine, pages, PARAMETERS), len(rows))) for _ in range(rounds)]
    return {
        "mean_tokens_in": sum(len(row.tokens) for row in rows) / len(rows),
        "cold_s_for_1024": round(cold_s, 3),
        "read_per_s": round(len(rows) / read_s),
        "complete_per_s": round(len(rows) / median(complete_s)),
        "together_per_s": round(len(rows) / median(together_s)),
        "together_all": [round(len(rows) / seconds) for seconds in together_s],
    }


def measure_system(model: Path, directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return dialogues/s from the start of `gistmill summarize` to the last row in SQL, with one worker that is warm."""
    # Distinct ones take long to make: the same come again, told apart by a line of their own.
    some = make_dialogues(4_096)
    dialogues = [f"{some[number % len(some)]}\n#Person1#: {number}." for number in range(options.system_rows)]
    stack = Stack(directory, model, workers=1, most_tokens=TOKENS_OUT, device=options.device)
    form = Form("system")
    try:
        cold = stack.summarize(range(len(some)), some, form)
        rounds = [stack.summarize(range(len(dialogues)), dialogues, form) for _ in range(options.rounds)]
    finally:
        stack.stop()
    return {
        "rows": len(dialogues),
        "cold_s": round(cold.seconds, 3),
        "per_s": round(median(each.rows_per_s for each in rounds)),
        "all_per_s": [round(each.rows_per_s) for each in rounds],
    }


def consume(outcomes: Iterator[list[Any]], wanted: int) -> None:
    done = [outcome for some in outcomes for outcome in some if isinstance(outcome, Completion)]
    if len(done) != wanted or any(outcome.tokens_out != TOKENS_OUT for outcome in done):
        raise RuntimeError(f"{len(done)} of {wanted} rows were completed as they should")


def measure_steps(engine: GraphEngine, texts: Sequence[str], is_profiled: bool) -> dict[str, Any]:
    """Return milliseconds of one encoding and of recorded steps by slots, half of the tokens written before."""
    desk = engine._desk
    rows = sorted(read(engine, [Prompt(key, text) for key, text in enumerate(texts[:2_048])]), key=lambda row: len(row.tokens))
    middle = rows[len(rows) // 2 - 512 : len(rows) // 2 + 512]
    found: dict[str, Any] = {"tokens_in": sum(len(row.tokens) for row in middle) / len(middle)}
    with torch.inference_mode():
        tokens, lengths = pad_sources([row.tokens for row in middle[:80]], device=desk.device)

        def encode_80() -> None:
            encode(desk.weights, tokens, lengths)

        found["encode_80_ms"] = device_ms(encode_80)
        arena = desk.open(max(len(row.tokens) for row in middle), TOKENS_OUT)
        lane = desk.lane(arena, choose_best)
        # No row ends: every step finds all of them where they were put.
        arena.limit.fill_(10**6)
        for slots in (32, 256, 512, 1_024):
            _fill(arena, desk, middle[:slots])
            view = lane.fit(View(slots, arena.size.source, TOKENS_OUT), arena.size)

            def step(view: View = view) -> None:
                arena.steps.fill_(TOKENS_OUT // 2)
                lane.step(view)

            found[f"step_{slots}_ms"] = device_ms(step)
        if is_profiled:
            print_profile("step of 1024", step)
            print_profile("encoding of 80", encode_80)
    return found


def _fill(arena: Arena, desk: Any, rows: Sequence[Row]) -> None:
    arena.is_done.fill_(True)
    for start in range(0, len(rows), 64):
        group = rows[start : start + 64]
        tokens, lengths = pad_sources([row.tokens for row in group], device=desk.device)
        slots = torch.arange(start, start + len(group), device=desk.device)
        arena.admit(slots, lengths, None, clear=False)
        desk.weights.operations.keep_source(arena, slots, encode(desk.weights, tokens, lengths), lengths)


def device_ms(call: Callable[[], Any]) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return round(median(times), 3)


def print_profile(title: str, call: Callable[[], Any]) -> None:
    """Print the time by kernel, and how much of it the device was busy."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        seconds = timed(call)
    spans = sorted((event.time_range.start, event.time_range.end) for event in profiler.events() if event.device_time)
    busy_us, last = 0.0, 0.0
    for start, end in spans:
        busy_us += max(0.0, end - max(start, last))
        last = max(last, end)
    table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=16, max_name_column_width=60)
    sys.stdout.write(f"{title}: {seconds:.3f} s, the device busy for {busy_us / 1e6:.3f} s\n{table}\n")


def measure_transformers(directory: Path, texts: Sequence[str], device: str) -> dict[str, Any]:
    """Return dialogues/s of transformers by the size of its length-sorted batches."""
    peer = SortedBatches(directory, device=device, most_tokens=TOKENS_OUT)
    peer.answer(texts[:256], 256)
    found = {}
    for size in sorted(GPU_BATCHES):
        peer.size = size
        seconds = timed(lambda: peer.answer(texts, len(texts)))
        found[f"batch_{size}_per_s"] = round(len(texts) / seconds)
    return found


def timed(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


if __name__ == "__main__":
    sys.exit(main())

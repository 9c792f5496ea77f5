"""`make bench-gpu`: the engine graph on a CUDA device beside transformers, on the same dialogues in the same run.

FLAN-T5-base's shape with random weights, bfloat16, dialogues as long as DialogSum's, 40 tokens out, warm. Tokenization is in
every figure: of ours it runs a page ahead on another thread, as in a worker.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.generation.models import make_model
from benchmarks.generation.system import Form, Stack
from benchmarks.generation.work import PROMPT, make_dialogues
from gistmill import prompts
from gistmill.specs import GenerationParameters
from workers.engine.base import PAGE_ROWS, Completion, Engine, Prompt, Row
from workers.engine.graph.arena import Arena, View
from workers.engine.graph.encoder import encode, pad_sources
from workers.engine.graph.engine import GraphEngine
from workers.engine.graph.engine import load as load_graph

TOKENS_OUT = 40
PARAMETERS = GenerationParameters(max_new_tokens=TOKENS_OUT)
BATCHES = (128, 256, 512)


def main() -> int:
    """Measure and print; the JSON goes where it is told to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("--shape", choices=("tiny", "small", "base"), default="base")
    parser.add_argument("--rows", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["steps", "engine", "transformers"])
    parser.add_argument("--profile", action="store_true", help="print what a step and an encoding spend their time on")
    parser.add_argument("--system-rows", type=int, default=65_536)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"device": _name_device(), "torch": torch.__version__, "rows": options.rows}
    texts = [prompts.get(PROMPT).render(dialogue) for dialogue in make_dialogues(options.rows)]
    with tempfile.TemporaryDirectory(prefix="gm-cuda-") as name:
        directory = make_model(Path(name) / "model", options.shape, texts[:2_000])
        say("model made")
        if "steps" in options.parts or "engine" in options.parts:
            engine = load_graph(directory, device="cuda", precision="bfloat16")
            found["engine"] = measure_engine(engine, texts, options.rounds)
            say(json.dumps(found["engine"]))
            if "steps" in options.parts:
                found["parts"] = measure_parts(engine, texts, options.profile)
                say(json.dumps(found["parts"]))
            if options.profile:
                profile_engine(engine, texts)
            engine.close()
        if "system" in options.parts:
            found["system"] = measure_system(directory, Path(name) / "stack", options)
            say(json.dumps(found["system"]))
        if "transformers" in options.parts:
            found["transformers"] = measure_transformers(directory, texts[:2_048])
            say(json.dumps(found["transformers"]))
    if torch.cuda.is_available():
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def measure_engine(engine: GraphEngine, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """Return dialogues/s: all parts together, reading alone, and completion of what was read before."""
    items = [Prompt(key, text) for key, text in enumerate(texts)]
    begun = time.perf_counter()
    rows = read(engine, items)
    read_s = time.perf_counter() - begun
    cold_s = timed(lambda: consume(engine.complete(rows[:1_024], PARAMETERS, never), 1_024))
    complete_s = [timed(lambda: consume(engine.complete(rows, PARAMETERS, never), len(rows))) for _ in range(rounds)]
    together_s = [timed(lambda: consume(run_ahead(engine, items), len(rows))) for _ in range(rounds)]
    return {
        "mean_tokens_in": sum(len(row.tokens) for row in rows) / len(rows),
        "cold_s_for_1024": round(cold_s, 3),
        "read_per_s": round(len(rows) / read_s),
        "complete_per_s": round(len(rows) / median(complete_s)),
        "together_per_s": round(len(rows) / median(together_s)),
        "together_all": [round(len(rows) / seconds) for seconds in together_s],
    }


def _name_device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


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


def profile_engine(engine: GraphEngine, texts: Sequence[str]) -> None:
    from torch.profiler import ProfilerActivity, profile

    rows = read(engine, [Prompt(key, text) for key, text in enumerate(texts[:4_096])])
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        seconds = timed(lambda: consume(engine.complete(rows, PARAMETERS, never), len(rows)))
    events = [event for event in profiler.events() if str(event.device_type).endswith("CUDA")]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    busy, last = 0.0, 0.0
    gaps: list[tuple[float, float]] = []
    for start, end in spans:
        if last and start > last:
            gaps.append((start - last, start - spans[0][0]))
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    say(f"profiled {seconds:.3f} s, device busy {busy / 1e6:.3f} s, largest gaps (us, at): {sorted(gaps)[-12:]}")
    sys.stdout.write(profiler.key_averages().table(sort_by="cuda_time_total", row_limit=14, max_name_column_width=44) + "\n")


def run_ahead(engine: GraphEngine, items: Sequence[Prompt]) -> Iterator[list[Any]]:
    """Read the next page while this one is completed; the first one is small, as in a worker."""
    starts = [0, *range(PAGE_ROWS, len(items), engine.page_rows)]
    pages = [items[start:end] for start, end in pairwise([*starts, len(items)])]
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, engine, pages[0])
        for page in [*pages[1:], None]:
            rows = coming.result()
            if page is not None:
                coming = reader.submit(read, engine, page)
            yield from engine.complete(rows, PARAMETERS, never)


def read(engine: Engine, items: Sequence[Prompt]) -> list[Row]:
    found = engine.read(items, max_input_tokens=2_048, on_overflow="fail", should_stop=never)
    return [item for item in found if isinstance(item, Row)]


def consume(outcomes: Iterator[list[Any]], wanted: int) -> None:
    done = [outcome for some in outcomes for outcome in some if isinstance(outcome, Completion)]
    if len(done) != wanted or any(outcome.tokens_out != TOKENS_OUT for outcome in done):
        raise RuntimeError(f"{len(done)} of {wanted} rows were completed as they should")


def measure_parts(engine: GraphEngine, texts: Sequence[str], profile: bool) -> dict[str, Any]:
    """Return milliseconds of one encoding and of recorded steps by slots, and print a profile when asked."""
    desk = engine._desk
    rows = sorted(read(engine, [Prompt(key, text) for key, text in enumerate(texts[:2_048])]), key=lambda row: len(row.tokens))
    middle = rows[len(rows) // 2 - 512 : len(rows) // 2 + 512]
    found: dict[str, Any] = {"tokens_in": sum(len(row.tokens) for row in middle) / 1_024}
    with torch.inference_mode():
        tokens, lengths = pad_sources([row.tokens for row in middle[:80]], device="cuda")
        found["encode_80_ms"] = device_ms(lambda: encode(desk.weights, tokens, lengths))
        arena = desk.open(max(len(row.tokens) for row in middle), TOKENS_OUT)
        lane = desk.lane(arena, _choice())
        arena.limit.fill_(TOKENS_OUT)
        for slots in (32, 256, 512, 1_024):
            _fill(arena, desk, middle[:slots])
            view = lane.fit(View(slots, 256, TOKENS_OUT), arena.size)
            arena.steps[:] = 20
            lane._graphs[view] = lane._graphs.get(view) or lane._record(view)  # type: ignore[attr-defined]
            graph = lane._graphs[view]  # type: ignore[attr-defined]
            arena.limit.fill_(10**6)

            def step(graph: Any = graph, arena: Arena = arena) -> None:
                arena.steps.fill_(20)
                graph.replay()

            found[f"step_{slots}_ms"] = device_ms(step)
        if profile:
            print_profile("step of 1024", step)
            print_profile("encoding of 80", lambda: encode(desk.weights, tokens, lengths))
    desk.clear()
    return found


def _choice() -> Any:
    from workers.engine.graph.step import choose_best

    return choose_best


def _fill(arena: Arena, desk: Any, rows: Sequence[Row]) -> None:
    arena.is_done.fill_(True)
    for start in range(0, len(rows), 64):
        group = rows[start : start + 64]
        tokens, lengths = pad_sources([row.tokens for row in group], device="cuda")
        slots = torch.arange(start, start + len(group), device="cuda")
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
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    sys.stdout.write(
        title + "\n" + profiler.key_averages().table(sort_by="cuda_time_total", row_limit=16, max_name_column_width=60) + "\n"
    )


def measure_transformers(directory: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Return dialogues/s of transformers by the size of its length-sorted batches."""
    from benchmarks.generation.peers import SortedBatches

    peer = SortedBatches(directory, device="cuda", most_tokens=TOKENS_OUT)
    peer._size = BATCHES[0]
    peer.answer(texts[:256], 256)
    found = {}
    for size in BATCHES:
        peer._size = size
        seconds = timed(lambda: peer.answer(texts, len(texts)))
        found[f"batch_{size}_per_s"] = round(len(texts) / seconds)
    return found


def timed(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def never() -> bool:
    return False


def say(what: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

"""The engine graph on a CUDA device: the tokens of transformers, and what kernels compute beside torch's operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gistmill.specs import GenerationParameters
from tests.support.adapters import make_adapter
from tests.support.models import dialogues, make_odd_t5, make_t5, make_tiny_t5
from workers.engine.base import Completion, Engine, Outcome, Prompt
from workers.engine.graph.arena import Arena, View
from workers.engine.graph.encoder import encode, pad_sources
from workers.engine.graph.engine import GraphEngine, load
from workers.engine.graph.operations import TorchOperations
from workers.engine.graph.step import choose_best, decode_step
from workers.engine.loading import load_engine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

GREEDY = GenerationParameters(max_new_tokens=24)
SAMPLED = GREEDY.model_copy(update={"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": 3})
TEXTS = [*dialogues(160, most_words=90), ".", " ", "\n\n", "日本語の会話", "the cat " * 250]
BUDGET = 4_000


def make_wide(directory: Path) -> Path:
    """The widths of FLAN-T5-small, in few layers."""
    return make_t5(directory, seed=7, d_model=512, d_kv=64, d_ff=1024, num_layers=2, num_heads=6)


def make_relu(directory: Path) -> Path:
    """The feed-forward part of T5 v1.0."""
    size = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    return make_t5(directory, seed=7, feed_forward_proj="relu", **size)


MODELS: dict[str, Callable[[Path], Path]] = {"flan": make_tiny_t5, "odd": make_odd_t5, "wide": make_wide, "relu": make_relu}


@pytest.fixture(scope="module", params=sorted(MODELS))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp("model") / request.param)


def complete(engine: Engine, parameters: GenerationParameters) -> dict[int, Outcome]:
    found: dict[int, Outcome] = {}
    prompts = [Prompt(key, text, noise=(f"{key:064x}", 0)) for key, text in enumerate(TEXTS)]
    for outcomes in engine.generate(prompts, parameters, max_input_tokens=4096, on_overflow="fail", should_stop=lambda: False):
        found |= {outcome.key: outcome for outcome in outcomes}
    return found


@pytest.mark.parametrize("parameters", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("budget", [BUDGET, 0], ids=["few-slots", "many-slots"])
def test_it_writes_what_transformers_writes(directory: Path, parameters: GenerationParameters, budget: int) -> None:
    engine = load(directory, device="cuda", precision="float32", budget_tokens=budget)
    reference = load_engine("transformers", directory, device="cuda", precision="float32")

    expected = complete(reference, parameters)
    for _ in range(2):
        outcomes = complete(engine, parameters)
        assert outcomes.keys() == expected.keys()
        assert sum(outcomes[key] != expected[key] for key in expected) <= len(TEXTS) // 50


def test_two_adapters_that_take_turns_each_write_their_own(tmp_path: Path) -> None:
    base = make_tiny_t5(tmp_path / "base")
    engine = load(base, device="cuda", precision="float32")
    assert isinstance(engine, GraphEngine)
    for number in (1, 2):
        engine.add_adapter(f"{number}" * 64, make_adapter(base, tmp_path / f"adapter-{number}", seed=number))
    first, second = engine.adapted("1" * 64), engine.adapted("2" * 64)

    alone = [complete(one, GREEDY) for one in (engine, first, second)]
    again = [complete(one, GREEDY) for one in (second, first, engine)][::-1]

    assert alone == again
    assert alone[0] != alone[1] != alone[2]


def test_bfloat16_ends_every_row(directory: Path) -> None:
    engine = load(directory, device="cuda", precision="bfloat16")

    assert all(isinstance(outcome, Completion) for outcome in complete(engine, GREEDY).values())
    assert engine.dtype == "bfloat16"


def test_kernels_compute_what_torch_computes(directory: Path) -> None:
    engine = load(directory, device="cuda", precision="float32")
    assert isinstance(engine, GraphEngine)
    ours = engine._desk.weights
    theirs = replace(ours, operations=TorchOperations())
    torch.manual_seed(11)
    sources = [torch.randint(4, 200, (length,)).tolist() for length in (1, 7, 64, 65, 130, 200, 3, 128)]
    tokens, lengths = pad_sources(sources, device="cuda")
    arenas = []
    with torch.inference_mode():
        for weights in (ours, theirs):
            arena = Arena(weights.shape, View(12, 256, 40), start=0, ends=[1], dtype=torch.float32, device="cuda")
            # What was there before must not count.
            arena.self_kv.fill_(torch.nan if weights is ours else 0.0)
            arena.cross_kv.fill_(torch.nan if weights is ours else 0.0)
            slots = torch.tensor([11, 0, 3, 5, 4, 7, 1, 2], device="cuda")
            arena.limit.fill_(40)
            arena.admit(slots, lengths, None, clear=weights is theirs)
            weights.operations.keep_source(arena, slots, encode(weights, tokens, lengths), lengths)
            for _ in range(33):
                decode_step(weights, arena, View(12, 256, 40), choose_best)
            arenas.append(arena)

    mine, other = arenas
    assert torch.equal(mine.written, other.written)
    assert torch.equal(mine.is_done, other.is_done)
    for slot, source in zip(slots.tolist(), sources, strict=True):
        a, b = (arena.cross_kv[:, :, slot, :, : len(source)] for arena in arenas)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

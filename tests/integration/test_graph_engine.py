"""The engine graph: the tokens of transformers on every kind of T5, whoever shares the slots, and what a failure costs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from transformers import AutoTokenizer

from gistmill.errors import DeviceOutOfMemory, GenerationFailed, ModelUnreadable, UnsupportedModel
from gistmill.specs import GenerationParameters, Precision
from models_store.store import Store
from tests.integration.test_ctranslate2_engine import MODELS as CONVERTED
from tests.integration.test_ctranslate2_engine import Clock, set_config
from tests.integration.test_engine_conformance import BEAMS, GIST_TINY, GREEDY, SAMPLED, Countdown, complete, prompts_of
from tests.integration.test_transformers_engine import RecordingEngine, copy_of
from tests.support.adapters import make_adapter
from tests.support.models import PAD, dialogues, make_odd_t5, make_tiny_bart, make_tiny_t5
from tests.support.ties import first_difference, is_near_tie
from workers.engine.base import Completion, Failure, Outcome, Row
from workers.engine.checkpoint import load_model
from workers.engine.graph.arena import Arena, Ending, View
from workers.engine.graph.buckets import bucket_slots
from workers.engine.graph.engine import GraphEngine, load
from workers.engine.graph.lane import EagerLane
from workers.engine.graph.step import Choice
from workers.engine.graph.weights import T5Weights
from workers.engine.loading import EngineName, load_engine, load_greedy_engine
from workers.residence import Residence

TEXTS = [*dialogues(46, most_words=40), ".", " ", "\n\n", "日本語の会話"]
BUDGET = 1_200


MODELS = CONVERTED | {"odd": make_odd_t5}


class Lane(EagerLane):
    """Notes the views of all steps; reads what is done `lag` steps late; fails as told."""

    owner: Recording

    def step(self, view: View) -> None:
        self.owner.views.append(view)
        error = self.owner.strike(view) if self.owner.strike else None
        if error is not None:
            raise error
        super().step(view)


class EagerSide:
    """Computes at once, so there is nothing to wait for."""

    def begin(self) -> None: ...

    def run(self, compute: Callable[[], Any]) -> tuple[Any, Any]:
        return compute(), None

    def join(self, mark: Any, tensors: tuple[torch.Tensor, ...]) -> None: ...

    def end(self) -> None: ...


class Recording(GraphEngine):
    """Keeps the tokens of each row and its lanes' views."""

    def __init__(self, directory: Path, *, budget_tokens: int = BUDGET, lag: int = 0, is_ahead: bool = False) -> None:
        super().__init__(
            load_model(directory, device="cpu", precision="float32"), budget_tokens=budget_tokens, directory=directory
        )
        if is_ahead:
            self._desk.side = EagerSide()
        self.tokens: dict[int, list[int]] = {}
        self.views: list[View] = []
        self.strike: Callable[[View], Exception | None] | None = None
        self._lag = lag
        self._desk._make_lane = self._lane  # type: ignore[assignment]

    def _lane(self, weights: T5Weights, arena: Arena, choice: Choice) -> Lane:
        lane = Lane(weights, arena, choice, lag=self._lag)
        lane.owner = self
        return lane

    def _finish(self, ended: Sequence[tuple[Row, Ending]]) -> list[Outcome]:
        self.tokens |= {row.prompt.key: ending.tokens for row, ending in ended}
        return super()._finish(ended)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=sorted(MODELS))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp("model") / request.param)


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("flan"))


def assert_same(
    engine: Recording,
    reference: RecordingEngine,
    outcomes: dict[int, Outcome],
    expected: dict[int, Outcome],
    texts: Sequence[str],
) -> None:
    """Every row is the reference's token for token, save for near-ties in at most a hundredth of the rows."""
    differing = [key for key in expected if engine.tokens[key] != reference.tokens[key]]
    for key in differing:
        step = first_difference(engine.tokens[key], reference.tokens[key])
        source = reference._tokenizer.encode([texts[key]], None)[0]
        assert is_near_tie(reference._model, source, [PAD, *reference.tokens[key][:step]])
    assert len(differing) <= len(texts) // 100
    assert {key: outcomes[key] for key in outcomes if key not in differing} == {
        key: expected[key] for key in expected if key not in differing
    }


@pytest.mark.parametrize(("lag", "is_ahead"), [(0, False), (2, False), (2, True)])
def test_tokens_equal_those_of_transformers_with_more_rows_than_slots(directory: Path, lag: int, is_ahead: bool) -> None:
    reference, engine = RecordingEngine(directory), Recording(directory, lag=lag, is_ahead=is_ahead)

    expected = complete(reference, prompts_of(TEXTS))
    outcomes = complete(engine, prompts_of(TEXTS))

    assert_same(engine, reference, outcomes, expected, TEXTS)
    assert 4 <= max(view.slots for view in engine.views) < len(TEXTS) // 2
    if directory != GIST_TINY:
        assert sum(len(set(tokens)) for tokens in engine.tokens.values()) >= 10 * len(TEXTS)
        assert sum(o.finish_reason == "stop" for o in outcomes.values() if isinstance(o, Completion)) >= len(TEXTS) // 5


@pytest.mark.parametrize("change", [{}, {"top_k": 0, "top_p": 1.0}], ids=["cut", "whole"])
def test_sampled_texts_equal_those_of_transformers(directory: Path, change: dict[str, Any]) -> None:
    parameters = SAMPLED.model_copy(update=change)
    prompts = prompts_of(TEXTS[:24])

    outcomes = complete(Recording(directory), prompts, parameters)

    assert outcomes == complete(RecordingEngine(directory), prompts, parameters)
    assert outcomes != complete(Recording(directory), prompts, parameters.model_copy(update={"seed": 8}))


def test_rows_join_while_others_are_in_flight_and_all_is_shorter_than_batch_after_batch(flan: Path) -> None:
    engine = Recording(flan)

    complete(engine, prompts_of(TEXTS), GREEDY.model_copy(update={"max_new_tokens": 120}))

    slots = max(view.slots for view in engine.views)
    by_batches = 0
    longest_first = sorted(engine.tokens, key=lambda key: -len(TEXTS[key]))
    for start in range(0, len(TEXTS), slots):
        by_batches += max(len(engine.tokens[key]) for key in longest_first[start : start + slots])
    assert len(engine.views) < by_batches
    assert engine.views[-1].slots < slots, "the last rows move together"


def test_prompts_of_one_token_and_of_512_in_one_batch_and_limits_of_1_and_64(flan: Path) -> None:
    reference, engine = RecordingEngine(flan), Recording(flan, budget_tokens=10_000)
    texts = ["", "the cat " * 255 + "the", "Anna"]

    for limit in (1, 64):
        parameters = GenerationParameters(max_new_tokens=limit)
        assert complete(engine, prompts_of(texts), parameters) == complete(reference, prompts_of(texts), parameters)
    assert max(view.slots for view in engine.views) == len(texts)


def test_long_rows_end_before_much_shorter_ones_take_their_slots(flan: Path) -> None:
    reference, engine = RecordingEngine(flan), Recording(flan)
    texts = ["the cat " * 500, *TEXTS[:20]]

    assert complete(engine, prompts_of(texts)) == complete(reference, prompts_of(texts))

    sources = [view.source for view in engine.views]
    assert max(sources) >= 1000
    assert max(view.slots for view in engine.views if view.source < 1000) > max(
        view.slots for view in engine.views if view.source >= 1000
    )


@pytest.mark.parametrize("lag", [0, 1])
def test_stop_in_mid_flight_ends_within_a_step_and_the_next_call_finds_free_slots(flan: Path, lag: int) -> None:
    engine = Recording(flan, lag=lag)
    wanted = complete(engine, prompts_of(TEXTS[:12]))
    steps = len(engine.views)

    stop = Countdown(7)
    outcomes = complete(engine, prompts_of(TEXTS[:12]), should_stop=stop)

    assert stop.asked == 7
    assert len(engine.views) - steps == 5, "one question while reading, then one before each step"
    assert outcomes.items() <= wanted.items()
    assert complete(engine, prompts_of(TEXTS[:12])) == wanted


@pytest.mark.parametrize("is_ahead", [False, True])
def test_two_calls_at_once_take_turns_and_write_what_they_write_alone(flan: Path, is_ahead: bool) -> None:
    engine = Recording(flan, is_ahead=is_ahead)
    halves = [prompts_of(TEXTS[:20]), prompts_of(TEXTS[20:40])]
    wanted = [complete(engine, half) for half in halves]

    running = [
        engine.generate(half, GREEDY, max_input_tokens=2048, on_overflow="fail", should_stop=lambda: False) for half in halves
    ]
    seen: list[dict[int, Outcome]] = [{}, {}]
    turns = 0
    live = {0, 1}
    while live:
        for number in sorted(live):
            batch = next(running[number], None)
            if batch is None:
                live.discard(number)
                continue
            turns += 1
            seen[number] |= {outcome.key: outcome for outcome in batch}

    assert seen == wanted
    assert turns >= 6


FIRST, SECOND = "1" * 64, "2" * 64
# Every linear layer that an adapter may change.
ALL = ["q", "k", "v", "o", "wi_0", "wi_1", "wo", "lm_head"]


def with_adapters(engine: Any, flan: Path, home: Path) -> Any:
    engine._directory = flan
    engine.add_adapter(FIRST, make_adapter(flan, home / "first", seed=1))
    changes = {"target_modules": ALL, "r": 2, "lora_alpha": 3, "use_rslora": True}
    engine.add_adapter(SECOND, make_adapter(flan, home / "second", seed=2, strength=0.2, **changes))
    return engine


@pytest.mark.parametrize("parameters", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_each_adapter_writes_what_transformers_writes_with_it_and_the_base_stays_the_base(
    flan: Path, tmp_path: Path, parameters: GenerationParameters
) -> None:
    engine, prompts = with_adapters(Recording(flan), flan, tmp_path), prompts_of(TEXTS[:16])
    reference = with_adapters(RecordingEngine(flan), flan, tmp_path)
    addresses = {module: part.data_ptr() for module, part in engine._desk.weights.parts.items()}
    plain = complete(engine, prompts, parameters)

    for digest in (FIRST, SECOND, FIRST):
        adapted = complete(engine.adapted(digest), prompts, parameters)
        assert adapted == complete(reference.adapted(digest), prompts, parameters) != plain
        assert complete(engine, prompts, parameters) == plain

    assert {module: part.data_ptr() for module, part in engine._desk.weights.parts.items()} == addresses
    before = engine.weight_bytes
    complete(engine.adapted(SECOND), prompts[:1], parameters)
    engine.remove_adapter(SECOND)
    engine.remove_adapter(FIRST)
    assert complete(engine, prompts, parameters) == plain
    assert engine.weight_bytes == load(flan, device="cpu", precision="float32").weight_bytes < before


@pytest.mark.parametrize("is_ahead", [False, True])
def test_adapters_alternate_in_the_middle_of_their_rows_and_none_reads_the_weights_of_another(
    flan: Path, tmp_path: Path, is_ahead: bool
) -> None:
    engine, prompts = with_adapters(Recording(flan, is_ahead=is_ahead), flan, tmp_path), prompts_of(TEXTS[:24])
    sources = {"base": engine, FIRST: engine.adapted(FIRST), SECOND: engine.adapted(SECOND)}
    wanted = {name: complete(source, prompts) for name, source in sources.items()}

    running = {
        name: source.generate(prompts, GREEDY, max_input_tokens=2048, on_overflow="fail", should_stop=lambda: False)
        for name, source in sources.items()
    }
    seen: dict[str, dict[int, Outcome]] = {name: {} for name in sources}
    turns = 0
    while running:
        for name in list(running):
            batch = next(running[name], None)
            if batch is None:
                del running[name]
                continue
            turns += 1
            seen[name] |= {outcome.key: outcome for outcome in batch}

    assert seen == wanted
    assert turns >= 9


def test_adapter_of_another_base_is_refused_and_leaves_the_engine_as_it_was(flan: Path, tmp_path: Path) -> None:
    engine = with_adapters(Recording(flan), flan, tmp_path)
    before = complete(engine.adapted(FIRST), prompts_of(TEXTS[:4])), engine.weight_bytes
    foreign = make_adapter(make_tiny_bart(tmp_path / "bart"), tmp_path / "foreign", target_modules=["q_proj"])

    with pytest.raises(ModelUnreadable, match="which the base has no weights of its own for"):
        engine.add_adapter("3" * 64, foreign)

    assert (complete(engine.adapted(FIRST), prompts_of(TEXTS[:4])), engine.weight_bytes) == before


def test_under_it_sampling_and_adapters_stay_with_it_and_beams_go_to_transformers(flan: Path, tmp_path: Path) -> None:
    adapter = make_adapter(flan, tmp_path / "adapter")
    residence = Residence(
        lambda digest, ticker: flan if digest[0] == "b" else adapter,
        lambda directory, precision: load_engine("graph", directory, device="cpu", precision=precision),
        load_greedy=lambda directory, precision, _adapter: choose(directory, tmp_path, "graph", precision),
        greedy_does_more=True,
        limit_bytes=2**30,
        device_bytes=2**30,
        load_stall_s=60,
    )

    def name(parameters: GenerationParameters, adapter: str | None = None) -> str:
        chosen = {"is_greedy": parameters.is_greedy, "is_sampled": parameters.do_sample}
        return residence.get("b" * 64, "native", Clock(), adapter=adapter, **chosen).name

    for own in (None, "a" * 64):
        assert name(GREEDY, own) == name(SAMPLED, own) == "graph"
        assert name(BEAMS, own) == "transformers"
    residence.clear()
    assert residence.resident() == ()


def poisoned(flan: Path, home: Path) -> Path:
    """A copy of the model in which reading 🙂 gives no number."""
    directory = copy_of(flan, home)
    token = AutoTokenizer.from_pretrained(directory)("🙂")["input_ids"][0]
    weights = load_file(directory / "model.safetensors")
    weights["shared.weight"][token] = torch.nan
    weights["lm_head.weight"][token] = 0  # The other rows must not write it.
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_scores_that_are_not_numbers_fail_only_their_row(flan: Path, tmp_path: Path) -> None:
    outcomes = complete(Recording(poisoned(flan, tmp_path)), prompts_of(["Anna", "Ben 🙂", "Carla"]))

    wanted = complete(RecordingEngine(flan), prompts_of(["Anna", "Ben 🙂", "Carla"]))
    assert (outcomes[0], outcomes[2]) == (wanted[0], wanted[2])
    failure = outcomes[1]
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, GenerationFailed)
    assert "not finite at step 0" in failure.error.message


def test_row_that_takes_the_slot_of_one_that_gave_no_numbers_is_not_hurt(flan: Path, tmp_path: Path) -> None:
    texts = ["Ben 🙂 " + "the cat " * 12] * 30 + TEXTS[:20]
    engine = Recording(poisoned(flan, tmp_path))

    outcomes = complete(engine, prompts_of(texts))

    wanted = complete(RecordingEngine(poisoned(flan, tmp_path / "again")), prompts_of(texts))
    assert all(isinstance(outcomes[key], Failure) for key in range(30))
    assert {key: outcomes[key] for key in range(30, 50)} == {key: wanted[key] for key in range(30, 50)}
    assert max(view.slots for view in engine.views) < 30


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


def test_lack_of_memory_in_a_step_halves_the_rows_in_flight_and_goes_on(flan: Path) -> None:
    engine = Recording(flan)
    wanted = complete(engine, prompts_of(TEXTS))
    engine.strike = lambda view: NO_MEMORY if view.slots > 3 else None
    engine.views.clear()

    assert complete(engine, prompts_of(TEXTS)) == wanted
    too_many = [view for view in engine.views if view.slots > 3]
    assert 1 <= len(too_many) <= 3, "what was learned is kept"


@pytest.mark.parametrize(
    ("error", "kind"), [(NO_MEMORY, DeviceOutOfMemory), (RuntimeError("shapes do not match"), GenerationFailed)]
)
def test_row_that_fails_alone_in_a_step_fails_and_the_others_do_not(
    flan: Path, error: Exception, kind: type[Exception]
) -> None:
    engine = Recording(flan)
    texts = ["the cat " * 80, *TEXTS[:8]]
    wanted = complete(engine, prompts_of(texts))
    engine.strike = lambda view: error if view.source > 100 else None

    outcomes = complete(engine, prompts_of(texts))

    failure = outcomes.pop(0)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, kind)
    assert outcomes == {key: wanted[key] for key in outcomes}
    assert len(outcomes) == 8


@pytest.mark.parametrize("place", ["encode", "arena"])
def test_lack_of_memory_when_rows_join_halves_them_and_a_row_alone_fails(
    flan: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.engine.graph import desk, stream

    texts = ["the cat " * 200, *TEXTS[:12]]
    wanted = complete(Recording(flan), prompts_of(texts))
    attempts: list[int] = []
    encode = stream.encode

    def encode_few(weights: T5Weights, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        attempts.append(tokens.numel())
        if tokens.numel() > 150:
            raise NO_MEMORY
        return encode(weights, tokens, lengths)

    def small_arena(shape: object, size: View, **options: Any) -> Arena:
        attempts.append(size.slots)
        if size.slots > 2 or size.source > 256:
            raise NO_MEMORY
        return Arena(shape, size, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(*((stream, "encode", encode_few) if place == "encode" else (desk, "Arena", small_arena)))
    outcomes = complete(Recording(flan), prompts_of(texts))

    failure = outcomes.pop(0)
    assert isinstance(failure, Failure)
    assert isinstance(failure.error, DeviceOutOfMemory)
    assert outcomes == {key: wanted[key] for key in outcomes}
    assert len(outcomes) == 12
    assert len(attempts) > 2


def test_rows_are_encoded_while_others_are_in_flight_within_a_quarter_of_the_budget(flan: Path) -> None:
    class Side(EagerSide):
        def run(self, compute: Callable[[], Any]) -> tuple[Any, Any]:
            encoded, mark = super().run(compute)
            costs.append(encoded.fused.shape[0] * encoded.fused.shape[1])
            return encoded, mark

    costs: list[int] = []
    engine = Recording(flan)
    engine._desk.side = Side()

    assert complete(engine, prompts_of(TEXTS)) == complete(Recording(flan), prompts_of(TEXTS))
    assert len(costs) > 3
    assert max(costs) <= BUDGET // 4


def test_lack_of_memory_to_encode_ahead_costs_no_row(flan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.engine.graph import stream

    engine = Recording(flan, is_ahead=True)
    encode = stream.encode
    failed: list[int] = []

    def fail_once(weights: T5Weights, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        if len(engine.views) > 3 and not failed:
            failed.append(tokens.numel())
            raise NO_MEMORY
        return encode(weights, tokens, lengths)

    monkeypatch.setattr(stream, "encode", fail_once)

    assert complete(engine, prompts_of(TEXTS)) == complete(Recording(flan), prompts_of(TEXTS))
    assert failed


def test_lost_device_blames_no_row(flan: Path) -> None:
    engine = Recording(flan)
    engine.strike = lambda view: RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"):
        complete(engine, prompts_of(TEXTS[:3]))


def test_buckets_are_few_and_hold_what_is_needed() -> None:
    found = [bucket_slots(needed, 700) for needed in range(1, 701)]

    assert sorted(set(found)) == [32, 64, 128, 256, 512, 700]
    assert all(bucket >= needed for needed, bucket in enumerate(found, start=1))
    assert bucket_slots(3, 8) == 8


def test_steps_with_one_choice_go_to_one_lane_and_a_new_arena_gets_new_lanes(flan: Path) -> None:
    engine = Recording(flan)
    made: list[Choice] = []
    make = engine._desk._make_lane
    engine._desk._make_lane = lambda *parts: (made.append(parts[2]), make(*parts))[1]
    other_seed = SAMPLED.model_copy(update={"seed": 9})

    for parameters in (GREEDY, SAMPLED, GREEDY, other_seed, GREEDY):
        complete(engine, prompts_of(TEXTS[:2]), parameters)
    assert len(made) == 2

    complete(engine, prompts_of(["the cat " * 200]))
    assert len(made) == 3


def test_cpu_never_touches_what_is_for_gpus(flan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "workers.engine.graph.cuda", None)

    assert len(complete(load(flan, device="cpu", precision="native"), prompts_of(TEXTS[:3]))) == 3


def test_bfloat16_runs_and_says_so(flan: Path) -> None:
    whole, half = load(flan, device="cpu", precision="float32"), load(flan, device="cpu", precision="bfloat16")

    outcomes = complete(half, prompts_of(TEXTS[:4]))

    assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
    assert (half.dtype, whole.dtype) == ("bfloat16", "float32")
    assert half.weight_bytes * 2 == whole.weight_bytes


def test_weights_are_those_of_the_checkpoint_each_once(directory: Path) -> None:
    engine = load(directory, device="cpu", precision="float32")
    model = load_model(directory, device="cpu", precision="float32").model

    numbers = sum(weight.numel() for weight in model.parameters())
    biases = [stack.block[0].layer[0].SelfAttention.relative_attention_bias for stack in (model.encoder, model.decoder)]
    tables = engine._desk.weights.encoder_bias.numel() + engine._desk.weights.decoder_bias.numel()
    assert engine.weight_bytes == 4 * (numbers - sum(bias.weight.numel() for bias in biases) + tables)


def test_closed_engine_has_let_its_model_go(flan: Path) -> None:
    engine = load(flan, device="cpu", precision="float32")

    engine.close()

    assert not hasattr(engine, "_desk")


def choose(directory: Path, home: Path, engine: EngineName, precision: Precision = "native") -> Any:
    return load_greedy_engine(engine, directory, Store(home), device="cpu", precision=precision, threads=1)


def test_on_a_cpu_it_runs_only_when_it_is_asked_for(flan: Path, tmp_path: Path) -> None:
    assert choose(flan, tmp_path, "graph").name == "graph"
    assert choose(flan, tmp_path, "auto").name != "graph"


def choose_on_gpu(directory: Path, home: Path) -> Any:
    return load_greedy_engine("auto", directory, Store(home), device="cuda", precision="native")


def test_on_a_gpu_it_runs_what_it_can_and_else_the_log_says_why_transformers_does(
    flan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.engine import loading

    asked: list[str] = []

    def load_here(directory: Path, *, device: str, **options: Any) -> Any:
        asked.append(device)
        if len(asked) > 1:
            raise UnsupportedModel("The engine graph cannot compile its kernels here: no C compiler.")
        return load(directory, **options | {"device": "cpu"})

    monkeypatch.setattr("workers.engine.graph.engine.load", load_here)
    with capture_logs() as logs:
        monkeypatch.setattr(loading, "find_spec", lambda name: None)
        assert choose_on_gpu(flan, tmp_path) is None
        monkeypatch.setattr(loading, "find_spec", lambda name: "there")
        assert choose_on_gpu(make_tiny_bart(tmp_path / "bart"), tmp_path) is None
        assert not asked
        assert choose_on_gpu(flan, tmp_path).name == "graph"
        assert choose_on_gpu(flan, tmp_path) is None

    assert asked == ["cuda", "cuda"]
    reasons = [log["reason"] for log in logs if log["event"] == "transformers_instead_of_graph"]
    assert len(reasons) == 3
    assert ["triton" in reasons[0], "bart" in reasons[1], "C compiler" in reasons[2]] == [True] * 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda directory: set_config(directory, feed_forward_proj="gated-silu"), "gated-silu"),
        (make_tiny_bart, "bart"),
        (lambda directory: set_config(directory, forced_bos_token_id=5), "forced first token"),
    ],
    ids=["another activation", "another model", "a forced first token"],
)
def test_model_that_it_cannot_run_is_an_error(flan: Path, tmp_path: Path, change: Any, reason: str) -> None:
    directory = copy_of(flan, tmp_path)
    (directory / "generation_config.json").unlink(missing_ok=True)
    change(directory)

    with pytest.raises(UnsupportedModel, match=f"{reason}.*Use the engine auto or transformers"):
        choose(directory, tmp_path, "graph")

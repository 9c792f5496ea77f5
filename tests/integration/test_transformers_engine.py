"""What only the real engine promises: the texts of plain transformers, and failures of torch that stay with their row."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from gistmill.errors import (
    DeviceOutOfMemory,
    GenerationFailed,
    InputTooLong,
    InvalidSpec,
    ModelUnreadable,
    UnsupportedModel,
)
from gistmill.specs import GenerationParameters
from tests.integration.test_engine_conformance import BEAMS, GIST_TINY, GREEDY, complete, prompts_of
from tests.support.models import dialogues, make_tiny_bart, make_tiny_t5
from workers.engine.base import Completion, Failure, Outcome, Row
from workers.engine.checkpoint import load_model, load_tokenizer
from workers.engine.tokenizing import ModelTokenizer
from workers.engine.transformers import TransformersEngine, is_device_lost, is_out_of_memory, load

SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


class RecordingEngine(TransformersEngine):
    """Keeps the tokens of each row, which a text alone does not tell."""

    def __init__(self, directory: Path, *, budget_tokens: int = 600) -> None:
        super().__init__(load_model(directory, device="cpu", precision="float32"), budget_tokens=budget_tokens)
        self.tokens: dict[int, list[int]] = {}

    def _outcome(self, row: Row, tokens: list[int], bad_step: int) -> Outcome:
        outcome = super()._outcome(row, tokens, bad_step)
        if isinstance(outcome, Completion):
            self.tokens[outcome.key] = tokens[: outcome.tokens_out]
        return outcome


class FaultyEngine(RecordingEngine):
    """Raises `error` instead of a forward pass when `strikes` says so, and notes the sizes of all attempts."""

    def __init__(self, directory: Path, error: Exception, strikes: Callable[[Sequence[Row]], bool]) -> None:
        super().__init__(directory, budget_tokens=100_000)
        self.error, self.strikes = error, strikes
        self.attempts: list[int] = []

    def _complete(self, rows: Sequence[Row], *arguments: Any) -> list[Outcome] | None:
        self.attempts.append(len(rows))
        if self.strikes(rows):
            raise self.error
        return super()._complete(rows, *arguments)


@pytest.fixture(scope="module")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bart(tmp_path_factory.mktemp("bart"))


@pytest.fixture(params=["tiny_t5", "tiny_bart", "gist-tiny"])
def directory(request: pytest.FixtureRequest) -> Path:
    if request.param != "gist-tiny":
        return Path(request.getfixturevalue(request.param))
    if not (GIST_TINY / "config.json").exists():
        pytest.skip("gist-tiny is not built")
    return GIST_TINY


def plain_tokens(
    directory: Path, texts: list[str], *, num_beams: int, max_new_tokens: int, obey: bool = False
) -> list[list[int]]:
    """Return what plain transformers writes for each text alone; `obey` keeps the checkpoint's own generation config."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32).eval()
    if not obey:
        special = {name: getattr(model.generation_config, name) for name in SPECIAL}
        model.generation_config = GenerationConfig(**special)  # type: ignore[no-untyped-call]
    rows = []
    for text in texts:
        asked = {} if obey else {"num_beams": num_beams, "do_sample": False, "max_new_tokens": max_new_tokens}
        row = model.generate(**tokenizer(text, return_tensors="pt"), **asked)[0, 1:].tolist()
        end = model.generation_config.eos_token_id
        rows.append(row[: row.index(end) + 1] if end in row else row)
    return rows


@pytest.mark.parametrize("parameters", [GREEDY, BEAMS], ids=["greedy", "beams"])
def test_tokens_equal_those_of_plain_transformers(directory: Path, parameters: GenerationParameters) -> None:
    texts = dialogues(40, most_words=18)
    engine = RecordingEngine(directory)

    complete(engine, prompts_of(texts), parameters)

    expected = plain_tokens(directory, texts, num_beams=parameters.num_beams, max_new_tokens=parameters.max_new_tokens)
    assert [engine.tokens[key] for key in range(len(texts))] == expected


def test_outputs_of_the_tiny_t5_vary_so_that_equality_shows_something(tiny_t5: Path) -> None:
    engine = RecordingEngine(tiny_t5)

    outcomes = complete(engine, prompts_of(dialogues(40))).values()

    assert sum(len(set(tokens)) for tokens in engine.tokens.values()) / 40 >= 10
    assert sum(isinstance(outcome, Completion) and outcome.finish_reason == "stop" for outcome in outcomes) >= 8
    assert len({tuple(tokens) for tokens in engine.tokens.values()}) >= 35


def test_generation_config_of_a_checkpoint_changes_nothing(tiny_bart: Path) -> None:
    texts = dialogues(6, most_words=18)
    engine = RecordingEngine(tiny_bart)

    complete(engine, prompts_of(texts), GREEDY)

    obeying = plain_tokens(tiny_bart, texts, num_beams=1, max_new_tokens=40, obey=True)
    assert all(engine.tokens[key] != tokens for key, tokens in enumerate(obeying))


def test_absolute_positions_are_a_hard_limit_on_input_and_output(tiny_bart: Path) -> None:
    engine = RecordingEngine(tiny_bart)
    long = prompts_of(["the cat " * 200])

    refused = complete(engine, long, max_input_tokens=2048)[0]
    cut = complete(
        engine, long, GREEDY.model_copy(update={"max_new_tokens": 500}), max_input_tokens=2048, on_overflow="truncate"
    )[0]

    assert isinstance(refused, Failure)
    assert isinstance(refused.error, InputTooLong)
    assert refused.error.fields["limit"] == 64
    assert "reads no more" in refused.error.message
    assert isinstance(cut, Completion)
    assert (cut.truncated, cut.tokens_in) == (True, 64)
    assert cut.tokens_out <= 64


def test_limit_without_room_for_text_fails_the_row(tiny_bart: Path) -> None:
    outcome = complete(RecordingEngine(tiny_bart), prompts_of(["Anna"]), max_input_tokens=2, on_overflow="truncate")[0]

    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, InputTooLong)


def test_out_of_memory_halves_the_batch_until_it_fits(tiny_t5: Path) -> None:
    texts = dialogues(32, most_words=12)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    engine = FaultyEngine(tiny_t5, error, lambda rows: len(rows) > 5)

    outcomes = complete(engine, prompts_of(texts))

    assert engine.attempts[:4] == [32, 16, 8, 4]
    assert sum(engine.attempts) < 32 + 16 + 8 + 32 + 16, "each limit is found out once, not by every batch"
    assert outcomes == complete(RecordingEngine(tiny_t5), prompts_of(texts))


def test_row_that_alone_exceeds_memory_fails_and_the_others_go_on(tiny_t5: Path) -> None:
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried")
    engine = FaultyEngine(tiny_t5, error, lambda rows: any(row.prompt.key == 3 for row in rows))

    outcomes = complete(engine, prompts_of(dialogues(8, most_words=12)))

    assert isinstance(outcomes[3], Failure)
    assert isinstance(outcomes[3].error, DeviceOutOfMemory)
    assert all(isinstance(outcomes[key], Completion) for key in range(8) if key != 3)


def test_row_that_breaks_the_model_fails_alone(tiny_t5: Path) -> None:
    engine = FaultyEngine(
        tiny_t5, IndexError("index out of range in self"), lambda rows: any(row.prompt.key == 5 for row in rows)
    )

    outcomes = complete(engine, prompts_of(dialogues(8, most_words=12)))

    assert isinstance(outcomes[5], Failure)
    assert isinstance(outcomes[5].error, GenerationFailed)
    assert "index out of range" in outcomes[5].error.message
    assert all(isinstance(outcomes[key], Completion) for key in range(8) if key != 5)


def test_lost_device_is_no_rows_fault(tiny_t5: Path) -> None:
    engine = FaultyEngine(tiny_t5, RuntimeError("CUDA error: device-side assert triggered"), lambda rows: True)

    with pytest.raises(RuntimeError, match="device-side assert"):
        complete(engine, prompts_of(["Anna", "Ben"]))

    assert engine.attempts == [2]


def test_errors_of_torch_are_told_apart() -> None:
    for error in (torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("CUDA error: out of memory")):
        assert is_out_of_memory(error)
        assert not is_device_lost(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert is_device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_device_lost(ValueError("CUDA error"))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_scores_that_are_not_numbers_fail_only_their_row(tiny_t5: Path, tmp_path: Path, num_beams: int) -> None:
    directory = copy_of(tiny_t5, tmp_path)
    poisoned = AutoTokenizer.from_pretrained(directory)("🙂")["input_ids"][0]
    weights = load_file(directory / "model.safetensors")
    weights["shared.weight"][poisoned] = torch.nan
    weights["lm_head.weight"][poisoned] = 0  # The other rows must not write it.
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    outcomes = complete(
        RecordingEngine(directory), prompts_of(["Anna", "Ben 🙂", "Carla"]), GREEDY.model_copy(update={"num_beams": num_beams})
    )

    assert [type(outcomes[key]) for key in range(3)] == [Completion, Failure, Completion]
    assert isinstance(outcomes[1], Failure)
    assert "not finite" in outcomes[1].error.message


def test_token_that_the_model_does_not_know_never_reaches_the_device(tiny_t5: Path, tmp_path: Path) -> None:
    directory = copy_of(tiny_t5, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([f"<new_{index}>" for index in range(200)])
    tokenizer.save_pretrained(directory)
    engine = FaultyEngine(directory, RuntimeError("CUDA error: device-side assert triggered"), lambda rows: len(rows) > 1)

    outcomes = complete(engine, prompts_of(["Anna", "Ben <new_199>"]))

    assert isinstance(outcomes[0], Completion)
    assert isinstance(outcomes[1], Failure)
    assert "tokenizer" in outcomes[1].error.message


def test_precision_is_native_or_pinned_and_never_fp16(tiny_t5: Path) -> None:
    native = load(tiny_t5, device="cpu", precision="native")
    pinned = load(tiny_t5, device="cpu", precision="bfloat16")

    assert (native.dtype, pinned.dtype) == ("float32", "bfloat16")
    assert pinned.weight_bytes * 2 == native.weight_bytes
    assert isinstance(complete(pinned, prompts_of(["Anna"]))[0], Completion)
    with pytest.raises(InvalidSpec, match="overflow"):
        load(tiny_t5, device="cpu", precision="float16")  # type: ignore[arg-type]


def test_closed_engine_has_let_its_model_go(tiny_t5: Path) -> None:
    engine = load(tiny_t5, device="cpu", precision="native")

    engine.close()

    assert not hasattr(engine, "_model")


def copy_of(directory: Path, parent: Path) -> Path:
    return Path(shutil.copytree(directory, parent / "copy"))


def _remove_weight(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["decoder.block.0.layer.0.SelfAttention.q.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def _pickle_instead(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def _set_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda d: (d / "config.json").unlink(), ModelUnreadable),
        (lambda d: (d / "config.json").write_text("{"), ModelUnreadable),
        (lambda d: (d / "tokenizer.json").unlink(), ModelUnreadable),
        (lambda d: (d / "model.safetensors").write_bytes(b"xx"), ModelUnreadable),
        (lambda d: (d / "model.safetensors").unlink(), ModelUnreadable),
        (_remove_weight, ModelUnreadable),
        (_pickle_instead, ModelUnreadable),
        (shutil.rmtree, ModelUnreadable),
        (lambda d: _set_config(d, d_ff=99), ModelUnreadable),
        (lambda d: _set_config(d, model_type="gpt2", is_encoder_decoder=False), UnsupportedModel),
        (lambda d: (d / "adapter_config.json").write_text("{}"), UnsupportedModel),
    ],
    ids=[
        "no config",
        "broken config",
        "no tokenizer",
        "broken weights",
        "no weights",
        "a weight missing",
        "pickle",
        "no directory",
        "other shape",
        "decoder only",
        "adapter",
    ],
)
def test_checkpoint_that_cannot_be_used_is_named(
    tiny_t5: Path, tmp_path: Path, damage: Callable[[Path], object], error: type[Exception]
) -> None:
    directory = copy_of(tiny_t5, tmp_path)
    damage(directory)

    with pytest.raises(error, match="copy"):
        load(directory, device="cpu", precision="native")


@pytest.mark.parametrize("is_cleaned_up", [False, True])
def test_texts_are_the_same_many_at_a_time(is_cleaned_up: bool) -> None:
    own = load_tokenizer(GIST_TINY)
    own.clean_up_tokenization_spaces = is_cleaned_up
    tokenizer = ModelTokenizer(own, 2**31)
    tokens = tokenizer.encode(["Anna : hello , you do n't know", " well ", *dialogues(4)], None)

    texts = tokenizer.decode_all(tokens)

    assert texts == [tokenizer.decode(row) for row in tokens]
    assert ("hello ," in texts[0]) != is_cleaned_up


def test_one_thread_encodes_and_cuts_while_another_decodes() -> None:
    tokenizer = ModelTokenizer(load_tokenizer(GIST_TINY), 2**31)
    texts = dialogues(8)
    tokens = tokenizer.encode(texts, None)
    broken: list[BaseException] = []
    is_over = threading.Event()

    def decode() -> None:
        try:
            while not is_over.is_set():
                assert all(tokenizer.decode(row) for row in tokens)
        except RuntimeError as error:
            broken.append(error)

    threads = [threading.Thread(target=decode) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        assert all(len(row) <= 5 for row in tokenizer.encode(texts, 5))
        assert tokenizer.encode(texts, None) == tokens
    is_over.set()
    for thread in threads:
        thread.join()
    assert broken == []

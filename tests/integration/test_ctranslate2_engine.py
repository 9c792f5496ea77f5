"""The ctranslate2 engine: the tokens of transformers on every kind of T5, its scores too, and when it is not the one to run."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, MT5Config, MT5ForConditionalGeneration
from transformers.utils import logging as transformers_logging

from gistmill.errors import DeviceOutOfMemory, GenerationFailed, ModelError, ModelUnreadable, UnsupportedModel
from gistmill.specs import GenerationParameters, Precision
from models_store.store import Store
from tests.integration.test_engine_conformance import BEAMS, GIST_TINY, GREEDY, SAMPLED, complete, prompts_of
from tests.integration.test_transformers_engine import RecordingEngine, copy_of
from tests.support.adapters import make_adapter
from tests.support.models import END, PAD, dialogues, make_tiny_bart, make_tiny_t5, make_tiny_tokenizer, random_t5, save_t5
from tests.support.models import vary_outputs as vary
from tests.support.ties import first_difference, is_near_tie
from workers.engine import conversion
from workers.engine.base import Completion, Engine, Failure, Outcome, Row
from workers.engine.checkpoint import load_model
from workers.engine.ctranslate2 import CTranslate2Engine, load
from workers.engine.loading import EngineName, load_engine, load_greedy_engine
from workers.residence import Residence

SMALL = {"d_model": 64, "d_kv": 24, "d_ff": 128, "num_layers": 2, "num_heads": 4}
TEXTS = [*dialogues(46, most_words=40), ".", " ", "\n\n", "日本語の会話"]
SHORT = GREEDY.model_copy(update={"max_new_tokens": 8})


class Recording(CTranslate2Engine):
    """Keeps the tokens of each row, and fails as told: with `error`, on batches that `strikes` names."""

    tokens: dict[int, list[int]]
    error: Exception | None = None
    most_rows = 0

    def _translate(self, rows: Sequence[Row], *arguments: Any) -> list[tuple[Row, list[int]]]:
        if self.error is not None and len(rows) > self.most_rows:
            raise self.error
        return super()._translate(rows, *arguments)

    def _outcome(self, row: Row, tokens: list[int], bad_step: int | None) -> Outcome:
        self.tokens[row.prompt.key] = tokens
        return super()._outcome(row, tokens, bad_step)


def recording(directory: Path, home: Path) -> Recording:
    home.mkdir(parents=True, exist_ok=True)
    conversion.convert(directory, home, "float32")
    engine = Recording(directory, home, threads=1, budget_tokens=1000)
    engine.tokens = {}
    return engine


def make_flan(directory: Path) -> Path:
    """FLAN-T5's and v1.1's form: gated-gelu, an output layer of its own."""
    return make_tiny_t5(directory)


def make_v1(directory: Path) -> Path:
    """The first T5's form: relu, the output layer tied to the embedding, scores scaled by 1/sqrt(d_model)."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(22)
    size = make_tiny_tokenizer(directory)
    model = random_t5(vocab_size=size, feed_forward_proj="relu", tie_word_embeddings=True, **SMALL)
    output = model.lm_head.weight
    vary(model)
    model.lm_head.weight = output
    _drown_the_last_token(model)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(directory)
    assert "lm_head.weight" not in load_file(directory / "model.safetensors")
    return directory


def _drown_the_last_token(model: Any) -> None:
    """Let the layers outweigh the embedding, which goes through to a tied output: the last token would be repeated for ever."""
    with torch.no_grad():
        model.shared.weight[END] *= 2.2
        for block in model.decoder.block:
            attention, cross, feed = block.layer
            for layer in (attention.SelfAttention.o, cross.EncDecAttention.o, feed.DenseReluDense.wo):
                layer.weight *= 60


def make_mt5(directory: Path) -> Path:
    """mT5's form: gated-gelu, an output layer of its own, scores never scaled whatever the configuration says."""
    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(4)
    size = make_tiny_tokenizer(directory)
    model = MT5ForConditionalGeneration(
        MT5Config(vocab_size=size, feed_forward_proj="gated-gelu", decoder_start_token_id=PAD, dropout_rate=0.0, **SMALL)
    )
    vary(model)
    save_t5(model, directory)
    return directory


def get_gist_tiny(directory: Path) -> Path:
    if not (GIST_TINY / "config.json").exists():
        pytest.skip("gist-tiny is not built")
    return GIST_TINY


MODELS = {"flan": make_flan, "v1.0": make_v1, "mt5": make_mt5, "gist-tiny": get_gist_tiny}


@pytest.fixture(scope="module", params=sorted(MODELS))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return MODELS[request.param](tmp_path_factory.mktemp("model") / request.param)


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flan(tmp_path_factory.mktemp("flan"))


def test_tokens_equal_those_of_transformers(directory: Path, tmp_path: Path) -> None:
    reference, engine = RecordingEngine(directory), recording(directory, tmp_path / "converted")

    expected = complete(reference, prompts_of(TEXTS))
    outcomes = complete(engine, prompts_of(TEXTS))

    differing = [key for key in expected if engine.tokens[key] != reference.tokens[key]]
    for key in differing:
        step = first_difference(engine.tokens[key], reference.tokens[key])
        source = AutoTokenizer.from_pretrained(directory)(TEXTS[key])["input_ids"]
        assert is_near_tie(reference._model, source, [PAD, *reference.tokens[key][:step]])
    assert len(differing) <= len(TEXTS) // 100
    assert {key: outcomes[key] for key in expected if key not in differing} == {
        key: expected[key] for key in expected if key not in differing
    }
    if directory != GIST_TINY:
        assert sum(len(set(tokens)) for tokens in engine.tokens.values()) >= 10 * len(TEXTS)
        assert sum(o.finish_reason == "stop" for o in outcomes.values() if isinstance(o, Completion)) >= len(TEXTS) // 5


def test_scores_equal_those_of_transformers_so_the_output_layer_is_scaled_as_the_checkpoint_says(
    directory: Path, tmp_path: Path
) -> None:
    conversion.convert(directory, tmp_path, "float32")
    model, text = load_model(directory, device="cpu", precision="float32"), dialogues(1)[0]
    source, target = model.tokenizer(text)["input_ids"], [5, 9, 30, 7]

    with torch.inference_mode():
        logits = model.model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[PAD, *target]])).logits
    wanted = logits[0].log_softmax(-1)[torch.arange(5), torch.tensor([*target, END])]
    # With the first token as the end token of the converted model, scores end with it: the last one is left out.
    scored = ctranslate2.Translator(str(tmp_path)).score_batch([[str(t) for t in source]], [[str(t) for t in target]])

    assert torch.allclose(torch.tensor(scored[0].log_probs[:4]), wanted[:4], rtol=1e-3, atol=1e-3)


def test_prompts_of_one_token_and_of_512_in_one_batch_and_limits_of_1_and_512(flan: Path, tmp_path: Path) -> None:
    reference, engine = RecordingEngine(flan), recording(flan, tmp_path)
    engine.budget_tokens = 10_000
    texts = ["", "the cat " * 255 + "the", "Anna"]

    for limit in (1, 512):
        parameters = GenerationParameters(max_new_tokens=limit)
        assert complete(engine, prompts_of(texts), parameters) == complete(reference, prompts_of(texts), parameters)


def test_input_longer_than_the_library_would_take_is_read_whole(flan: Path, tmp_path: Path) -> None:
    prompt = prompts_of(["the cat " * 700 + " ".join(dialogues(1))])

    outcome = complete(recording(flan, tmp_path), prompt, SHORT)[0]

    assert isinstance(outcome, Completion)
    assert outcome.tokens_in > 1024
    assert outcome == complete(RecordingEngine(flan), prompt, SHORT)[0]


def test_scores_that_are_not_numbers_fail_only_their_row(flan: Path, tmp_path: Path) -> None:
    directory = copy_of(flan, tmp_path)
    poisoned = AutoTokenizer.from_pretrained(directory)("🙂")["input_ids"][0]
    weights = load_file(directory / "model.safetensors")
    weights["shared.weight"][poisoned] = torch.nan
    weights["lm_head.weight"][poisoned] = 0  # The other rows must not write it.
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    prompts = prompts_of(["Anna", "Ben 🙂", "Carla"])

    outcomes = complete(recording(directory, tmp_path / "converted"), prompts)

    assert outcomes[0] == complete(RecordingEngine(flan), prompts)[0]
    assert isinstance(outcomes[2], Completion)
    assert isinstance(outcomes[1], Failure)
    assert "not finite at step 0" in outcomes[1].error.message


def test_lack_of_memory_halves_the_batch_and_a_row_that_fails_fails_alone(flan: Path, tmp_path: Path) -> None:
    engine = recording(flan, tmp_path)
    wanted = complete(engine, prompts_of(TEXTS[:8]))
    engine.error = RuntimeError("aligned_alloc: failed to allocate memory")

    engine.most_rows = 2
    assert complete(engine, prompts_of(TEXTS[:8])) == wanted

    engine.most_rows = 0
    out_of_memory = complete(engine, prompts_of(["Anna"]))[0]
    engine.error = RuntimeError("shapes do not match")
    failed = complete(engine, prompts_of(["Anna"]))[0]
    assert isinstance(out_of_memory, Failure)
    assert isinstance(out_of_memory.error, DeviceOutOfMemory)
    assert isinstance(failed, Failure)
    assert isinstance(failed.error, GenerationFailed)


def test_closed_engine_has_let_its_model_go(flan: Path, tmp_path: Path) -> None:
    engine = load(flan, Store(tmp_path))
    assert engine.weight_bytes > 4 * 200_000

    engine.close()

    assert not hasattr(engine, "_translator")


def test_model_is_converted_once_and_a_file_cut_short_is_converted_again(flan: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    wanted = complete(load(flan, store), prompts_of(TEXTS[:2]), SHORT)
    (directory,) = (tmp_path / "converted").iterdir()
    assert directory.name == f"{flan.name}-float32-{conversion.VERSION}"
    made = (directory / "model.bin").stat().st_ino

    assert complete(load(flan, store), prompts_of(TEXTS[:2]), SHORT) == wanted
    assert (directory / "model.bin").stat().st_ino == made
    with (directory / "model.bin").open("r+b") as file:
        file.truncate(1000)

    assert complete(load(flan, store), prompts_of(TEXTS[:2]), SHORT) == wanted
    assert (directory / "model.bin").stat().st_size > 1000


def choose(
    directory: Path,
    home: Path,
    engine: EngineName = "auto",
    device: str = "cpu",
    precision: Precision = "native",
    adapter: Path | None = None,
) -> Engine | None:
    return load_greedy_engine(engine, directory, Store(home), device=device, precision=precision, adapter=adapter, threads=1)


def test_whole_t5_on_a_cpu_is_run_by_ctranslate2(flan: Path, tmp_path: Path) -> None:
    for engine in ("auto", "ctranslate2"):
        for precision in ("native", "float32"):
            chosen = choose(flan, tmp_path, engine, precision=precision)
            assert chosen is not None
            assert (chosen.name, chosen.device, chosen.dtype) == ("ctranslate2", "cpu", "float32")


def set_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "device", "precision", "reason"),
    [
        (lambda d: None, "cuda", "native", "GPU"),
        (lambda d: None, "cpu", "bfloat16", "asked for by name|does not compute in bfloat16"),
        (lambda d: set_config(d, feed_forward_proj="gated-silu"), "cpu", "native", "gated-silu"),
        (lambda d: (shutil.rmtree(d), make_tiny_bart(d)), "cpu", "native", "bart"),
    ],
    ids=["a GPU", "another precision", "another activation", "another model"],
)
def test_what_it_cannot_run_is_left_to_transformers_and_an_error_when_forced(
    flan: Path, tmp_path: Path, change: Any, device: str, precision: Precision, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copy_of(flan, tmp_path)
    change(directory)

    assert choose(directory, tmp_path, device=device, precision=precision) is None
    logged = capsys.readouterr().out
    assert (bool(re.search(reason, logged)) and "transformers_instead_of_ctranslate2" in logged) == (device == "cpu")
    with pytest.raises(UnsupportedModel, match=f"({reason}).*Use the engine auto or transformers"):
        choose(directory, tmp_path, "ctranslate2", device, precision)
    assert choose(directory, tmp_path, "transformers", device, precision) is None


def test_conversion_that_fails_is_left_to_transformers_and_an_error_when_forced(
    flan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copy_of(flan, tmp_path)
    (directory / "model.safetensors").write_bytes(b"xx")

    assert choose(directory, tmp_path) is None
    assert "transformers_instead_of_ctranslate2" in capsys.readouterr().out
    with pytest.raises(ModelUnreadable):
        choose(directory, tmp_path, "ctranslate2")


def test_host_without_the_package_uses_transformers(
    flan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ctranslate2", None)

    assert choose(flan, tmp_path) is None

    assert "cannot be imported" in capsys.readouterr().out


def test_model_without_an_end_token_is_not_converted(flan: Path, tmp_path: Path) -> None:
    directory = copy_of(flan, tmp_path)
    set_config(directory, eos_token_id=None)
    (directory / "generation_config.json").unlink(missing_ok=True)

    with pytest.raises(ModelError, match="end token"):
        conversion.convert(directory, tmp_path / "out", "float32")


class Clock:
    """A ticker that counts nothing."""

    def enter(self, limit_s: float) -> None: ...

    def tick(self) -> None: ...

    def should_stop(self) -> bool:
        return False


def test_greedy_jobs_get_it_and_beams_and_sampling_get_transformers(flan: Path, tmp_path: Path) -> None:
    adapter = make_adapter(flan, tmp_path / "adapter")
    found: list[str] = []

    def find(digest: str, ticker: object) -> Path:
        found.append(digest[0])
        return flan if digest[0] == "b" else adapter

    residence = Residence(
        find,
        lambda directory, precision: load_engine("auto", directory, device="cpu", precision=precision),
        load_greedy=lambda directory, precision, adapter: choose(directory, tmp_path, precision=precision, adapter=adapter),
        limit_bytes=2**30,
        device_bytes=2**30,
        load_stall_s=60,
    )

    def name(parameters: GenerationParameters, adapter: str | None = None) -> str:
        engine = residence.get("b" * 64, "native", Clock(), adapter=adapter, is_greedy=parameters.is_greedy)
        return engine.name

    for _ in range(2):
        assert name(GREEDY) == name(GREEDY, "a" * 64) == "ctranslate2"
        assert name(BEAMS) == name(SAMPLED) == name(BEAMS, "a" * 64) == "transformers"
    assert found == ["b", "b", "a", "b", "a"], "each is loaded once"
    assert len(residence.resident()) == 2
    residence.clear()
    assert residence.resident() == ()


def test_both_engines_of_a_model_count_and_the_one_not_used_goes_first(flan: Path, tmp_path: Path) -> None:
    weights = (flan / "model.safetensors").stat().st_size
    loads: list[str] = []

    def load_with(kind: str) -> Any:
        def make(directory: Path, precision: Precision, adapter: Path | None = None) -> Engine | None:
            loads.append(kind)
            if kind == "greedy":
                return choose(directory, tmp_path)
            return load_engine("auto", directory, device="cpu", precision=precision)

        return make

    residence = Residence(
        lambda digest, ticker: flan,
        load_with("all"),
        load_greedy=load_with("greedy"),
        limit_bytes=int(1.5 * weights),
        device_bytes=10 * weights,
        load_stall_s=60,
    )

    for is_greedy in (True, False, False, True):
        residence.get("b" * 64, "native", Clock(), is_greedy=is_greedy)

    assert loads == ["greedy", "all", "greedy"]

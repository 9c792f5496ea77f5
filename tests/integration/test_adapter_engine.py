"""Adapters on one base: each writes exactly what it writes alone, the base stays the base, and merging gives the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gistmill.errors import (
    DeviceFull,
    DeviceTooSmall,
    ModelUnavailable,
    ModelUnreadable,
    UnsafeModel,
    UnsupportedModel,
)
from gistmill.specs import Precision, combined_digest
from models_store import adapters, converting, importing, merging
from models_store.store import Store
from tests.integration.test_convert import MakesADirectory
from tests.integration.test_engine_conformance import BEAMS, GREEDY, SAMPLED, complete, prompts_of
from tests.support.adapters import make_adapter
from tests.support.models import dialogues, make_tiny_bart, make_tiny_t5
from workers import convert
from workers.engine.base import Completion, Engine, Outcome
from workers.engine.checkpoint import load_model
from workers.engine.fake import FakeEngine
from workers.engine.loading import load_engine
from workers.engine.transformers import TransformersEngine
from workers.residence import Residence, Ticker

SHORT = GREEDY.model_copy(update={"max_new_tokens": 16})
PROMPTS = prompts_of(dialogues(6, most_words=18))
FIRST, SECOND = "1" * 64, "2" * 64
# Every linear layer of a T5 that an adapter may change, its own output layer too.
ALL = ["q", "k", "v", "o", "wi_0", "wi_1", "wo", "lm_head"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with an output layer of its own."""
    return make_tiny_t5(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapted_dirs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters that change different layers, the second with another rank and scale."""
    home = tmp_path_factory.mktemp("adapters")
    return {
        FIRST: make_adapter(base, home / "first", seed=1),
        SECOND: make_adapter(
            base, home / "second", seed=2, strength=0.2, target_modules=ALL, r=2, lora_alpha=3, use_rslora=True
        ),
    }


def load(directory: Path, precision: Precision = "float32", *, batch_tokens: int = 400) -> TransformersEngine:
    engine = load_engine("transformers", directory, device="cpu", precision=precision, batch_tokens=batch_tokens)
    assert isinstance(engine, TransformersEngine)
    return engine


def texts(engine: Engine) -> dict[int, Outcome]:
    return complete(engine, PROMPTS, SHORT)


def alone(base: Path, digest: str, directory: Path) -> dict[int, Outcome]:
    """What an adapter writes on a base that never saw another one."""
    engine = load(base)
    engine.add_adapter(digest, directory)
    return texts(engine.adapted(digest))


def test_each_adapter_writes_what_it_writes_alone_and_the_base_stays_the_base(
    base: Path, adapted_dirs: dict[str, Path]
) -> None:
    plain = texts(load(base))
    wanted = {digest: alone(base, digest, directory) for digest, directory in adapted_dirs.items()}
    assert all(wanted[FIRST][key] != plain[key] != wanted[SECOND][key] != wanted[FIRST][key] for key in range(len(PROMPTS)))

    engine = load(base)
    before = engine.weight_bytes
    for digest, directory in adapted_dirs.items():
        engine.add_adapter(digest, directory)
    files = sum(adapters.read(directory, base).weights.bytes for directory in adapted_dirs.values())
    assert engine.weight_bytes == before + files

    for digest in (FIRST, SECOND, FIRST):
        assert texts(engine.adapted(digest)) == wanted[digest]
        assert texts(engine) == plain

    engine.remove_adapter(FIRST)
    assert texts(engine) == plain
    assert texts(engine.adapted(SECOND)) == wanted[SECOND]
    engine.remove_adapter(SECOND)
    assert texts(engine) == plain
    assert engine.weight_bytes == before


def test_adapters_take_turns_between_micro_batches(base: Path, adapted_dirs: dict[str, Path]) -> None:
    engine = load(base, batch_tokens=50)
    for digest, directory in adapted_dirs.items():
        engine.add_adapter(digest, directory)
    sources = {"plain": engine, FIRST: engine.adapted(FIRST), SECOND: engine.adapted(SECOND)}
    wanted = {name: texts(source) for name, source in sources.items()}

    running = {
        name: source.generate(PROMPTS, SHORT, max_input_tokens=2048, on_overflow="fail", should_stop=lambda: False)
        for name, source in sources.items()
    }
    seen: dict[str, dict[int, Outcome]] = {name: {} for name in sources}
    batches = 0
    while running:
        for name in list(running):
            outcomes = next(running[name], None)
            if outcomes is None:
                del running[name]
                continue
            batches += 1
            seen[name] |= {outcome.key: outcome for outcome in outcomes}

    assert batches >= 6
    assert seen == wanted


@pytest.mark.parametrize("parameters", [BEAMS, SAMPLED], ids=["beams", "sampled"])
def test_adapters_run_with_beams_and_sampling(base: Path, adapted_dirs: dict[str, Path], parameters, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    convert.merge(base, adapted_dirs[FIRST], tmp_path)
    engine = load(base)
    engine.add_adapter(FIRST, adapted_dirs[FIRST])

    outcomes = complete(engine.adapted(FIRST), PROMPTS, parameters)

    assert outcomes == complete(load(tmp_path), PROMPTS, parameters)
    assert outcomes != complete(engine, PROMPTS, parameters)


@pytest.mark.parametrize("digest", [FIRST, SECOND])
def test_merged_and_unmerged_agree(base: Path, adapted_dirs: dict[str, Path], digest: str, tmp_path: Path) -> None:
    convert.merge(base, adapted_dirs[digest], tmp_path)
    engine = load(base)
    engine.add_adapter(digest, adapted_dirs[digest])
    merged = load_model(tmp_path, device="cpu", precision="float32").model
    asked = {"input_ids": torch.arange(4, 24).reshape(2, 10), "decoder_input_ids": torch.tensor([[0, 5, 9], [0, 7, 8]])}

    with torch.inference_mode():
        plain = engine._model(**asked).logits
        assert engine._rack is not None
        with engine._rack.active(digest):
            unmerged = engine._model(**asked).logits
        difference = (merged(**asked).logits - unmerged).abs().max()

    assert difference < 1e-4 * unmerged.abs().max()
    assert (plain - unmerged).abs().max() > 1e-2 * unmerged.abs().max()
    assert texts(load(tmp_path)) == texts(engine.adapted(digest))


def test_merging_keeps_files_names_dtypes_and_the_own_output_layer(
    base: Path, adapted_dirs: dict[str, Path], tmp_path: Path
) -> None:
    half = Path(shutil.copytree(base, tmp_path / "half"))
    save_file(
        {name: weight.bfloat16() for name, weight in load_file(base / "model.safetensors").items()},
        half / "model.safetensors",
        metadata={"format": "pt"},
    )
    target = tmp_path / "merged"
    target.mkdir()

    convert.merge(half, adapted_dirs[FIRST], target)

    before, after = load_file(half / "model.safetensors"), load_file(target / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {weight.dtype for weight in after.values()} == {torch.bfloat16}
    assert changed == set(adapters.read(adapted_dirs[FIRST], base).tensors.values())
    assert {path.name for path in target.iterdir()} == {path.name for path in half.iterdir()}
    assert json.loads((target / "config.json").read_text())["tie_word_embeddings"] is False


def test_shards_are_merged_one_by_one(base: Path, adapted_dirs: dict[str, Path], tmp_path: Path) -> None:
    sharded, whole, target = (tmp_path / name for name in ("sharded", "whole", "merged"))
    shutil.copytree(base, sharded)
    for directory in (whole, target):
        directory.mkdir()
    weights = load_file(base / "model.safetensors")
    names = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(weights))}
    for shard in set(names.values()):
        save_file({name: weights[name] for name in weights if names[name] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (sharded / "model.safetensors").unlink()

    convert.merge(sharded, adapted_dirs[SECOND], target)
    convert.merge(base, adapted_dirs[SECOND], whole)

    together = {name: weight for shard in set(names.values()) for name, weight in load_file(target / shard).items()}
    wanted = load_file(whole / "model.safetensors")
    assert together.keys() == wanted.keys()
    assert all(torch.equal(together[name], wanted[name]) for name in wanted)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapter_that_peft_saved_is_let_in_and_writes_what_peft_writes(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    loaded = load_model(base, device="cpu", precision="float32")
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM", r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["q", "v"], init_lora_weights=False
    )
    tuned = get_peft_model(loaded.model, config).eval()
    tuned.save_pretrained(tmp_path / "saved")
    store = Store(tmp_path / "store")
    digest = importing.import_directory(store, base, label="base").digest
    manifest = importing.import_directory(store, tmp_path / "saved", label="mine", base_digest=digest)
    assert manifest.parameters == sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)

    engine = load(store.get(digest))
    engine.add_adapter(manifest.digest, store.get(manifest.digest))
    tokens = loaded.tokenizer(PROMPTS[3].text, return_tensors="pt")
    written = tuned.generate(**tokens, max_new_tokens=SHORT.max_new_tokens, do_sample=False)[0, 1:]

    outcome = texts(engine.adapted(manifest.digest))[3]
    assert isinstance(outcome, Completion)
    assert outcome.text == loaded.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_bart_runs_with_an_adapter(tmp_path: Path) -> None:
    base = make_tiny_bart(tmp_path / "bart")
    adapter = make_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj", "fc1"])
    convert.merge(base, adapter, tmp_path)
    engine = load(base)
    engine.add_adapter(FIRST, adapter)

    assert texts(engine.adapted(FIRST)) == texts(load(tmp_path)) != texts(engine)


def test_adapter_computes_in_the_dtype_of_its_base(base: Path, adapted_dirs: dict[str, Path]) -> None:
    engine = load(base, "bfloat16")
    before = engine.weight_bytes
    engine.add_adapter(FIRST, adapted_dirs[FIRST])

    assert engine.weight_bytes - before == adapters.read(adapted_dirs[FIRST], base).weights.bytes / 2
    assert isinstance(texts(engine.adapted(FIRST))[0], Completion)
    assert engine.adapted(FIRST).dtype == "bfloat16"


def test_adapter_of_another_base_is_refused_and_leaves_the_engine_as_it_was(
    base: Path, adapted_dirs: dict[str, Path], tmp_path: Path
) -> None:
    engine = load(base)
    engine.add_adapter(FIRST, adapted_dirs[FIRST])
    plain, wanted, weighs = texts(engine), texts(engine.adapted(FIRST)), engine.weight_bytes
    foreign = make_adapter(make_tiny_bart(tmp_path / "bart"), tmp_path / "foreign", target_modules=["q_proj"])

    with pytest.raises(ModelUnreadable, match="which the base has no weights of its own for"):
        engine.add_adapter(SECOND, foreign)

    assert (texts(engine), texts(engine.adapted(FIRST)), engine.weight_bytes) == (plain, wanted, weighs)


def test_pickled_adapter_is_converted_and_a_pickle_with_code_runs_none(
    base: Path, adapted_dirs: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(adapted_dirs[FIRST], tmp_path / "source"))
    (source / "adapter_model.safetensors").unlink()
    store = Store(tmp_path / "store")
    digest = importing.import_directory(store, base, label="base").digest

    def add() -> Path:
        return store.get(importing.import_directory(store, source, label="mine", convert=True, base_digest=digest).digest)

    torch.save(load_file(adapted_dirs[FIRST] / "adapter_model.safetensors"), source / "adapter_model.bin")
    kept, wanted = (load_file(path / "adapter_model.safetensors") for path in (add(), adapted_dirs[FIRST]))
    assert kept.keys() == wanted.keys()
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)

    torch.save({"a": MakesADirectory(tmp_path / "made")}, source / "adapter_model.bin")
    with pytest.raises(UnsafeModel, match="holds more than tensors"):
        add()
    assert not (tmp_path / "made").exists()


def test_merged_model_is_made_once(
    base: Path, adapted_dirs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    digest = importing.import_directory(store, base, label="base").digest
    adapter = importing.import_directory(store, adapted_dirs[FIRST], label="mine", base_digest=digest).digest
    merges: list[Path] = []
    monkeypatch.setattr(converting, "run_merge", lambda *paths: (merges.append(paths[0]), convert.merge(*paths)))

    first = merging.merge(store, base_digest=digest, adapter_digest=adapter)

    assert merging.merge(store, base_digest=digest, adapter_digest=adapter) == first
    assert len(merges) == 1
    assert store.find(digest) is not None
    assert list((store.root / "incoming").iterdir()) == []


class Clock:
    """A ticker that notes the phases that begin."""

    def __init__(self) -> None:
        self.phases: list[float] = []

    def enter(self, limit_s: float) -> None:
        self.phases.append(limit_s)

    def tick(self) -> None: ...

    def should_stop(self) -> bool:
        return False


class Memory:
    """A residence over directories, with what it fetched and loaded."""

    def __init__(self, files: dict[str, Path], *, limit_bytes: int = 2**30, device_bytes: int = 2**30) -> None:
        self.files = files
        self.loads: list[str] = []
        self.clock = Clock()
        self.residence = Residence(self._find, self._load, limit_bytes=limit_bytes, device_bytes=device_bytes, load_stall_s=600)

    def _find(self, digest: str, ticker: Ticker) -> Path:
        self.loads.append(digest)
        return self.files[digest]

    def _load(self, directory: Path, precision: Precision) -> Engine:
        return load(directory, precision)

    def get(self, digest: str, adapter: str | None = None) -> Engine:
        return self.residence.get(digest, "float32", self.clock, adapter=adapter)


BASE, OTHER = "b" * 64, "c" * 64


@pytest.fixture
def files(base: Path, adapted_dirs: dict[str, Path]) -> dict[str, Path]:
    return adapted_dirs | {BASE: base, OTHER: base}


def weigh(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def test_two_adapters_alternate_without_a_base_load_between_them(files: dict[str, Path], base: Path) -> None:
    memory = Memory(files)
    wanted = {digest: alone(base, digest, files[digest]) for digest in (FIRST, SECOND)}

    for digest in (FIRST, SECOND, FIRST, SECOND):
        assert texts(memory.get(BASE, digest)) == wanted[digest]

    assert memory.loads == [BASE, FIRST, SECOND]
    assert memory.clock.phases == [600, 600, 600]
    assert set(memory.residence.resident()) == {BASE, combined_digest(BASE, FIRST), combined_digest(BASE, SECOND)}


def test_adapter_leaves_before_its_base(files: dict[str, Path]) -> None:
    memory = Memory(files, limit_bytes=2 * weigh(files[BASE]) + weigh(files[SECOND]))
    memory.get(OTHER)
    memory.get(BASE, FIRST)

    memory.get(BASE, SECOND)
    assert set(memory.residence.resident()) == {BASE, combined_digest(BASE, FIRST), combined_digest(BASE, SECOND)}

    memory.get(OTHER)
    assert set(memory.residence.resident()) == {BASE, OTHER, combined_digest(BASE, SECOND)}
    assert memory.loads == [OTHER, BASE, FIRST, SECOND, OTHER]

    memory.get(BASE, FIRST)
    assert texts(memory.get(BASE, FIRST)) != texts(memory.get(BASE))


def test_base_of_a_new_adapter_is_not_evicted_for_it(files: dict[str, Path]) -> None:
    memory = Memory(files, limit_bytes=weigh(files[BASE]))
    memory.get(BASE, FIRST)
    memory.get(BASE, SECOND)
    assert memory.loads == [BASE, FIRST, SECOND]
    assert set(memory.residence.resident()) == {BASE, combined_digest(BASE, SECOND)}


def test_cleared_residence_holds_nothing(files: dict[str, Path]) -> None:
    memory = Memory(files)
    memory.get(BASE, FIRST)
    memory.residence.clear()
    assert memory.residence.resident() == ()
    memory.get(BASE, FIRST)
    assert memory.loads == [BASE, FIRST] * 2


def test_adapter_that_does_not_fit_the_device_beside_its_base_is_for_another_worker(files: dict[str, Path]) -> None:
    memory = Memory(files, device_bytes=weigh(files[BASE]))
    memory.get(BASE)
    with pytest.raises(DeviceTooSmall) as small:
        memory.get(BASE, FIRST)
    assert small.value.fields["needed_bytes"] > weigh(files[BASE])
    assert memory.residence.resident() == (BASE,)


def test_device_without_room_for_an_adapter_gives_the_chunk_back(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(files)

    def full(self: TransformersEngine, digest: str, directory: Path) -> None:
        raise ModelUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(TransformersEngine, "add_adapter", full)
        with pytest.raises(DeviceFull):
            memory.get(BASE, FIRST)
    assert memory.residence.resident() == (BASE,)
    assert memory.get(BASE, FIRST).name == "transformers"


def test_engine_that_runs_no_adapters_says_so_and_the_fake_one_reads_none(files: dict[str, Path]) -> None:
    class Rigid(Memory):
        def _load(self, directory: Path, precision: Precision) -> Engine:
            return FakeEngine() if self.files is files else _NoAdapters()

    with pytest.raises(UnsupportedModel, match="The engine rigid runs no adapters"):
        Rigid(dict(files)).get(BASE, FIRST)
    fake = Rigid(files)
    assert fake.get(BASE, FIRST) is fake.get(BASE)
    assert fake.loads == [BASE]


class _NoAdapters:
    name, device, dtype, weight_bytes = "rigid", "cpu", "float32", 0

    def generate(self, *arguments: object, **options: object) -> object: ...

    def close(self) -> None: ...

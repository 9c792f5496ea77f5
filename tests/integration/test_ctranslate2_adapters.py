"""Adapters on CTranslate2: merged in float32, converted once under the digest of both, and whole models in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from gistmill.errors import ModelUnreadable
from gistmill.specs import Precision, combined_digest
from models_store.store import Store
from tests.integration.test_ctranslate2_engine import TEXTS, Clock, choose, make_flan, make_v1
from tests.integration.test_engine_conformance import GREEDY, complete, prompts_of
from tests.integration.test_transformers_engine import RecordingEngine
from tests.support.adapters import make_adapter
from tests.support.models import PAD, make_tiny_t5
from tests.support.servers import wait_until
from tests.support.ties import first_difference, is_near_tie
from workers.engine import conversion
from workers.engine.base import Completion, Engine
from workers.engine.ctranslate2 import load
from workers.residence import Residence

BASE, FIRST, SECOND = "b" * 64, "1" * 64, "2" * 64
SHORT = GREEDY.model_copy(update={"max_new_tokens": 12})
# A process that loads base and adapter. With a last argument it stands still once everything is converted but not in place.
LOAD = """
import sys, time
from pathlib import Path
import torch
from models_store.store import Store
from workers.engine import conversion, ctranslate2

torch.set_num_threads(1)
home, base, adapter, halt = map(Path, sys.argv[1:])
convert = conversion.convert

def convert_and_wait(*arguments, **options):
    convert(*arguments, **options)
    halt.touch()
    time.sleep(120)

if halt.name != "never":
    conversion.convert = convert_and_wait
ctranslate2.load(base, Store(home), adapter=adapter, threads=1)
"""


@pytest.fixture(scope="module", params=["flan", "v1.0"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    make = {"flan": make_flan, "v1.0": make_v1}[request.param]
    return make(tmp_path_factory.mktemp("base") / BASE)


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flan(tmp_path_factory.mktemp("flan") / BASE)


@pytest.fixture(scope="module")
def adapters(flan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("adapters")
    return {digest: make_adapter(flan, home / digest, seed=seed) for seed, digest in enumerate((FIRST, SECOND), start=1)}


def texts(engine: Engine) -> list[str]:
    outcomes = complete(engine, prompts_of(TEXTS), SHORT)
    return [outcome.text for _, outcome in sorted(outcomes.items()) if isinstance(outcome, Completion)]


def start(home: Path, base: Path, adapter: Path, halt: Path = Path("never")) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOAD, str(home), str(base), str(adapter), str(halt)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_texts_equal_those_of_transformers_with_the_adapter(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / FIRST, seed=3, strength=0.5, target_modules=["q", "v", "wo"])
    reference = RecordingEngine(base)
    reference._directory = base
    plain = complete(reference, prompts_of(TEXTS), SHORT)
    reference.add_adapter(FIRST, adapter)
    expected = complete(reference.adapted(FIRST), prompts_of(TEXTS), SHORT)
    wanted = dict(reference.tokens)

    outcomes = complete(load(base, Store(tmp_path), adapter=adapter, threads=1), prompts_of(TEXTS), SHORT)

    differing = [key for key in expected if outcomes[key] != expected[key]]
    tokenizer = AutoTokenizer.from_pretrained(base)
    merged = Recorded(base, adapter, tmp_path / "recorded")
    complete(merged.engine, prompts_of(TEXTS), SHORT)
    for key in differing:
        step = first_difference(merged.engine.tokens[key], wanted[key])
        assert reference._rack is not None
        with reference._rack.active(FIRST):
            assert is_near_tie(reference._model, tokenizer(TEXTS[key])["input_ids"], [PAD, *wanted[key][:step]])
    assert len(differing) <= max(1, len(TEXTS) // 100)
    assert sum(plain[key] != expected[key] for key in expected) > len(TEXTS) // 2, "the adapter changes nothing"


class Recorded:
    """The converted model once more, with the tokens that it writes."""

    def __init__(self, base: Path, adapter: Path, home: Path) -> None:
        from tests.integration.test_ctranslate2_engine import Recording

        home.mkdir()
        conversion.convert(base, home, "float32", adapter)
        self.engine = Recording(base, home, threads=1, budget_tokens=1000)
        self.engine.tokens = {}


def test_base_and_its_adapters_are_forms_of_their_own_each_made_once(
    flan: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    one, two, plain = (load(flan, store, adapter=adapters.get(digest), threads=1) for digest in (FIRST, SECOND, "none"))
    written = [texts(engine) for engine in (one, two, plain)]
    made = {path.name: path.stat().st_ino for path in (tmp_path / "converted").iterdir()}

    again = [texts(load(flan, store, adapter=adapters[digest], threads=1)) for digest in (FIRST, SECOND, FIRST)]

    assert again == [written[0], written[1], written[0]]
    assert len({tuple(of) for of in written}) == 3
    assert set(made) == {f"{combined_digest(BASE, adapter)}-float32-{conversion.VERSION}" for adapter in (None, FIRST, SECOND)}
    assert {path.name: path.stat().st_ino for path in (tmp_path / "converted").iterdir()} == made


def test_adapter_is_merged_before_weights_become_int8(flan: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    engine = load(flan, Store(tmp_path), adapter=adapters[FIRST], precision="int8", threads=1)

    assert engine.dtype == "int8"
    assert texts(engine) != texts(load(flan, Store(tmp_path), precision="int8", threads=1))


def test_adapter_of_another_base_is_an_error_where_no_other_engine_may_try(
    flan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_tiny_t5(tmp_path / "other", seed=5)
    adapter = make_adapter(other, tmp_path / "adapter", r=4)
    (adapter / "adapter_model.safetensors").write_bytes(b"xx")

    assert choose(flan, tmp_path, adapter=adapter) is None
    assert "transformers_instead_of_ctranslate2" in capsys.readouterr().out
    for engine, precision in (("ctranslate2", "native"), ("auto", "int8")):
        with pytest.raises(ModelUnreadable):
            choose(flan, tmp_path, engine, precision=precision, adapter=adapter)  # type: ignore[arg-type]


class Memory:
    """A residence with room for so many models, and what it loaded."""

    def __init__(self, home: Path, files: dict[str, Path], *, models: float) -> None:
        self.loads: list[str] = []
        self.weight = (files[BASE] / "model.safetensors").stat().st_size

        def load_greedy(directory: Path, precision: Precision, adapter: Path | None) -> Engine | None:
            self.loads.append("base" if adapter is None else adapter.name[0])
            return choose(directory, home, precision=precision, adapter=adapter)

        def load_all(directory: Path, precision: Precision) -> Engine:
            raise AssertionError("greedy jobs need no other engine")

        self.residence = Residence(
            lambda digest, ticker: files[digest],
            load_all,
            load_greedy=load_greedy,
            limit_bytes=int(models * self.weight),
            device_bytes=10 * self.weight,
            load_stall_s=60,
        )

    def get(self, adapter: str | None = None) -> Engine:
        return self.residence.get(BASE, "native", Clock(), adapter=adapter, is_greedy=True)


def test_two_adapters_alternate_without_loading_where_both_fit(flan: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    memory = Memory(tmp_path, adapters | {BASE: flan}, models=2.5)
    wanted = {digest: texts(memory.get(digest)) for digest in (FIRST, SECOND)}

    for digest in (FIRST, SECOND) * 2:
        assert texts(memory.get(digest)) == wanted[digest]

    assert memory.loads == ["1", "2"]
    assert wanted[FIRST] != wanted[SECOND]
    assert set(memory.residence.resident()) == {combined_digest(BASE, FIRST), combined_digest(BASE, SECOND)}


def test_merged_models_count_whole_and_the_one_not_used_goes_first(
    flan: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    memory = Memory(tmp_path, adapters | {BASE: flan}, models=2.5)
    closed = []
    for adapter in (None, FIRST):
        engine = memory.get(adapter)
        engine.close = lambda adapter=adapter: closed.append(adapter)  # type: ignore[method-assign,misc]

    memory.get(SECOND)

    assert closed == [None]
    assert set(memory.residence.resident()) == {combined_digest(BASE, FIRST), combined_digest(BASE, SECOND)}
    memory.get(FIRST)
    memory.residence.clear()
    assert closed == [None, FIRST]
    assert memory.loads == ["base", "1", "2"]


def test_processes_that_ask_at_once_convert_one_adapter_once(flan: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    asking = [start(tmp_path, flan, adapters[FIRST]) for _ in range(3)]

    logs = [process.communicate(timeout=100)[0] for process in asking]

    assert [process.returncode for process in asking] == [0, 0, 0], logs
    assert "".join(logs).count("model_converted") == 1


def test_worker_killed_during_a_conversion_leaves_nothing_that_hinders_the_next(
    flan: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    halt = tmp_path / "halt"
    killed = start(tmp_path, flan, adapters[FIRST], halt)
    wait_until(halt.exists, timeout_s=60)
    assert not (tmp_path / "converted").exists()
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)

    engine = load(flan, Store(tmp_path), adapter=adapters[FIRST], threads=1)

    assert texts(engine) == texts(load(flan, Store(tmp_path / "elsewhere"), adapter=adapters[FIRST], threads=1))
    assert [path.name for path in (tmp_path / "converted").iterdir()] == [
        f"{combined_digest(BASE, FIRST)}-float32-{conversion.VERSION}"
    ]

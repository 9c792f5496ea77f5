"""CTranslate2 in other precisions than float32: a form of its own for each, by wish alone, and never another one instead."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import pytest

from gistmill.errors import UnsupportedModel
from models_store.store import Store
from tests.integration.test_ctranslate2_engine import TEXTS, choose, set_config
from tests.integration.test_engine_conformance import GREEDY, complete, prompts_of
from tests.support.models import make_tiny_bart, make_tiny_t5
from workers.engine import conversion
from workers.engine.base import Completion
from workers.engine.ctranslate2 import CTranslate2Engine, load
from workers.engine.loading import load_engine

SHORT = GREEDY.model_copy(update={"max_new_tokens": 12})


@pytest.fixture(scope="module")
def flan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_t5(tmp_path_factory.mktemp("flan") / "model")


def test_int8_has_a_form_of_its_own_of_a_third_the_size_and_says_so(flan: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)

    small, whole = load(flan, store, precision="int8", threads=1), load(flan, store, threads=1)

    assert (small.name, small.device, small.dtype, whole.dtype) == ("ctranslate2", "cpu", "int8", "float32")
    assert small.weight_bytes < whole.weight_bytes / 2.5
    names = sorted(path.name for path in (tmp_path / "converted").iterdir())
    assert names == [f"{flan.name}-{form}-{conversion.VERSION}" for form in ("float32", "int8_float32")]


def test_row_in_int8_does_not_depend_on_its_batch(flan: Path, tmp_path: Path) -> None:
    engine = load(flan, Store(tmp_path), precision="int8", threads=1)

    together = complete(engine, prompts_of(TEXTS), SHORT)

    assert together == {key: complete(engine, prompts_of(TEXTS)[key : key + 1], SHORT)[key] for key in range(len(TEXTS))}
    assert len({outcome.text for outcome in together.values() if isinstance(outcome, Completion)}) > len(TEXTS) // 2


def test_int8_is_run_by_ctranslate2_and_by_nothing_else(flan: Path, tmp_path: Path) -> None:
    chosen = choose(flan, tmp_path, precision="int8")
    assert chosen is not None
    assert (chosen.name, chosen.dtype) == ("ctranslate2", "int8")

    with pytest.raises(UnsupportedModel, match=r"int8: it runs on CPUs.*--precision native"):
        choose(flan, tmp_path, device="cuda", precision="int8")
    bart = make_tiny_bart(tmp_path / "bart")
    with pytest.raises(UnsupportedModel, match=r"int8: it runs T5 models only.*--precision native"):
        choose(bart, tmp_path, precision="int8")
    for engine in ("auto", "transformers", "ctranslate2"):
        with pytest.raises(UnsupportedModel, match=r"transformers does not compute in it.*--precision native"):
            load_engine(engine, flan, device="cpu", precision="int8")  # type: ignore[arg-type]


def test_cpu_that_lacks_a_precision_is_an_error_for_those_that_have_no_other_engine(
    flan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda device: {"float32"})

    with pytest.raises(UnsupportedModel, match="this CPU does not compute in int8"):
        choose(flan, tmp_path, precision="int8")
    with pytest.raises(UnsupportedModel, match="this CPU does not compute in bfloat16"):
        choose(flan, tmp_path, "ctranslate2", precision="bfloat16")
    assert choose(flan, tmp_path, precision="bfloat16") is None


def test_bfloat16_is_converted_in_its_own_size(flan: Path, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    for directory in (whole, half):
        directory.mkdir()
    conversion.convert(flan, whole, "float32")
    conversion.convert(flan, half, "bfloat16")

    assert (half / "model.bin").stat().st_size < 0.55 * (whole / "model.bin").stat().st_size
    if "bfloat16" in ctranslate2.get_supported_compute_types("cpu"):
        engine = CTranslate2Engine(flan, half, compute_type="bfloat16", threads=1, budget_tokens=1000)
        assert engine.dtype == "bfloat16"
        assert all(isinstance(outcome, Completion) for outcome in complete(engine, prompts_of(TEXTS), SHORT).values())


def test_checkpoint_without_end_token_is_an_error_in_int8(tmp_path: Path) -> None:
    directory = make_tiny_t5(tmp_path / "model")
    set_config(directory, eos_token_id=None)
    (directory / "generation_config.json").unlink(missing_ok=True)

    with pytest.raises(UnsupportedModel, match="end token"):
        choose(directory, tmp_path, precision="int8")

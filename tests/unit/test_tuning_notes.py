"""The file of an engine's trials: read back by every worker of the host, ignored when it is no good, never half written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models_store.store import Store
from workers.engine.tuning import Setting
from workers.engine.tuning_notes import Key, Notebook, describe_cpu

ONE, TWO = Setting(1, 4096), Setting(2, 2048)
KEY = Key(engine="ctranslate2", engine_version="4", compute_type="float32", weight_mib=294, threads=2, cpu="a", cores=2)
WRITER = """
import sys
from pathlib import Path
from models_store.store import Store
from tests.unit.test_tuning_notes import KEY
from workers.engine.tuning import Setting
from workers.engine.tuning_notes import Notebook

book = Notebook(Store(Path(sys.argv[1])), KEY)
for number in range(40):
    book.add(Setting(int(sys.argv[2]), 4096), 1.0 + number)
"""


def test_trials_are_read_back_by_others(tmp_path: Path) -> None:
    book = Notebook(Store(tmp_path), KEY)
    assert book.read() == {}

    book.add(ONE, 100.5)
    book.add(TWO, 200.0)
    assert book.add(ONE, 90.0) == {ONE: [100.5, 90.0], TWO: [200.0]}

    assert Notebook(Store(tmp_path), KEY).read() == {ONE: [100.5, 90.0], TWO: [200.0]}
    assert [path.name for path in (tmp_path / "tuning").iterdir()] == [book.path.name]


@pytest.mark.parametrize(
    "change",
    [{"engine_version": "5"}, {"compute_type": "int8"}, {"weight_mib": 295}, {"threads": 1}, {"cpu": "b"}, {"cores": 4}],
    ids=lambda change: next(iter(change)),
)
def test_another_library_model_or_machine_has_figures_of_its_own(tmp_path: Path, change: dict[str, object]) -> None:
    book = Notebook(Store(tmp_path), KEY)
    book.add(ONE, 100.0)
    other = Notebook(Store(tmp_path), KEY.model_copy(update=change))
    assert other.read() == {}

    other.path.write_bytes(book.path.read_bytes())
    assert other.read() == {}, "a file that was copied from another host under this name"
    assert other.add(TWO, 5.0) == {TWO: [5.0]}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 0'),
        lambda text: text.replace("100.0", "-1"),
        lambda text: text.replace("100.0", '"fast"'),
        lambda text: "\0" * 400,
    ],
    ids=["empty", "cut short", "something else", "an older format", "a negative speed", "no number", "zeros"],
)
def test_broken_file_counts_for_nothing_and_is_written_anew(tmp_path: Path, spoil: object) -> None:
    book = Notebook(Store(tmp_path), KEY)
    book.add(ONE, 100.0)
    text = book.path.read_text()
    book.path.write_text(spoil(text))  # type: ignore[operator]
    assert book.path.read_text() != text

    assert Notebook(Store(tmp_path), KEY).read() == {}
    assert Notebook(Store(tmp_path), KEY).add(TWO, 5.0) == {TWO: [5.0]}
    assert json.loads(book.path.read_text())["trials"] == [{"lanes": 2, "budget_tokens": 2048, "tokens_per_s": [5.0]}]


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), lanes]) for lanes in ("1", "2")]
    assert [writer.wait(60) for writer in writers] == [0, 0]

    speeds = Notebook(Store(tmp_path), KEY).read()

    assert speeds == {Setting(lanes, 4096): [1.0 + number for number in range(40)] for lanes in (1, 2)}


def test_disk_that_takes_nothing_only_means_that_nothing_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tuning").write_text("in the way")
    book = Notebook(Store(tmp_path), KEY)

    book.add(ONE, 1.0)
    assert book.add(ONE, 2.0) == {ONE: [1.0, 2.0]}
    assert "tuning_not_kept" in capsys.readouterr().out

    (tmp_path / "tuning").unlink()
    book.add(TWO, 3.0)
    assert Notebook(Store(tmp_path), KEY).read() == {ONE: [1.0, 2.0], TWO: [3.0]}


def test_processor_is_named() -> None:
    assert describe_cpu()

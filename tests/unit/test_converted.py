"""Converted models: made once however many ask, made anew when broken, removed when unused, half of one never there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gistmill.errors import ModelUnavailable
from models_store import converted
from models_store.store import Store
from tests.support.servers import wait_until

SOURCE, FORM = Path("a" * 64), "float32-test.1"
NAME = f"{SOURCE.name}-{FORM}"
# A process that asks for the model. Its conversion notes that it ran, and ends once so many processes have asked.
ASK = """
import os, sys, time
from pathlib import Path
from models_store import converted
from models_store.store import Store

home, askers = Path(sys.argv[1]), int(sys.argv[2])

def convert(source, target):
    with (home / "calls").open("a") as calls:
        calls.write("x")
    (target / "model.bin").write_text("weights")
    while len(list(home.glob("asked-*"))) < askers:
        time.sleep(0.01)

(home / f"asked-{os.getpid()}").touch()
print(converted.get(Store(home / "store"), Path("a" * 64), "float32-test.1", convert))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class Converter:
    """Writes a model and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, source: Path, target: Path) -> None:
        self.calls += 1
        (target / "model.bin").write_text("weights")
        (target / "config.json").write_text("{}")


def ask(home: Path, *, askers: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", ASK, str(home), str(askers)], stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen[str]) -> str:
    """Return the directory that the process got; its log comes before."""
    return process.communicate(timeout=60)[0].strip().splitlines()[-1]


def test_model_is_converted_once_and_then_found(store: Store) -> None:
    convert = Converter()

    first = converted.get(store, SOURCE, FORM, convert)
    again = converted.get(store, SOURCE, FORM, convert)

    assert first == again == store.root / "converted" / NAME
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "manifest.json", "model.bin"]
    assert convert.calls == 1
    assert list((store.root / "incoming").iterdir()) == []


def test_another_form_or_another_model_is_converted_by_itself(store: Store) -> None:
    convert = Converter()

    places = {
        converted.get(store, source, form, convert) for source in (SOURCE, Path("b" * 64)) for form in (FORM, "float32-test.2")
    }

    assert len(places) == convert.calls == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "model.bin").write_text("weight"),
        lambda d: (d / "model.bin").write_text("Weights"),
        lambda d: (d / "model.bin").unlink(),
        lambda d: (d / "manifest.json").unlink(),
        lambda d: (d / "manifest.json").write_text('{"files": [{'),
        lambda d: (d / "vmap.txt").write_text("foreign"),
    ],
    ids=["cut short", "changed", "a file missing", "no listing", "half a listing", "a file too many"],
)
def test_broken_one_is_made_anew(store: Store, damage: Callable[[Path], object]) -> None:
    convert = Converter()
    directory = converted.get(store, SOURCE, FORM, convert)
    damage(directory)

    assert converted.get(store, SOURCE, FORM, convert) == directory

    assert convert.calls == 2
    assert (directory / "model.bin").read_text() == "weights"
    assert not (directory / "vmap.txt").exists()


def test_failed_conversion_leaves_nothing(store: Store) -> None:
    def fail(source: Path, target: Path) -> None:
        (target / "model.bin").write_text("half")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        converted.get(store, SOURCE, FORM, fail)

    assert not (store.root / "converted" / NAME).exists()
    assert list((store.root / "incoming").iterdir()) == []
    converted.get(store, SOURCE, FORM, Converter())


def test_disk_that_takes_nothing_is_a_lack_of_room(store: Store) -> None:
    store.root.mkdir()
    (store.root / "converted").write_text("no directory")

    with pytest.raises(ModelUnavailable, match="converted"):
        converted.get(store, SOURCE, FORM, Converter())


def test_ten_processes_convert_once(tmp_path: Path) -> None:
    asking = [ask(tmp_path, askers=10) for _ in range(10)]

    answers = {answer(process) for process in asking}

    assert answers == {str(tmp_path / "store" / "converted" / NAME)}
    assert (tmp_path / "calls").read_text() == "x"


def test_conversion_of_a_killed_process_is_made_by_another(tmp_path: Path) -> None:
    killed = ask(tmp_path, askers=1000)
    wait_until(lambda: (tmp_path / "calls").exists(), timeout_s=30)
    waiting = ask(tmp_path, askers=2)
    wait_until(lambda: len(list(tmp_path.glob("asked-*"))) == 2, timeout_s=30)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)

    assert answer(waiting) == str(tmp_path / "store" / "converted" / NAME)
    assert (tmp_path / "calls").read_text() == "xx"


def test_what_a_killed_conversion_left_is_removed_a_day_later(store: Store) -> None:
    left, running = store.make_staging("left"), store.make_staging("running")
    for directory in (left, running):
        (directory / "model.bin").write_text("half")
    for path in (left / "model.bin", left):
        os.utime(path, (1, 1))

    converted.get(store, SOURCE, FORM, Converter())

    assert not left.exists()
    assert running.exists()


def test_model_of_two_parts_is_filed_under_a_digest_of_its_own(store: Store) -> None:
    convert = Converter()
    alone = converted.get(store, SOURCE, FORM, convert)

    both = [converted.get(store, SOURCE, FORM, convert, digest="d" * 64) for _ in range(2)]

    assert both == [alone.parent / f"{'d' * 64}-{FORM}"] * 2
    assert convert.calls == 2


def test_unused_one_is_removed_when_another_is_made_and_a_used_one_stays(store: Store) -> None:
    convert = Converter()
    unused = converted.get(store, SOURCE, FORM, convert)
    used = converted.get(store, Path("b" * 64), FORM, convert)
    for directory in (unused, used):
        for path in (*directory.iterdir(), directory):
            os.utime(path, (1, 1))
    converted.get(store, Path("b" * 64), FORM, convert)

    converted.get(store, Path("c" * 64), FORM, convert)

    assert not unused.exists()
    assert used.exists()
    assert convert.calls == 3

"""What the C library keeps for a worker on the CPU, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers import allocator

pytestmark = pytest.mark.skipif(not allocator.environment({}), reason="only glibc 2.35 and later is told how to keep memory")

MIB = 2**20
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HELD = """
import resource

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
"""
TRY = """
import ctypes
from workers.allocator import give_back_freed
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

def use(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def in_a_thread(work):
    import threading
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

size = 200 * 2**20
before = held()
in_a_thread(lambda: use(size))
kept, so_far = held() - before, faults()
in_a_thread(lambda: use(size))
again = faults() - so_far
give_back_freed()
print(kept, again, held() - before)
"""

MODELS = """
import sys
from pathlib import Path
import numpy as np
from workers.engine.fake import FakeEngine
from workers.residence import Residence

class Large(FakeEngine):
    def __init__(self):
        super().__init__()
        self.weights = [np.ones(2**22) for _ in range(8)]
        self.weight_bytes = 2**28

    def close(self):
        del self.weights

class Ticker:
    def enter(self, limit_s): pass
    def tick(self): pass
    def should_stop(self): return False

find = lambda digest, ticker: Path(sys.argv[1])
residence = Residence(find, lambda *_: Large(), limit_bytes=2**40, device_bytes=2**40, load_stall_s=60)
before = held()
residence.get("a" * 64, "native", Ticker())
print(held() - before)
residence.clear()
print(held() - before)
"""


def run(script: str, environment: dict[str, str], *arguments: str) -> list[int]:
    """Return the numbers that a script prints, in a process whose C library is told nothing but this."""
    clean = {name: value for name, value in os.environ.items() if name != allocator.TUNABLES and not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", HELD + script, *arguments]
    done = subprocess.run(command, env=clean | environment, capture_output=True, check=True, text=True)
    return [int(word) for word in done.stdout.split() if word.lstrip("-").isdigit()]


def test_freed_block_is_kept_for_the_next_one_whichever_thread_takes_it_and_given_back_when_asked() -> None:
    kept, again, left = run(TRY, allocator.environment({}))
    assert kept > 190 * MIB
    assert again < 1_000
    assert left < 20 * MIB


@pytest.mark.skipif(PAGES.is_file() and "[always]" in PAGES.read_text(), reason="this kernel gives large pages unasked")
def test_left_to_itself_the_library_takes_every_page_anew() -> None:
    kept, again, _ = run(TRY, {})
    assert kept < 20 * MIB
    assert again > 40_000, "or the setting gains nothing here"


def test_model_that_leaves_gives_its_memory_back(tmp_path: Path) -> None:
    loaded, left = run(MODELS, allocator.environment({}), str(tmp_path))
    assert loaded > 250 * MIB
    assert left < 20 * MIB


@pytest.mark.parametrize("variable", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_user_who_has_set_the_allocator_keeps_it(variable: str) -> None:
    assert allocator.environment({"PATH": "/bin", variable: "2"}) == {}


@pytest.mark.parametrize(("told", "is_set"), [("glibc 2.36", True), ("glibc 2.35", True), ("glibc 2.34", False), (None, False)])
def test_library_that_is_older_or_none_that_we_know_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, told: str | None, *, is_set: bool
) -> None:
    monkeypatch.setattr("workers.allocator.os.confstr", lambda name: told)
    assert bool(allocator.environment({})) == is_set


def test_library_that_is_no_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr("workers.allocator.os.confstr", unknown)
    assert allocator.environment({}) == {}

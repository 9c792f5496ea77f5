"""The launcher with real processes and pretended GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.servers import die_with_parent, wait_until
from workers import allocator
from workers.gpu import cpu_device, scoring_device
from workers.launcher import worker_command

Launch = Callable[..., subprocess.Popen[bytes]]


def gpus(*names: str) -> str:
    return json.dumps([{"uuid": f"GPU-{name}", "name": "pretended", "total_bytes": 2**34} for name in names])


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    started: list[subprocess.Popen[bytes]] = []

    def start(text: str, behaviour: str = "good", drain_s: float = 5.0, seats: str = "models") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.children.launch", str(tmp_path), text, behaviour, str(drain_s), seats]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=die_with_parent))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
    wait_until(lambda: not living(tmp_path), timeout_s=10, what="the end of every stand-in")


def living(directory: Path) -> dict[str, int]:
    """Return the stand-ins that live: uuid to process id."""
    found = {path.stem: int(path.read_text() or 0) for path in directory.glob("*.pid")}
    return {worker: pid for worker, pid in found.items() if pid and is_alive(pid)}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_each_gpu_gets_one_process_pinned_to_it(launch: Launch, tmp_path: Path) -> None:
    launcher = launch(gpus("a", "b"))
    wait_until(lambda: len(living(tmp_path)) == 2, timeout_s=20)
    assert {(tmp_path / f"{worker}.gpu").read_text() for worker in living(tmp_path)} == {"GPU-a", "GPU-b"}
    launcher.terminate()
    assert launcher.wait(10) == 0
    assert living(tmp_path) == {}


def test_second_launcher_takes_only_the_gpu_that_is_free(launch: Launch, tmp_path: Path) -> None:
    launch(gpus("a"))
    wait_until(lambda: len(living(tmp_path)) == 1, timeout_s=20)
    launch(gpus("a", "b"))
    wait_until(lambda: len(living(tmp_path)) == 2, timeout_s=20)
    assert sorted((tmp_path / f"{worker}.gpu").read_text() for worker in living(tmp_path)) == ["GPU-a", "GPU-b"]
    third = launch(gpus("a", "b"))
    _, message = third.communicate(timeout=20)
    assert third.returncode == 6
    assert b"every GPU" in message


def test_workers_end_and_free_their_gpus_when_the_launcher_is_killed(launch: Launch, tmp_path: Path) -> None:
    launcher = launch(gpus("a"))
    wait_until(lambda: len(living(tmp_path)) == 1, timeout_s=20)
    first = set(living(tmp_path))
    launcher.kill()
    wait_until(lambda: not living(tmp_path), timeout_s=10, what="the orphan's end")
    launch(gpus("a"))
    wait_until(lambda: len(living(tmp_path)) == 1, timeout_s=20)
    assert set(living(tmp_path)).isdisjoint(first)


@pytest.mark.alone
def test_killed_worker_is_reported_within_a_second_and_replaced(launch: Launch, tmp_path: Path) -> None:
    launch(gpus("a"))

    def seconds_until_reported() -> float:
        wait_until(lambda: len(living(tmp_path)) == 1, timeout_s=20, what="a worker")
        worker, pid = next(iter(living(tmp_path).items()))
        report, killed_at = tmp_path / f"{worker}.dead", time.time()
        os.kill(pid, signal.SIGKILL)
        wait_until(report.exists, timeout_s=20, what="the report")
        wait_until(lambda: len(living(tmp_path)) == 1, timeout_s=20, what="the replacement")
        assert worker not in living(tmp_path)
        return report.stat().st_mtime - killed_at

    # The machine may stand still for a second itself, but hardly three times.
    assert min(seconds_until_reported() for _ in range(3)) < 1.0


@pytest.mark.alone
def test_worker_that_crashes_at_once_is_restarted_ever_more_slowly(launch: Launch, tmp_path: Path) -> None:
    launch(gpus("a"), "crash")
    wait_until(lambda: len(list(tmp_path.glob("*.dead"))) >= 6, timeout_s=60)
    deaths = sorted(path.stat().st_mtime for path in tmp_path.glob("*.dead"))
    # The first wait is at most 0.1 s, the fifth between 0.8 and 1.6 s.
    assert deaths[5] - deaths[4] > 0.75


def test_misconfigured_worker_is_not_restarted(launch: Launch, tmp_path: Path) -> None:
    launcher = launch(gpus("a"), "misconfigured")
    assert launcher.wait(20) == 1
    assert len(list(tmp_path.glob("*.dead"))) == 1


def test_stubborn_worker_is_killed_after_the_drain_time(launch: Launch, tmp_path: Path) -> None:
    launcher = launch(gpus("a"), "stubborn", drain_s=0.5)
    wait_until(lambda: len(living(tmp_path)) == 1, timeout_s=20)
    launcher.terminate()
    assert launcher.wait(10) == 0
    assert living(tmp_path) == {}


def test_second_signal_ends_the_drain(launch: Launch, tmp_path: Path) -> None:
    launcher = launch(gpus("a"), "stubborn", drain_s=60)
    wait_until(lambda: len(living(tmp_path)) == 1, timeout_s=20)
    launcher.terminate()
    # Two signals at once would be one.
    wait_until(lambda: bool(list(tmp_path.glob("*.told"))), timeout_s=20, what="the drain")
    launcher.terminate()
    assert launcher.wait(20) == 0


def test_scoring_gets_one_process_more_that_sees_no_gpu_and_is_replaced_like_others(launch: Launch, tmp_path: Path) -> None:
    launcher = launch(gpus("a"), seats="both")
    wait_until(lambda: len(living(tmp_path)) == 2, timeout_s=20)
    seen = {(tmp_path / f"{worker}.gpu").read_text(): pid for worker, pid in living(tmp_path).items()}
    assert set(seen) == {"GPU-a", ""}
    os.kill(seen[""], signal.SIGKILL)
    wait_until(lambda: len(list(tmp_path.glob("*.dead"))) == 1, timeout_s=20, what="the report")
    wait_until(lambda: len(living(tmp_path)) == 2, timeout_s=20, what="the replacement")
    assert seen["GPU-a"] in living(tmp_path).values()
    launcher.terminate()
    assert launcher.wait(10) == 0
    assert living(tmp_path) == {}


def test_only_workers_that_run_models_on_cpus_keep_freed_memory(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name == allocator.TUNABLES or name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)

    def count(seats: str, text: str) -> int:
        """Return how many of two workers keep it."""
        launcher = launch(text, seats=seats)
        wait_until(lambda: len(living(tmp_path)) == 2, timeout_s=20)
        told = [Path(f"/proc/{pid}/environ").read_bytes() for pid in living(tmp_path).values()]
        launcher.terminate()
        assert launcher.wait(10) == 0
        # Just the name: the library cuts the value up in place.
        return sum(f"\0{allocator.TUNABLES}=".encode() in environment for environment in told)

    assert count("both", "") == 1
    assert count("both", gpus("a")) == 0


def test_second_launcher_without_a_free_gpu_ends_and_one_that_only_scores_does_not(launch: Launch, tmp_path: Path) -> None:
    launch(gpus("a"))
    wait_until(lambda: len(living(tmp_path)) == 1, timeout_s=20)
    _, message = launch(gpus("a"), seats="both").communicate(timeout=20)
    assert b"every GPU" in message
    launch(gpus("a"), seats="scoring")
    wait_until(lambda: len(living(tmp_path)) == 2, timeout_s=20, what="the scoring worker")


def test_each_worker_takes_the_kinds_of_its_seat() -> None:
    command = worker_command(("summarize", "finetune", "evaluate"))
    taken = {device.uuid: command(device, "w", 3)[-1] for device in (cpu_device(0), scoring_device())}
    assert taken == {"cpu-0": "summarize,finetune", "cpu-scoring": "evaluate"}

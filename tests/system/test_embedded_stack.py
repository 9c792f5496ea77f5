"""The embedded stack: private, kept up, shared, interrupted and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Home
from tests.support.servers import wait_until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path / "home")
    yield made
    made.clean_up()


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return write_calls(tmp_path / "calls.jsonl", 30)


def write_calls(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"dialogue": f"A: hello number {number}"}) + "\n" for number in range(count)))
    return path


def state_of(home: Home) -> dict[str, str]:
    path = home.path / "stack.json"
    return json.loads(path.read_text()) if path.exists() else {}


def wait_until_ready(home: Home) -> None:
    wait_until(lambda: state_of(home).get("state") == "ready", timeout_s=60, what="the stack")


def wait_until_submitted(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    while "submitted" not in process.stderr.readline():
        assert process.poll() is None


def pid_of(home: Home, part: str) -> int:
    return next(pid for pid, command in home.commands().items() if part in command)


def test_summarize_on_a_bare_home_starts_a_stack_and_stops_it(home: Home, calls: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = home.run("summarize", str(calls), "--model", "gist-tiny", "-o", str(out), "--json")
    assert done.status == 0, done.err
    counts = {name: done.json["counts"][name] for name in ("items", "distinct", "generated", "shared", "failed")}
    assert counts == {"items": 30, "distinct": 30, "generated": 30, "shared": 0, "failed": 0}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [str(number) for number in range(1, 31)]
    assert all(line["summary"] for line in lines)
    home.wait_until_empty()
    assert oct((home.path / "token").stat().st_mode)[-3:] == "600"
    assert oct(home.path.stat().st_mode)[-3:] == "700"
    listed = home.run("jobs", "list", "--json")
    assert [job["state"] for job in listed.json] == ["completed"]
    assert not (home.path / "want-workers").exists()
    home.wait_until_empty()


def test_two_commands_at_once_share_one_stack(home: Home, calls: Path) -> None:
    both = [home.start("summarize", str(calls), "--model", "gist-tiny", "--json") for _ in range(2)]
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    totals = [json.loads(out)["counts"] for out, _ in ended]
    assert sum(counts["generated"] for counts in totals) == 30
    assert sum(counts["shared"] for counts in totals) == 30
    home.wait_until_empty()


def test_interrupted_job_of_a_private_stack_resumes_at_the_next_start(home: Home, calls: Path) -> None:
    home.environment["GISTMILL_WORKER__FAKE_SECONDS_PER_ROW"] = "0.2"
    process = home.start("summarize", str(calls), "--model", "gist-tiny")
    wait_until_submitted(process)
    wait_until(lambda: "chunk_started" in (home.path / "logs/workers.log").read_text(), timeout_s=60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "resumes" in err
    home.wait_until_empty()
    home.environment["GISTMILL_WORKER__FAKE_SECONDS_PER_ROW"] = "0"
    job = home.run("jobs", "list", "--json").json[0]
    assert job["state"] in ("queued", "running")
    assert home.run("jobs", "watch", job["id"]).status == 0
    shown = home.run("jobs", "show", job["id"], "--json").json
    assert (shown["state"], shown["counts"]["succeeded"]) == ("completed", 30)


def test_detached_job_runs_on_until_down(home: Home, calls: Path) -> None:
    done = home.run("summarize", str(calls), "--model", "gist-tiny", "--detach")
    assert done.status == 0, done.err
    job = done.out.strip()
    assert home.processes()
    second = home.run("up")
    assert second.status == 6
    assert state_of(home)["url"] in second.err
    assert home.run("jobs", "watch", job).status == 0
    assert home.run("down").status == 0
    home.wait_until_empty()


def test_killed_supervisor_leaves_no_process_and_the_next_command_goes_on(home: Home, calls: Path) -> None:
    home.environment["GISTMILL_WORKER__FAKE_SECONDS_PER_ROW"] = "0.1"
    process = home.start("summarize", str(calls), "--model", "gist-tiny", "--detach")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    os.kill(int(state_of(home)["pid"]), signal.SIGKILL)
    home.wait_until_empty()
    watched = home.run("jobs", "watch", out.strip())
    assert watched.status == 0, watched.err
    home.wait_until_empty()


def test_redis_and_api_that_die_under_a_running_stack_are_restarted(home: Home, calls: Path) -> None:
    up = home.start("up")
    wait_until_ready(home)
    for part in ("redis-server", "-m api"):
        os.kill(pid_of(home, part), signal.SIGKILL)
    done = home.run("summarize", str(calls), "--model", "gist-tiny", "--json")
    assert done.status == 0, done.err
    assert done.json["counts"]["succeeded"] == 30
    process = home.start("summarize", str(write_calls(calls, 31)), "--model", "gist-tiny")
    process.communicate(timeout=60)
    up.send_signal(signal.SIGINT)
    up.communicate(timeout=30)
    assert up.returncode == 0
    home.wait_until_empty()


def test_interrupt_on_a_running_stack_only_detaches(home: Home, calls: Path) -> None:
    home.environment["GISTMILL_WORKER__FAKE_SECONDS_PER_ROW"] = "0.2"
    up = home.start("up")
    wait_until_ready(home)
    process = home.start("summarize", str(calls), "--model", "gist-tiny")
    wait_until_submitted(process)
    wait_until(lambda: "chunk_started" in (home.path / "logs/workers.log").read_text(), timeout_s=60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "runs on" in err
    job = home.run("jobs", "list", "--json").json[0]
    assert home.run("jobs", "watch", job["id"]).status == 0
    up.terminate()
    up.communicate(timeout=30)
    assert up.returncode == 0


def test_stack_that_cannot_start_says_why(home: Home, calls: Path) -> None:
    home.environment["PATH"] = "/usr/bin:/bin"
    home.environment["GISTMILL_WORKER__LEASE_S"] = "soon"
    done = home.run("summarize", str(calls), "--model", "gist-tiny")
    assert done.status == 1
    assert "GISTMILL_WORKER__LEASE_S" in done.err
    assert "Traceback" not in done.err
    assert home.processes() == []

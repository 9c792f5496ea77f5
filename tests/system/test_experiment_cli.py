"""gistmill experiment on a running stack, with the fake engine: its trainings find no model to tune, and fail."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.support.cli import Home

pytestmark = pytest.mark.timeout(240)

ROWS = [{"id": f"r{number}", "dialogue": f"Ann: hello {number}", "summary": f"Ann says {number}."} for number in range(24)]
SMALL = ("--sample", "3", "--sweep", "name=greedy,max_new_tokens=128", "--full", "max_steps=1", "--lora", "max_steps=1")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """A file of rows with summaries."""
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def notebook(data: str, *options: str) -> tuple[str, ...]:
    """Return the command of a small experiment."""
    return ("experiment", "notebook", "--base", "gist-tiny-base", "--data", data, *SMALL, *options)


def test_failed_step_is_named_with_the_command_that_takes_it_up_again(programs: Home, data: str, tmp_path: Path) -> None:
    done = programs.run(*notebook(data, "-o", str(tmp_path / "report.md")))
    assert done.status == 1, done.err
    assert "comparison of the prompts: completed, 3 of 3 cases" in done.err
    shown = programs.run("experiment", "list", "--json").json[0]
    failed = {step["name"]: step for step in shown["steps"] if step["state"] == "failed"}
    tuning = failed["full tuning"]
    assert f"step {tuning['number']}, full tuning, failed: " in done.err
    assert f"next: gistmill jobs retry {tuning['job']}" in done.err
    assert not (tmp_path / "report.md").exists()
    text = programs.run("experiment", "report", shown["id"])
    assert (text.status, text.out.count("This part is not done yet.")) == (0, 1)
    assert "full tuning" in programs.run("experiment", "show", shown["id"]).out


def test_command_in_the_report_asks_for_the_same_again(stack: Home, data: str) -> None:
    options = ("--few-shot", "[2,5]", "--full", "learning_rate=0.002", "--generation", "num_beams=2", "--label", "team=a")
    first = stack.run(*notebook(data, *options, "--detach")).out.strip()
    report = stack.run("experiment", "report", first).out
    command = next(line for line in report.splitlines() if line.startswith("gistmill experiment notebook"))
    done = stack.run(*shlex.split(command)[1:], "--detach")
    assert done.status == 0, done.err
    asked = [stack.run("experiment", "show", job, "--json").json for job in (first, done.out.strip())]
    assert asked[0]["spec"] == asked[1]["spec"]
    for view in asked:
        stack.run("jobs", "cancel", view["id"])


def test_detached_experiment_is_cancelled_with_its_steps(stack: Home, data: str) -> None:
    done = stack.run(*notebook(data, "--detach", "--label", "team=a"))
    assert (done.status, done.out.startswith("job_")) == (0, True), done.err
    experiment = done.out.strip()
    assert stack.run("jobs", "cancel", experiment).status == 0
    view = stack.run("experiment", "show", experiment, "--json").json
    assert view["state"] == "cancelled"
    assert {step["state"] for step in view["steps"]} <= {"cancelled", "cancelling", "completed", "failed"}
    for noun in ("experiment", "jobs"):
        watched = stack.run(noun, "watch", experiment)
        assert watched.status == 1
        assert f"gistmill jobs retry {experiment}" in watched.err
        assert watched.err.count("jobs retry") == 1


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (("--sample", "99"), 1, "takes 99 rows, and the test part has 10"),
        (("--base", "nothing"), 4, "nothing"),
        (("--full", "rank=4"), 1, "rank has an effect only with method lora"),
        (("--full", "epochs"), 2, "is not NAME=VALUE"),
        (("--sweep", "num_beams=4"), 2, "has no name"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_queued(
    stack: Home, data: str, options: tuple[str, ...], status: int, message: str
) -> None:
    before = len(stack.run("jobs", "list", "--json").json)
    done = stack.run(*notebook(data, *options))
    assert (done.status, message in done.err) == (status, True), done.err
    assert len(stack.run("jobs", "list", "--json").json) == before

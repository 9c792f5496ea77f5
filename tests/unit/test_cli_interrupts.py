"""Ctrl-C at any moment of a command that submits or watches: it says what becomes of the job, and ends with 130."""

from __future__ import annotations

import io
import sys
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

import gistmill.client
from gistmill.cli import main

SUBMITTING = [
    ("summarize", "calls.jsonl"),
    ("finetune", "calls.jsonl"),
    ("evaluate", "calls.jsonl", "--models", "gist-tiny"),
    ("evaluate", "rescore", "job_1"),
    ("experiment", "notebook", "--data", "calls.jsonl"),
]


class Terminal(io.StringIO):
    """A standard error whose reader presses Ctrl-C as soon as a line holds `cue`."""

    def __init__(self, cue: str) -> None:
        super().__init__()
        self._cue = cue

    def write(self, text: str) -> int:
        length = super().write(text)
        if self._cue in text:
            raise KeyboardInterrupt
        return length


class FakeClient:
    """A client whose every job is the same one; `wait` is interrupted, and `submit` too when `accepts` is off."""

    def __init__(self, job: SimpleNamespace, *, accepts: bool, stack: SimpleNamespace | None) -> None:
        self._job = job
        self._accepts = accepts
        self.stack = stack

    def submit(self, *_: Any, **__: Any) -> SimpleNamespace:
        if not self._accepts:
            raise KeyboardInterrupt
        return self._job

    summarize = finetune = evaluate = experiment = submit

    def comparison(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(rescore=self.submit)

    def job(self, _: str) -> SimpleNamespace:
        self._job.retry = self.submit
        return self._job

    get_experiment = job


class Outcome(SimpleNamespace):
    status: int
    err: str


def make_job(state: str = "running", kind: str = "summarize", *, paused: bool = False) -> SimpleNamespace:
    def wait(**_: Any) -> None:
        raise KeyboardInterrupt

    counts = SimpleNamespace(items=1, distinct=1)
    view = SimpleNamespace(warnings=[], cases=1, kind=kind, paused=paused, counts=counts, model_dump=lambda **_: {})
    return SimpleNamespace(id="job_1", state=state, view=view, counts=counts, steps=[], wait=wait, results=wait)


def run(
    monkeypatch: pytest.MonkeyPatch,
    *arguments: str,
    cue: str = "no such line",
    job: SimpleNamespace | None = None,
    accepts: bool = True,
    stack: SimpleNamespace | None = None,
) -> Outcome:
    def connect() -> AbstractContextManager[FakeClient]:
        return nullcontext(FakeClient(job or make_job(), accepts=accepts, stack=stack))

    terminal = Terminal(cue)
    monkeypatch.setattr(gistmill.client, "Client", connect)
    monkeypatch.setattr(sys, "argv", ["gistmill", *arguments])
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(SystemExit) as ended:
        main()
    return Outcome(status=ended.value.code, err=terminal.getvalue())


@pytest.mark.parametrize("arguments", SUBMITTING, ids=" ".join)
@pytest.mark.parametrize("cue", ["submitted", "no such line"], ids=["as soon as it is told", "while it waits"])
def test_interrupt_behind_the_submission_says_that_the_job_runs_on(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], cue: str
) -> None:
    ended = run(monkeypatch, *arguments, cue=cue)
    assert ended.status == 130
    assert ended.err.endswith("detached; the job job_1 runs on. Follow it with: gistmill jobs watch job_1\n")


@pytest.mark.parametrize("arguments", SUBMITTING, ids=" ".join)
def test_interrupt_before_it_is_accepted_says_where_to_look(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    ended = run(monkeypatch, *arguments, accepts=False)
    assert ended.status == 130
    assert ended.err == "interrupted while submitting; whether the job was accepted says: gistmill jobs list\n"


@pytest.mark.parametrize("kind", ["summarize", "finetune", "experiment"])
def test_interrupted_watch_says_that_the_job_runs_on(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    ended = run(monkeypatch, "jobs", "watch", "job_1", job=make_job(kind=kind))
    assert (ended.status, ended.err) == (130, "detached; the job job_1 runs on. Follow it with: gistmill jobs watch job_1\n")


@pytest.mark.parametrize("arguments", [(), ("--output", "summaries.jsonl")], ids=["printed", "to a file"])
def test_interrupted_results_of_a_job_that_is_followed_say_that_it_runs_on(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    ended = run(monkeypatch, "jobs", "results", "job_1", "--follow", *arguments)
    assert (ended.status, ended.err) == (130, "detached; the job job_1 runs on. Follow it with: gistmill jobs watch job_1\n")


@pytest.mark.parametrize(
    ("cue", "said"), [("takes the", "detached; the job job_1 runs on."), ("no such line", "whether the job was accepted says")]
)
def test_interrupted_retry_with_a_change_says_what_becomes_of_the_new_job(
    monkeypatch: pytest.MonkeyPatch, cue: str, said: str
) -> None:
    ended = run(monkeypatch, "jobs", "retry", "job_1", "--set", "seed=2", cue=cue, accepts=cue != "no such line")
    assert ended.status == 130
    assert said in ended.err


def test_interrupted_watch_of_an_experiment_says_that_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run(monkeypatch, "experiment", "watch", "job_1")
    assert (ended.status, ended.err) == (130, "detached; the job job_1 runs on. Follow it with: gistmill jobs watch job_1\n")


@pytest.mark.parametrize(("is_kept", "said"), [(False, "resumes when gistmill starts here again"), (True, "runs on")])
def test_job_of_a_private_stack_resumes_unless_the_stack_is_kept(
    monkeypatch: pytest.MonkeyPatch, is_kept: bool, said: str
) -> None:
    ended = run(monkeypatch, "summarize", "calls.jsonl", stack=SimpleNamespace(is_private=True, is_kept=is_kept))
    assert ended.status == 130
    assert said in ended.err


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled", "cancelling"])
def test_interrupt_behind_the_end_says_how_the_job_ended(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    ended = run(monkeypatch, "summarize", "calls.jsonl", job=make_job(state))
    said = f"left; the job job_1 is {state}. Look at it with: gistmill jobs show job_1"
    assert (ended.status, ended.err.splitlines()[-1]) == (130, said)


@pytest.mark.parametrize("stack", [None, SimpleNamespace(is_private=True, is_kept=False)], ids=["running", "private"])
def test_interrupted_watch_of_a_paused_job_says_that_it_is_paused(
    monkeypatch: pytest.MonkeyPatch, stack: SimpleNamespace | None
) -> None:
    ended = run(monkeypatch, "jobs", "watch", "job_1", job=make_job(paused=True), stack=stack)
    said = "left; the job job_1 is paused. Let it go on with: gistmill jobs resume job_1\n"
    assert (ended.status, ended.err) == (130, said)

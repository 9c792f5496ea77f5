"""gistmill prompts on a running stack: from a file to a job, and what is said when it cannot be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import Home

pytestmark = pytest.mark.timeout(240)

ROWS = [{"id": f"r{number}", "dialogue": f"Ann: hello {number}", "summary": f"Ann says {number}."} for number in range(6)]
ROWS.append({"id": "bare", "dialogue": "Ben: {dialogue}"})


@pytest.fixture
def train(tmp_path: Path) -> str:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def test_template_of_a_file_becomes_a_prompt_of_versions(programs: Home, tmp_path: Path) -> None:
    path = tmp_path / "brief.txt"
    path.write_bytes(b"\xef\xbb\xbfIn one sentence:\n{dialogue}\n")
    done = programs.run("prompts", "add", "brief", "--template", str(path))
    assert (done.status, done.out) == (0, "brief@1\n"), done.err
    assert "next: gistmill prompts render brief@1" in done.err
    assert programs.run("prompts", "add", "brief", "--template", "In one sentence:\n{dialogue}\n").out == "brief@1\n"
    assert programs.run("prompts", "add", "brief", "--template", "Shorter: {dialogue}", "--json").json["version"] == 2
    assert programs.run("prompts", "show", "brief@1").out == "In one sentence:\n{dialogue}\n\n"
    assert programs.run("prompts", "show", "brief", "--json").json["template"] == "Shorter: {dialogue}"
    listed = {(view["name"], view["version"]) for view in programs.run("prompts", "list", "--json").json}
    assert listed >= {("none", 1), ("instruction", 1), ("instruction-dialogue", 1), ("brief", 1), ("brief", 2)}
    assert "instruction-dialogue" in programs.run("prompts", "list").out


def test_rows_become_examples_that_a_job_runs_with(stack: Home, train: str) -> None:
    flags = ("--kind", "few-shot", "--data", train, "--select", "[1,3]", "--model", "gist-tiny")
    done = stack.run("prompts", "add", "few-shot", *flags)
    assert (done.status, done.out) == (0, "few-shot@1\n"), done.err
    assert "2 examples" in done.err
    assert "rows 1 (id r1), 3 (id r3)" in stack.run("prompts", "show", "few-shot").err
    shown = stack.run("prompts", "render", "few-shot", train, "--row", "6")
    parts = [f"Dialogue:\nAnn: hello {row}\nSummarize the dialogue.\nAnn says {row}.\n\n" for row in (1, 3)]
    text = "".join(parts) + "Dialogue:\nBen: {dialogue}\nSummarize the dialogue.\n"
    assert shown.out == text + "\n"
    assert "next: gistmill summarize" in shown.err
    job = stack.run("summarize", train, "--model", "gist-tiny", "--prompt", "few-shot", "--json")
    assert (job.status, job.json["prompt"]) == (0, "few-shot@1"), job.err
    results = [json.loads(line) for line in stack.run("jobs", "results", job.json["id"]).out.splitlines()]
    # The words of a text are the fake engine's tokens.
    assert [result["tokens_in"] for result in results if result["id"] == "bare"] == [len(text.split())]


def test_tokens_are_shown_with_their_ids_the_round_trip_and_the_budget(stack: Home, train: str) -> None:
    flags = ("none", train, "--row", "0", "--model", "gist-tiny", "--max-input-tokens", "3")
    done = stack.run("prompts", "render", *flags, "--tokens")
    assert done.status == 0, done.err
    text, table, decoded = done.out.strip().split("\n\n")
    assert text == decoded == "Ann: hello 0"
    assert table.splitlines()[-1].split()[1:] == ["1", "</s>"]
    count = len(table.splitlines()) - 1
    assert f"{count} tokens of 3, {count - 3} too many" in done.err
    view = stack.run("prompts", "render", *flags, "--json").json
    assert (len(view["token_ids"]), view["budget"], view["decoded"]) == (count, 3, text)


def test_what_cannot_be_done_says_what_to_do(stack: Home, train: str, tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"\xe4 {dialogue}")
    shots = ("prompts", "add", "wrong", "--kind", "few-shot", "--data")
    for arguments, status, said in (
        (("summarize", train, "--model", "gist-tiny", "--prompt", "one-shot"), 4, "prompts add one-shot --kind one-shot"),
        (("prompts", "show", "instrution"), 4, "Did you mean"),
        (("prompts", "add", "none", "--template", "{dialogue}"), 6, "built-in"),
        (("prompts", "add", "../wrong", "--template", "{dialogue}"), 1, "not a name"),
        (("prompts", "add", "wrong", "--template", str(tmp_path / "nosuch.txt")), 1, "There is no file"),
        (("prompts", "add", "wrong", "--template", str(latin)), 1, "not UTF-8"),
        (("prompts", "add", "wrong", "--template", ""), 1, "empty"),
        (("prompts", "add", "wrong"), 1, "either a template"),
        ((*shots, train), 1, "--select"),
        ((*shots, f"{train}[5:]"), 1, "row 6 (id 'bare')"),
        ((*shots, train, "--select", "[1]", "--model", "gist-tiny", "--max-input-tokens", "9"), 1, "a prompt may have 9"),
        (("prompts", "add", "wrong", "--kind", "many-shot", "--data", train), 2, "many-shot"),
        (("prompts", "render", "none", train, "--row", "7"), 1, "rows 0 to 6"),
        (("prompts", "render", "none", train, "--row", "-1"), 2, "--row"),
        (("prompts", "render", "none", f"{train}[1]"), 1, "one row"),
    ):
        done = stack.run(*arguments)
        assert (done.status, said in done.err, "Traceback" in done.err) == (status, True, False), (arguments, done.err)
    assert stack.run("prompts", "show", "wrong").status == 4

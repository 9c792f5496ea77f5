"""Every command of the line on one running stack, with good and with bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Done, Home
from tests.support.servers import wait_until

pytestmark = pytest.mark.timeout(240)


def write(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def counts(done: Done) -> dict[str, int]:
    return {name: done.json["counts"][name] for name in ("items", "distinct", "generated", "shared", "failed")}


def test_every_command_answers_in_text_and_json(programs: Home, tmp_path: Path) -> None:
    calls = write(tmp_path / "calls.jsonl", {"dialogue": "A: one"}, {"dialogue": "A: two"}, {"dialogue": "A: one"})
    done = programs.run("summarize", str(calls), "--model", "gist-tiny", "--json")
    assert done.status == 0, done.err
    assert counts(done) == {"items": 3, "distinct": 2, "generated": 2, "shared": 1, "failed": 0}
    job = done.json["id"]
    assert programs.run("jobs", "list", "--json").json[0]["id"] == job
    assert job in programs.run("jobs", "list").out
    assert programs.run("jobs", "show", job, "--json").json["state"] == "completed"
    assert "completed" in programs.run("jobs", "show", job).out
    results = [json.loads(line) for line in programs.run("jobs", "results", job).out.splitlines()]
    assert [result["row"] for result in results] == [0, 1, 2]
    assert programs.run("jobs", "errors", job).out == ""
    dataset = programs.run("datasets", "add", str(calls), "--json").json
    assert (dataset["rows"], dataset["dialogues"]) == (3, 2)
    assert programs.run("datasets", "show", dataset["id"], "--json").json["id"] == dataset["id"]
    assert dataset["id"] in programs.run("datasets", "list").out
    assert "gist-tiny" in programs.run("models", "list").out
    assert programs.run("models", "show", "gist-tiny", "--json").json["architecture"] == "T5ForConditionalGeneration"
    assert programs.run("workers", "--json").json[0]["state"] in ("idle", "busy")
    rows = programs.run("sql", f"select item_id, shared from v_summaries where job_id = '{job}' order by row_number", "--json")
    assert rows.json == [{"item_id": "1", "shared": 0}, {"item_id": "2", "shared": 0}, {"item_id": "3", "shared": 1}]
    assert programs.run("version").out.strip()


def test_dry_run_says_what_the_job_would_do_and_submits_nothing(stack: Home, tmp_path: Path) -> None:
    calls = write(tmp_path / "dry.jsonl", *({"dialogue": f"A: dry {number % 30}"} for number in range(60)))
    arguments = ("summarize", str(calls), "--model", "gist-tiny", "--max-new-tokens", "31")
    before = stack.run("jobs", "list", "--json").json
    dry = stack.run(*arguments, "--dry-run", "--json").json
    assert (dry["rows"], dry["distinct"], dry["stored"], dry["to_generate"], dry["expected_s"]) == (60, 30, 0, 30, None)
    text = stack.run(*arguments, "--dry-run").out
    assert "not measured yet on this fleet" in text
    assert f"{dry['tokens_in']['total']} (p50" in text
    assert stack.run("jobs", "list", "--json").json == before

    assert stack.run(*arguments).status == 0
    more = write(tmp_path / "more.jsonl", *({"dialogue": f"A: dry {number}"} for number in range(50)))
    dry = stack.run("summarize", str(more), *arguments[2:], "--dry-run", "--json").json
    assert (dry["stored"], dry["to_generate"], dry["live_workers"]) == (30, 20, 1)
    assert dry["expected_s"] > 0
    assert dry["basis"].startswith("measured: ")
    assert "on CPU with fake" in dry["basis"]


def test_dry_run_of_bad_input_fails_as_the_job_would(stack: Home, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", {"dialogue": "A: one"}, b"{")
    for arguments in ((str(bad),), (str(bad), "--model", "nosuch"), ("nosuch.jsonl",), (str(bad), "--precision", "fp16")):
        real, dry = stack.run("summarize", *arguments), stack.run("summarize", *arguments, "--dry-run")
        assert dry.status == real.status != 0
        assert dry.err == real.err


def test_standard_input_columns_and_selection(stack: Home, tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"transcript": f"B: {number}", "key": number}).encode() + b"\n" for number in range(250))
    flags = ("--column", "dialogue=transcript", "--column", "id=key", "--select", "[::100]", "--json")
    done = stack.run("summarize", "-", "--model", "gist-tiny", *flags, stdin=lines)
    assert done.status == 0, done.err
    assert counts(done)["items"] == 3
    results = stack.run("jobs", "results", done.json["id"]).out.splitlines()
    assert [json.loads(line)["id"] for line in results] == ["0", "100", "200"]


def test_failed_items_end_with_status_3_and_are_listed(stack: Home, tmp_path: Path) -> None:
    calls = write(tmp_path / "calls.jsonl", {"dialogue": "C: fine"}, {"dialogue": "C: [[poison]]"})
    done = stack.run("summarize", str(calls), "--model", "gist-tiny", "--json")
    assert done.status == 3
    assert counts(done)["failed"] == 1
    errors = [json.loads(line) for line in stack.run("jobs", "errors", done.json["id"]).out.splitlines()]
    assert [(error["row"], error["code"]) for error in errors] == [(1, "generation_failed")]


def test_unknown_things_end_with_status_4(stack: Home, tmp_path: Path) -> None:
    calls = str(write(tmp_path / "calls.jsonl", {"dialogue": "D"}))
    for arguments in (
        ("jobs", "show", "job_none"),
        ("jobs", "cancel", "job_none"),
        ("datasets", "show", "none"),
        ("models", "show", "none"),
        ("summarize", "nothing-here"),
        ("summarize", calls, "--model", "nothing-here"),
        ("summarize", calls, "--model", "gist-tiny", "--prompt", "nothing-here"),
    ):
        done = stack.run(*arguments)
        assert (done.status, "Traceback" in done.err) == (4, False), (arguments, done.err)
        assert done.err.startswith("error: ")


def test_default_model_out_of_reach_names_what_to_do(stack: Home, tmp_path: Path) -> None:
    done = stack.run("summarize", str(write(tmp_path / "calls.jsonl", {"dialogue": "E"})))
    assert done.status != 0
    assert "models add" in done.err
    assert "--model gist-tiny" in done.err


def test_wrong_token_ends_with_status_5_and_no_server_with_1(stack: Home) -> None:
    url = json.loads((stack.path / "stack.json").read_text())["url"]
    foreign = replace(stack, environment={"GISTMILL_API__URL": url, "GISTMILL_API__TOKEN": "wrong"})
    done = foreign.run("jobs", "list")
    assert done.status == 5
    assert "GISTMILL_API__TOKEN" in done.err
    assert replace(stack, environment={"GISTMILL_API__URL": url}).run("jobs", "list").status == 5


def test_usage_errors_end_with_status_2(stack: Home) -> None:
    for arguments in (
        ("summarize",),
        ("nonsense",),
        ("jobs", "list", "--limit", "0"),
        ("summarize", "x", "--num-beams", "two"),
    ):
        assert stack.run(*arguments).status == 2, arguments


BAD_FILES = {
    "empty": (b"", "empty"),
    "not-utf8": (b'{"dialogue": "ok"}\n{"dialogue": "caf\xe9"}\n', "2: not UTF-8"),
    "broken": (b'{"dialogue": "ok"}\n{"dialogue": \n', "2: not valid JSON"),
    "column": (b'{"dialog": "ok"}\n', "Did you mean 'dialog'?"),
    "blank": (b'{"dialogue": "  "}\n', "1: 'dialogue' is empty"),
    "twice": (b'{"id": 1, "dialogue": "a"}\n{"id": 1, "dialogue": "b"}\n', "2: the id '1' was used before"),
    "huge": (b'{"dialogue": "' + b"x" * 10_000_000 + b'"}\n', "1: longer than"),
    "picture": (b"\x89PNG\r\n\x1a\n", "PNG"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_whole(stack: Home, tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    file = tmp_path / f"{name}.jsonl"
    file.write_bytes(content)
    done = stack.run("summarize", str(file), "--model", "gist-tiny")
    assert done.status == 1
    assert message in done.err
    assert "Traceback" not in done.err
    assert stack.run("sql", f"select * from v_datasets where name = '{name}'", "--json").json == []


BAD_FLAGS = {
    "negative tokens": ("--max-new-tokens", "-1"),
    "no tokens": ("--max-new-tokens", "0"),
    "absurd tokens": ("--max-new-tokens", "1000000"),
    "no beams": ("--num-beams", "0"),
    "cold": ("--do-sample", "--temperature", "0"),
    "top_p": ("--do-sample", "--top-p", "1.5"),
    "temperature alone": ("--temperature", "0.5"),
    "sampling beams": ("--do-sample", "--num-beams", "4"),
    "fp16": ("--precision", "fp16"),
    "int8 beams": ("--precision", "int8", "--num-beams", "4"),
    "overflow": ("--on-overflow", "explode"),
    "selection": ("--select", "[-1:]"),
    "no rows": ("--select", "[99:]"),
    "model path": ("--model", "../../etc/passwd"),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_parameters_are_refused_before_anything_is_queued(stack: Home, tmp_path: Path, name: str) -> None:
    calls = write(tmp_path / "calls.jsonl", {"dialogue": "F"})
    before = len(stack.run("jobs", "list", "--json").json)
    done = stack.run("summarize", str(calls), *(() if name == "model path" else ("--model", "gist-tiny")), *BAD_FLAGS[name])
    assert done.status == (4 if name == "model path" else 1), done.err
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert len(stack.run("jobs", "list", "--json").json) == before


def test_models_that_cannot_be_used_are_refused(stack: Home, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"is_encoder_decoder": true}')
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for directory, message in ((empty, "holds no"), (pickled, "--convert"), (tmp_path / "missing", "neither a directory")):
        done = stack.run("models", "add", str(directory))
        assert done.status == 1, done.err
        assert message in done.err
    done = stack.run("models", "add", str(pickled), "--name", "../escape")
    assert done.status == 1
    assert "name" in done.err


def test_misspelt_file_names_the_nearest(stack: Home, tmp_path: Path) -> None:
    write(tmp_path / "calls.jsonl", {"dialogue": "G"})
    done = stack.run("summarize", str(tmp_path / "cals.jsonl"), "--model", "gist-tiny")
    assert done.status == 1
    assert "calls.jsonl" in done.err


def test_sql_that_writes_or_reads_tables_is_refused(stack: Home) -> None:
    for query in (
        "delete from jobs",
        "select * from jobs",
        "select 1; select 2",
        "attach database 'x' as y",
        "pragma user_version",
    ):
        done = stack.run("sql", query)
        assert (done.status, "Traceback" in done.err) == (1, False), (query, done.err)


def test_cancelled_job_ends_with_status_1(stack: Home, tmp_path: Path) -> None:
    calls = write(tmp_path / "calls.jsonl", *({"dialogue": f"H: {number}"} for number in range(5)))
    job = stack.run("summarize", str(calls), "--model", "gist-tiny", "--detach").out.strip()
    wait_until(lambda: stack.run("jobs", "show", job, "--json").json["state"] == "completed", timeout_s=30)
    done = stack.run("jobs", "cancel", job)
    assert done.status == 6
    assert "completed" in done.err


def test_jobs_are_steered_by_name_and_by_selection(stack: Home, tmp_path: Path) -> None:
    calls = write(tmp_path / "calls.jsonl", *({"dialogue": f"steered {number}"} for number in range(5)))
    job = stack.run("summarize", str(calls), "--model", "gist-tiny", "--label", "team=steering", "--json").json["id"]
    over = stack.run("jobs", "pause", job)
    assert (over.status, "has completed already" in over.err) == (6, True)
    nothing = stack.run("jobs", "retry", job)
    assert (nothing.status, "Every item" in nothing.err) == (6, True)
    assert "0 jobs cancelled" in stack.run("jobs", "cancel", "--where", "label.team=steering").err
    asked = stack.run("jobs", "retry", "--where", "label.team=steering", "--where", "prompt=none")
    assert (asked.status, "0 jobs retried" in asked.err) == (0, True)
    assert stack.run("jobs", "cancel", "--where", "nonsense").status == 1
    assert stack.run("jobs", "cancel").status == 1
    assert stack.run("jobs", "cancel", job, "--state", "queued").status == 1


def test_failed_rows_become_a_new_job_with_a_changed_spec(stack: Home, tmp_path: Path) -> None:
    long = " ".join(["word"] * 60)
    calls = write(tmp_path / "calls.jsonl", {"dialogue": "short one"}, {"dialogue": long})
    done = stack.run("summarize", str(calls), "--model", "gist-tiny", "--max-input-tokens", "40", "--json")
    assert (done.status, counts(done)["failed"]) == (3, 1)
    job = done.json["id"]
    assert stack.run("jobs", "retry", job, "--retryable").status == 6
    new = stack.run("jobs", "retry", job, "--set", "max_input_tokens=4096", "--json").json
    assert (new["retry_of"], new["counts"]["items"]) == (job, 1)
    watched = stack.run("jobs", "watch", new["id"], "--json")
    assert (watched.status, watched.json["counts"]["succeeded"]) == (0, 1)
    assert stack.run("jobs", "retry", job, "--set", "dataset=other").status == 1

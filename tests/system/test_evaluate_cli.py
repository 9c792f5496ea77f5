"""gistmill evaluate and compare on a running stack: from files to figures, files and gates, and what is said when it fails."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.support.cli import Home

pytestmark = pytest.mark.timeout(240)

ROWS = [{"id": f"r{n}", "dialogue": f"Ann: bring part {n}\nBen: yes", "summary": f"Ann asks for part {n}."} for n in range(6)]
RESULTS = ",human,original,full\n" + "".join(f"{n},Ann asks for part {n}.,Ben says yes,Ann asks for {n}\n" for n in range(6))


@pytest.fixture
def results(tmp_path: Path) -> tuple[str, ...]:
    """The flags that name a file of summaries."""
    path = tmp_path / "results.csv"
    path.write_text(RESULTS)
    return "--predictions", str(path), "--reference-column", "human", "--prediction-columns", "original,full"


@pytest.fixture
def calls(tmp_path: Path) -> str:
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def test_models_are_compared_and_read_back_in_every_form(programs: Home, calls: str, tmp_path: Path) -> None:
    done = programs.run("evaluate", calls, "--models", "gist-tiny,gist-tiny-base", "--limit", "5", "--resamples", "200")
    assert done.status == 0, done.err
    job = done.err.partition("submitted ")[2].partition(":")[0]
    assert "5 of 5 cases of calls[0:5] are scored." in done.out
    assert "Signature: metrics:rouge_score" in done.out
    assert f"next: gistmill compare worst {job} --by delta" in done.err
    assert programs.run("compare", "show", job).out == done.out
    view = programs.run("compare", "show", job, "--json").json
    assert (view["state"], view["counts"], view["baseline"]) == ("completed", {"scored": 5}, "gist-tiny")
    assert job in programs.run("compare", "list").out
    for suffix in ("csv", "parquet", "md", "svg"):
        written = programs.run("compare", "show", job, "-o", str(tmp_path / f"out.{suffix}"))
        assert (written.status, (tmp_path / f"out.{suffix}").stat().st_size > 200) == (0, True), written.err
    assert programs.run("compare", "items", job, "-o", str(tmp_path / "wide.csv")).status == 0
    with (tmp_path / "wide.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["gist-tiny"] for row in rows] == [row["gist-tiny-base"] for row in rows]
    worst = [json.loads(line) for line in programs.run("compare", "worst", job, "--limit", "2", "--json").out.splitlines()]
    assert [line["delta"] for line in worst] == [0.0, 0.0]
    again = programs.run("evaluate", "rescore", job, "--no-stemming", "--json")
    assert (again.status, again.json["systems"][0]["job"]) == (0, view["systems"][0]["job"])
    count = "select count(*) n from v_scores where job_id = '" + job + "'"
    assert programs.run("sql", count, "--json").json == [{"n": 5 * 2 * 4}]


def test_case_that_a_model_failed_on_is_said_by_the_exit_status(stack: Home, tmp_path: Path) -> None:
    path = tmp_path / "one-too-long.jsonl"
    rows = [{"dialogue": text, "summary": "Ann greets."} for text in ("Ann: hi " * 50, "Ann: hello", "Ann: good morning")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = stack.run("evaluate", str(path), "--models", "gist-tiny", "--max-input-tokens", "40", "--resamples", "200")
    assert (done.status, "2 of 3 cases" in done.out) == (3, True), done.err


def test_columns_of_a_file_are_compared_and_judged_by_a_gate(stack: Home, results: tuple[str, ...]) -> None:
    done = stack.run("evaluate", *results, "--json")
    assert done.status == 0, done.err
    job = done.json["id"]
    assert [system["name"] for system in done.json["systems"]] == ["original", "full"]
    assert stack.run("compare", "gate", job, "full.rougeLsum - original.rougeLsum > 5 @95%").status == 0
    assert stack.run("compare", "gate", job, "full.rougeLsum - original.rougeLsum > 99 @95%").status == 7
    wrong = stack.run("compare", "gate", job, "full.rougeLsum >")
    assert (wrong.status, "Traceback" in wrong.err) == (1, False), wrong.err


def test_detached_evaluation_runs_on_and_is_watched_to_its_end(stack: Home, results: tuple[str, ...]) -> None:
    done = stack.run("evaluate", *results, "--detach")
    assert done.status == 0, done.err
    job = done.out.strip()
    assert stack.run("jobs", "watch", job).status == 0
    assert stack.run("compare", "show", job, "--json").json["state"] == "completed"


def test_what_cannot_be_evaluated_says_what_to_do(stack: Home, calls: str, results: tuple[str, ...], tmp_path: Path) -> None:
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"dialogue": "Ann: hi"}\n')
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps(ROWS[0]) + "\n")
    models = ("--models", "gist-tiny,gist-tiny-base")
    for arguments, status, said in (
        (("evaluate", str(bare), *models), 1, "None of the 1 rows of 'bare' has a reference summary"),
        (("evaluate", calls, *models, "--baseline", "gist"), 1, "baseline 'gist' is not among gist-tiny, gist-tiny-base"),
        (("evaluate", calls, "--models", "gist-tiny,gist-tiny"), 1, "NAME=MODEL"),
        (("evaluate", calls, "--models", "nosuch"), 4, "no model 'nosuch'"),
        (("evaluate", calls, *models, "--metrics", "../x"), 1, "never a path"),
        (("evaluate", calls, *models, "--metrics", "bleu"), 1, "GISTMILL_WORKER__METRICS_DIR"),
        (("evaluate", calls, *models, "-o", str(tmp_path / "out.xlsx")), 1, ".csv, .parquet, .md, .svg"),
        (("evaluate", calls, *models, "-o", str(tmp_path / "no" / "out.csv")), 2, "there is no directory"),
        (("evaluate", *results, "--data", str(short)), 1, "have 6 rows and the data 'short' has 1"),
        (("evaluate", calls, *results), 2, "--data"),
        (("evaluate", *results[:4], "--prediction-columns", "peft"), 1, "no column 'peft'"),
        (("evaluate", "rescore", "job_nope"), 4, "compare list"),
        (("compare", "show", "job_nope"), 4, "no evaluation 'job_nope'"),
        (("compare", "items", "job_nope", "-o", str(tmp_path / "x.txt")), 2, ".csv or .jsonl"),
    ):
        done = stack.run(*arguments)
        assert (done.status, said in done.err, "Traceback" in done.err) == (status, True, False), (arguments, done.err)

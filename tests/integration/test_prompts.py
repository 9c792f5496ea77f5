"""Prompts of users in SQL, and the jobs that they decide."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from gistmill import prompts, readback
from gistmill.control.selection import JobSelection, count
from gistmill.db import prompts as prompt_rows
from gistmill.db.check import check
from gistmill.db.session import Database
from gistmill.db.tables import dialogues, jobs, recipes, tenants
from gistmill.errors import UnknownDataset, UnknownPrompt
from gistmill.specs import FinetuneSpec, parse_spec
from gistmill.submit import draft_examples, draft_template, load_dataset_file, submit_job
from gistmill.views import PromptView
from tests.support.bench import Bench
from tests.support.finetune import add_model, load_pairs, submit_finetune
from tests.support.jobs import first_tenant, make_worker, take
from tests.support.meanwhile import meanwhile
from tests.support.rows import add
from workers.engine.fake import FakeEngine
from workers.handlers.training_data import write_data

PAIRS = [(f"Ann: hello {number} {{dialogue}}", f"Ann says hello {number}.") for number in range(12)]


def add_template(database: Database, name: str, template: str, *, tenant: int | None = None) -> tuple[PromptView, bool]:
    return prompt_rows.add(database, tenant or first_tenant(database), draft_template(name, template))


def add_shots(database: Database, dataset: str, selection: str, *, name: str = "shots") -> PromptView:
    tenant = first_tenant(database)
    new = draft_examples(database, tenant, name, kind="few-shot", dataset=dataset, selection=selection)
    return prompt_rows.add(database, tenant, new)[0]


def get(database: Database, reference: str, *, tenant: int | None = None) -> prompts.PromptTemplate:
    owner = tenant or first_tenant(database)
    with database.read() as connection:
        return prompt_rows.get(connection, owner, reference)


def shown_by(database: Database, reference: str, *, tenant: int | None = None) -> frozenset[int]:
    owner = tenant or first_tenant(database)
    with database.read() as connection:
        return prompt_rows.example_dialogues(connection, owner, reference)


def add_tenant(database: Database, name: str = "other") -> int:
    return database.transact(lambda connection: add(connection, tenants, name=name))


def submit(database: Database, dataset: str, prompt: str, *, tenant: int | None = None) -> Any:
    """Submit a summarize job; return its row."""
    owner = tenant or first_tenant(database)
    model = add_model(database, uuid.uuid4().hex, tenant_key=owner)
    spec = parse_spec({"dataset": dataset, "model": "any", "prompt": prompt})
    job_id = submit_job(database, owner, spec, resolve_model=lambda reference: model)[0]
    with database.read() as connection:
        query = select(jobs, recipes.c.body).join(recipes, recipes.c.key == jobs.c.recipe_key)
        return connection.execute(query.where(jobs.c.id == job_id)).one()


def noted(bench: Bench) -> list[str]:
    """Let the bench run an engine that notes what it reads; return the notes."""
    read: list[str] = []

    class Noting(FakeEngine):
        """Notes what it is asked."""

        def _encode(self, texts: Sequence[str], limit: int | None) -> list[list[int]]:
            read.extend(texts)
            return super()._encode(texts, limit)

    bench.engine = Noting
    return read


def test_equal_text_keeps_its_version_and_another_one_is_the_next(database: Database) -> None:
    first, is_new = add_template(database, "brief", "Briefly: {dialogue}")
    assert (first.version, is_new) == (1, True)
    assert add_template(database, "brief", "Briefly: {dialogue}") == (first, False)
    assert add_template(database, "brief", "In short: {dialogue}")[0].version == 2
    assert add_template(database, "brief", "Briefly: {dialogue}") == (first, False)
    assert get(database, "brief").reference == "brief@2"
    assert get(database, "brief@1").render("x") == "Briefly: x"
    for reference in ("brief@3", "brief@0", "brief@-1", "brief@", "brief@x", "brief@²", f"brief@{10**30}"):
        with pytest.raises(UnknownPrompt, match="newest version is brief@2"):
            get(database, reference)
    with pytest.raises(UnknownPrompt, match="Did you mean 'brief'"):
        get(database, "breif")
    assert check(database) == []


def test_equal_text_that_is_committed_meanwhile_keeps_its_version(database: Database) -> None:
    first_tenant(database)
    with meanwhile(database, lambda: add_template(database, "brief", "Short: {dialogue}", tenant=1)):
        view, is_new = add_template(database, "brief", "Short: {dialogue}", tenant=1)
    assert (view.version, is_new) == (1, False)


def test_two_that_add_at_once_get_versions_of_their_own(database: Database) -> None:
    start = threading.Barrier(4)
    versions: list[int] = []

    def work(number: int) -> None:
        start.wait()
        versions.append(add_template(database, "brief", f"{number}: {{dialogue}}")[0].version)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [1, 2, 3, 4]


def test_examples_are_rows_with_their_first_reference(database: Database, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"id": "a", "dialogue": "A: {dialogue}", "references": [" ", "first", "second"]}, {"dialogue": "B"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_dataset_file(database, first_tenant(database), path, name="pairs")[0]
    view = add_shots(database, "pairs", "[0]")
    assert view.examples == [{"row": 0, "id": "a", "dialogue": "A: {dialogue}", "summary": "first"}]
    assert view.dataset == data.id
    assert get(database, "shots").render("C: {dialogue}") == (
        "Dialogue:\nA: {dialogue}\nSummarize the dialogue.\nfirst\n\nDialogue:\nC: {dialogue}\nSummarize the dialogue.\n"
    )


def test_dialogues_of_examples_are_found_in_every_dataset_of_the_tenant(database: Database, tmp_path: Path) -> None:
    load_pairs(database, tmp_path, PAIRS, name="train")
    load_pairs(database, tmp_path, [("Zed: new", "Zed."), PAIRS[7]], name="test")
    add_shots(database, "train", "[3,7]")
    shown = shown_by(database, "shots@1")
    with database.read() as connection:
        texts = set(connection.scalars(select(dialogues.c.text).where(dialogues.c.key.in_(shown))))
    assert texts == {PAIRS[3][0], PAIRS[7][0]}
    add_template(database, "brief", "{dialogue}!")
    assert shown_by(database, "brief") == shown_by(database, "instruction") == frozenset()


def test_same_text_written_by_hand_shows_no_rows(database: Database, tmp_path: Path) -> None:
    load_pairs(database, tmp_path, [("Ann: hello", "Ann says hello.")], name="train")
    shots = add_shots(database, "train", "[0]")
    by_hand, is_new = add_template(database, "shots", shots.template)
    assert (by_hand.digest, by_hand.version, is_new) == (shots.digest, 2, True)
    assert (len(shown_by(database, "shots@1")), len(shown_by(database, "shots@2"))) == (1, 0)
    assert add_shots(database, "train", "[0]") == shots


def test_tenants_have_prompts_of_their_own(database: Database, tmp_path: Path) -> None:
    mine, theirs = first_tenant(database), add_tenant(database)
    load_pairs(database, tmp_path, PAIRS, name="train")
    add_shots(database, "train", "[1]")
    assert [view.name for view in readback.list_prompts(database, theirs).data] == list(prompts.BUILT_IN)
    for read in (get, shown_by):
        with pytest.raises(UnknownPrompt):
            read(database, "shots@1", tenant=theirs)
    with pytest.raises(UnknownPrompt):
        readback.get_prompt(database, theirs, "shots")
    with pytest.raises(UnknownDataset):
        draft_examples(database, theirs, "shots", kind="few-shot", dataset="train", selection="[1]")
    with pytest.raises(UnknownDataset):
        readback.render_prompt(database, theirs, "none", dataset="train", row=0)
    before = shown_by(database, "shots@1")
    load_dataset_file(database, theirs, tmp_path / "train.jsonl", name="train")
    assert shown_by(database, "shots@1") == before
    view, is_new = add_template(database, "shots", "Theirs: {dialogue}", tenant=theirs)
    assert (view.version, is_new) == (1, True)
    assert get(database, "shots", tenant=mine).version == 1
    assert get(database, "shots", tenant=mine).render("x") != "Theirs: x"


def test_worker_reads_each_tenants_own_prompt_of_the_same_name(bench: Bench, tmp_path: Path) -> None:
    read = noted(bench)
    database = bench.database
    load_pairs(database, tmp_path, PAIRS[:2], name="train")
    for tenant, word in ((first_tenant(database), "Mine"), (add_tenant(database), "Theirs")):
        load_dataset_file(database, tenant, tmp_path / "train.jsonl", name="train")
        add_template(database, "brief", f"{word}: {{dialogue}}", tenant=tenant)
        submit(database, "train", "brief", tenant=tenant)
        bench.runner.work()
    assert sorted(read) == sorted(f"{word}: {text}" for word in ("Mine", "Theirs") for text, _ in PAIRS[:2])


def test_jobs_are_selected_by_the_name_of_a_prompt_or_by_a_version(database: Database, tmp_path: Path) -> None:
    data = load_pairs(database, tmp_path, PAIRS)
    for name in ("a_b", "a_b", "axb"):
        add_template(database, name, f"{uuid.uuid4()} {{dialogue}}")
        submit(database, data.id, name)
    submit(database, data.id, "instruction")
    for value, wanted in (("a_b", 2), ("a_b@2", 1), ("axb", 1), ("a", 0), ("instruction", 1), ("%", 0)):
        matched, _ = count(database, first_tenant(database), "cancel", JobSelection((f"prompt={value}",)))
        assert (value, matched) == (value, wanted)


def test_list_goes_page_by_page_from_the_built_in_ones_to_the_newest_of_each_name(database: Database) -> None:
    for name in ("b", "a"):
        for text in ("one", "two"):
            add_template(database, name, f"{text} {{dialogue}}")
    seen: list[str] = []
    after = None
    while True:
        page = readback.list_prompts(database, first_tenant(database), limit=2, after=after)
        seen += [f"{view.name}@{view.version}" for view in page.data]
        after = page.next
        if not page.has_more:
            break
    assert seen == ["none@1", "instruction@1", "instruction-dialogue@1", "a@2", "a@1", "b@2", "b@1"]


def test_job_keeps_the_version_that_it_was_submitted_with(bench: Bench, tmp_path: Path) -> None:
    """What the engine reads of each row is what `render` shows of it."""
    read = noted(bench)
    database, tenant = bench.database, first_tenant(bench.database)
    data = load_pairs(database, tmp_path, PAIRS, name="train")
    add_shots(database, "train", "[3,7]")
    job = submit(database, data.id, "shots")
    add_template(database, "shots", "Newer: {dialogue}")
    assert job.spec["prompt"] == "shots@1"
    assert job.body["prompt"] == get(database, "shots@1").digest
    bench.runner.work()
    rendered = [readback.render_prompt(database, tenant, "shots@1", dataset=data.id, row=row).text for row in range(12)]
    assert sorted(read) == sorted(rendered)
    assert readback.get_job(database, tenant, job.id).counts.generated == 12
    newer = submit(database, data.id, "shots")
    assert (newer.spec["prompt"], newer.recipe_key == job.recipe_key) == ("shots@2", False)
    bench.runner.work()
    assert sorted(read[12:]) == sorted(f"Newer: {text}" for text, _ in PAIRS)
    assert check(database) == []


def test_built_in_prompt_stays_a_plain_name_in_the_spec(database: Database, tmp_path: Path) -> None:
    data = load_pairs(database, tmp_path, PAIRS)
    assert submit(database, data.id, "instruction@1").spec["prompt"] == "instruction"


def test_unknown_prompt_of_a_job_is_refused_before_anything_is_written(database: Database, tmp_path: Path) -> None:
    data = load_pairs(database, tmp_path, PAIRS)
    for prompt in ("few-shot", "nothing@1"):
        with pytest.raises(UnknownPrompt):
            submit(database, data.id, prompt)
        with pytest.raises(UnknownPrompt):
            submit_finetune(database, add_model(database, f"base{prompt}"), data.id, prompt=prompt)
    assert readback.list_jobs(database, first_tenant(database)).data == []


def test_training_reads_its_rows_in_the_frozen_prompt(database: Database, tmp_path: Path) -> None:
    data = load_pairs(database, tmp_path, PAIRS)
    add_template(database, "tune", "Old {dialogue} end")
    submit_finetune(database, add_model(database), data.id, prompt="tune")
    add_template(database, "tune", "New {dialogue}")
    claim = take(database, make_worker(database, "trainer", kinds=("finetune",)))
    assert claim is not None
    spec = FinetuneSpec.model_validate(claim.spec)
    assert spec.prompt == "tune@1"
    written = write_data(database, claim, spec, tmp_path, lambda: None)
    lines = [json.loads(line) for line in written.train_file.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [f"Old {text} end" for text, _ in PAIRS]

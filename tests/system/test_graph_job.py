"""A whole job under the engine graph on a CPU: command, api, queue, worker process, SQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from gistmill import prompts
from gistmill.db.session import open_database
from gistmill.db.tables import generations
from gistmill.specs import GenerationParameters, SummarizeSpec
from models_store.builtin.dialogues import generate
from tests.integration.test_engine_conformance import GIST_TINY
from tests.integration.test_engine_conformance import complete as complete_with
from tests.support.cli import Home
from workers.engine.base import Completion, Prompt
from workers.engine.loading import load_engine

pytestmark = pytest.mark.timeout(240)
DIALOGUES = [example.dialogue for example in generate(40, seed=11, split="held_out")]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    environment = {"GISTMILL_WORKER__ENGINE": "graph", "GISTMILL_WORKER__THREADS": "1", "GISTMILL_WORKER__LEASE_S": "10"}
    made = Home(tmp_path / "home", environment)
    yield made
    made.clean_up()


def test_job_under_graph_writes_the_summaries_of_transformers_into_sql(home: Home, tmp_path: Path) -> None:
    calls, out = tmp_path / "calls.jsonl", tmp_path / "out.jsonl"
    calls.write_text("".join(json.dumps({"dialogue": dialogue}) + "\n" for dialogue in DIALOGUES))

    done = home.run("summarize", str(calls), "--model", "gist-tiny", "--max-new-tokens", "40", "-o", str(out), "--json")

    assert done.status == 0, done.err
    template = prompts.get(SummarizeSpec(dataset="x", model="gist-tiny").prompt)
    engine = load_engine("transformers", GIST_TINY, device="cpu", precision="float32")
    asked = [Prompt(key, template.render(dialogue)) for key, dialogue in enumerate(DIALOGUES)]
    wanted = complete_with(engine, asked, GenerationParameters(max_new_tokens=40))
    texts = [outcome.text for _, outcome in sorted(wanted.items()) if isinstance(outcome, Completion)]
    assert [json.loads(line)["summary"] for line in out.read_text().splitlines()] == texts
    assert len(set(texts)) > 20
    database = open_database(f"sqlite:///{home.path / 'gistmill.db'}")
    with database.read() as connection:
        ran_on = connection.execute(select(generations.c.engine, generations.c.device, generations.c.dtype).distinct()).all()
    database.close()
    assert [tuple(row) for row in ran_on] == [("graph", "cpu", "float32")]

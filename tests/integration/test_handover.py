"""A job that waits for another one's model is, when that is there, what it would have been if it had been there at submit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import select, update

from gistmill import prompts
from gistmill.db import models
from gistmill.db.check import check
from gistmill.db.jobs import insert_job_row
from gistmill.db.prompts import NewPrompt, add
from gistmill.db.session import Database
from gistmill.db.tables import models as model_rows
from gistmill.db.tables import recipes
from gistmill.specs import SummarizeSpec, recipe
from tests.support.graphs import TEXTS, complete, plan, states, write
from tests.support.jobs import first_tenant, job_row, make_job

MANIFEST = {"architecture": "T5ForConditionalGeneration", "parameters": 1, "dtype": "float32"}


def make_model(database: Database, name: str, *, job: int | None = None, base_digest: str | None = None) -> None:
    """Register a model; with a base it is an adapter, with a job it is that one's."""
    models.register(
        database,
        first_tenant(database),
        MANIFEST,
        name=name,
        digest=f"{name}-digest",
        weight_bytes=1,
        source="a test",
        kind="model" if base_digest is None else "adapter",
        base_digest=base_digest,
    )
    made = update(model_rows).where(model_rows.c.name == name).values(job_key=job)
    database.transact(lambda connection: connection.execute(made))


def make_user_of(database: Database, maker: int, prompt: str = "instruction") -> int:
    """Write a job that runs what `maker` will make."""
    spec = SummarizeSpec(dataset="test", model="job:x", prompt=prompt)
    return write(database, plan(database, spec, (), model_job_key=maker))


def body_of(database: Database, row: Any) -> Any:
    with database.read() as connection:
        return connection.execute(select(recipes.c.body).where(recipes.c.key == row["recipe_key"])).scalar_one()


def expect(row: Any, prompt_digest: str, model_digest: str) -> dict[str, Any]:
    return recipe(SummarizeSpec.model_validate(row["spec"]), model_digest=model_digest, prompt_digest=prompt_digest)


def test_job_gets_the_model_that_it_waited_for_and_its_recipe(database: Database) -> None:
    maker = make_job(database, TEXTS)
    user = make_user_of(database, maker)
    row = job_row(database, user)
    assert (row["state"], row["model_key"], row["recipe_key"], row["model_digest"]) == ("waiting", None, None, "")
    make_model(database, "tuned", job=maker)
    complete(database, maker)
    row = job_row(database, user)
    assert (row["state"], row["model_digest"], row["spec"]["model"]) == ("queued", "tuned-digest", "tuned@1")
    assert row["model_key"] == models.resolve(database, first_tenant(database), "tuned@1").key
    assert body_of(database, row) == expect(row, prompts.BUILT_IN["instruction"].digest, "tuned-digest")
    assert check(database) == []


def test_job_that_waited_for_an_adapter_runs_it_on_its_base(database: Database) -> None:
    make_model(database, "base")
    maker = make_job(database, TEXTS)
    user = make_user_of(database, maker)
    make_model(database, "lora", job=maker, base_digest="base-digest")
    complete(database, maker)
    row = job_row(database, user)
    version = models.resolve(database, first_tenant(database), "base@1+lora@1")
    assert (row["spec"]["model"], row["model_key"], row["model_digest"]) == ("base@1+lora@1", version.key, version.digest)
    assert body_of(database, row)["model"] == version.digest


def test_job_is_released_with_the_users_own_prompt(database: Database) -> None:
    tenant = first_tenant(database)
    add(database, tenant, NewPrompt("mine", "Say it: ", "."))
    maker = make_job(database, TEXTS)
    user = make_user_of(database, maker, "mine@1")
    make_model(database, "tuned", job=maker)
    complete(database, maker)
    row = job_row(database, user)
    assert body_of(database, row) == expect(row, prompts.digest_of("Say it: ", "."), "tuned-digest")


def test_job_whose_maker_completed_without_a_model_fails_and_says_so(database: Database) -> None:
    maker = make_job(database, TEXTS)
    user = make_user_of(database, maker)
    complete(database, maker)
    row = job_row(database, user)
    assert (row["state"], row["error"]["code"]) == ("failed", "dependency_failed")
    assert f"{job_row(database, maker)['id']}, whose model this one needs" in row["error"]["message"]


def test_job_whose_base_is_gone_fails_and_says_so(database: Database) -> None:
    maker = make_job(database, TEXTS)
    user = make_user_of(database, maker)
    make_model(database, "lora", job=maker, base_digest="base-digest")
    complete(database, maker)
    row = job_row(database, user)
    assert (row["state"], row["error"]["code"]) == ("failed", "dependency_failed")
    assert "The base of lora@1" in row["error"]["message"]


def test_job_that_is_written_when_the_model_is_there_is_queued_with_it(database: Database) -> None:
    maker = make_job(database, TEXTS)
    make_model(database, "tuned", job=maker)
    complete(database, maker)
    user = make_user_of(database, maker)
    assert states(database, user) == ["queued"]
    assert job_row(database, user)["model_digest"] == "tuned-digest"


def test_jobs_that_need_each_other_are_written_in_one_transaction(database: Database) -> None:
    maker, chunks = plan(database, SummarizeSpec(dataset="test", model="fake"), ())
    with database.write() as connection:
        first = insert_job_row(connection, maker, chunks)
        second = insert_job_row(connection, replace(maker, model_job_key=first.key), chunks)
    assert states(database, first.key, second.key) == ["queued", "waiting"]

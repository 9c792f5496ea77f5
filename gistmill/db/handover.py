"""What a job that waited for another one's model is given when that model is there."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from gistmill.db import prompts, references
from gistmill.db.recipes import find_or_add_recipe
from gistmill.db.references import ADAPTER, label
from gistmill.db.tables import jobs, models
from gistmill.errors import DependencyFailed, NotFound
from gistmill.specs import SummarizeSpec, combined_digest, recipe
from gistmill.states import JobKind


def take_model(connection: Connection, job: Row[Any]) -> dict[str, Any]:
    """Return the values of the job's row that name the model which it waited for; nothing when it waited for none.

    Raises:
        DependencyFailed: the model or its base is not there, or the prompt.
    """
    if job.model_job_key is None or job.model_key is not None:
        return {}
    named = connection.execute(select(models).where(models.c.job_key == job.model_job_key)).one_or_none()
    if named is None:
        maker = connection.scalar(select(jobs.c.id).where(jobs.c.key == job.model_job_key))
        raise DependencyFailed(f"The job {maker}, whose model this one needs, has completed without a model.")
    try:
        return _name(connection, job, named, references.base_of(connection, named))
    except NotFound as error:
        raise DependencyFailed(error.message) from error


def _name(connection: Connection, job: Row[Any], named: Row[Any], base: Row[Any]) -> dict[str, Any]:
    """Return what would stand in the row if the model had been there at submit."""
    is_adapter = named.kind == ADAPTER
    digest = combined_digest(base.digest, named.digest if is_adapter else None)
    spec = job.spec | {"model": f"{label(base)}+{label(named)}" if is_adapter else label(named)}
    values = {"model_key": named.key, "model_digest": digest, "spec": spec}
    return values | _add_recipe(connection, job, spec, digest) if job.kind == JobKind.SUMMARIZE else values


def _add_recipe(connection: Connection, job: Row[Any], body: dict[str, Any], model_digest: str) -> dict[str, Any]:
    spec = SummarizeSpec.model_validate(body)
    prompt = prompts.get(connection, job.tenant_key, spec.prompt)
    made = recipe(spec, model_digest=model_digest, prompt_digest=prompt.digest)
    return {"recipe_key": find_or_add_recipe(connection, job.tenant_key, made)}

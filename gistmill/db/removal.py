"""A removed model version is offered to no new job. Its row and its files stay: results refer to them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, not_, select, update

from gistmill.db import references
from gistmill.db.clock import db_now
from gistmill.db.model_views import view_of
from gistmill.db.references import ADAPTER, label
from gistmill.db.session import Database
from gistmill.db.tables import jobs, model_aliases, models
from gistmill.errors import Conflict, InvalidInput
from gistmill.states import FINAL_JOB_STATES
from gistmill.views import ModelView


def remove_model(database: Database, tenant_key: int, reference: str) -> ModelView:
    """Remove the version that name@version means, and return it.

    Raises:
        InvalidInput: the reference does not say which version.
        UnknownModel: there is none, or it was removed before.
        Conflict: a job that has not ended uses it, an adapter stands on it, or an alias means it.
    """
    name, at, _ = reference.partition("@")
    if not at or "+" in reference:
        raise InvalidInput(f"Removing needs one version: write NAME@VERSION, such as {name.rpartition('+')[2] or 'mine'}@1.")

    def write(connection: Connection) -> ModelView:
        row = references.get(connection, tenant_key, reference).named
        _check_unused(connection, row)
        changed = update(models).where(models.c.key == row.key).values(removed_at=db_now())
        return view_of(connection, connection.execute(changed.returning(models)).one())

    return database.transact(write)


def _check_unused(connection: Connection, row: Row[Any]) -> None:
    """Raise Conflict when something still needs the version."""
    is_live = (jobs.c.model_key == row.key, not_(jobs.c.state.in_(FINAL_JOB_STATES)))
    job_id = connection.scalar(select(jobs.c.id).where(*is_live).order_by(jobs.c.key).limit(1))
    if job_id is not None:
        raise Conflict(f"The job {job_id} uses {label(row)} and has not ended. Wait for it, or cancel it first.")
    adapter = _find_adapter(connection, row)
    if adapter is not None:
        raise Conflict(f"The adapter {label(adapter)} stands on {label(row)}. Remove the adapter first.")
    alias = connection.scalar(select(model_aliases.c.alias).where(model_aliases.c.model_key == row.key).limit(1))
    if alias is not None:
        raise Conflict(f"The alias '{alias}' means {label(row)}. Delete it first: gistmill models alias {alias} --delete")


def _find_adapter(connection: Connection, row: Row[Any]) -> Row[Any] | None:
    """Return an adapter that has no other base than this version; the same files may have another name."""
    if row.kind == ADAPTER:
        return None
    others = (models.c.tenant_key == row.tenant_key, models.c.removed_at.is_(None), models.c.key != row.key)
    same_files = select(models.c.key).where(*others, models.c.digest == row.digest)
    if connection.scalar(same_files.limit(1)) is not None:
        return None
    return connection.execute(select(models).where(*others, models.c.base_digest == row.digest).limit(1)).one_or_none()

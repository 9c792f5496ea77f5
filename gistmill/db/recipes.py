"""Recipes: everything but the dialogue that decides a text, stored once per tenant."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from gistmill.db.tables import recipes
from gistmill.specs import digest_of


def find_or_add_recipe(connection: Connection, tenant_key: int, body: dict[str, Any]) -> int:
    """Return the key of the tenant's recipe with this body."""
    digest = digest_of(body)
    query = select(recipes.c.key).where(recipes.c.tenant_key == tenant_key, recipes.c.digest == digest)
    key = connection.execute(query).scalar_one_or_none()
    if key is None:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        values = {"tenant_key": tenant_key, "digest": digest, "body": body}
        connection.execute(dialect.insert(recipes).values(values).on_conflict_do_nothing())
        key = connection.execute(query).scalar_one()
    return int(key)

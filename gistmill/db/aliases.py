"""Other names for model versions: an alias means one version until it is moved."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select, update

from gistmill.db import references
from gistmill.db.model_views import view_of
from gistmill.db.session import Database
from gistmill.db.tables import model_aliases, models
from gistmill.errors import NameTaken, UnknownModel
from gistmill.views import ModelView


def set_alias(database: Database, tenant_key: int, alias: str, reference: str) -> ModelView:
    """Let the alias mean the version that the reference means now, and return that version; an alias that exists is moved.

    Raises:
        NameTaken: a model has this name.
        UnknownModel, InvalidInput, UnsupportedModel: the reference means nothing.
    """

    def write(connection: Connection) -> ModelView:
        named = references.get(connection, tenant_key, reference).named
        is_name = (models.c.tenant_key == tenant_key, models.c.name == alias)
        if connection.scalar(select(models.c.key).where(*is_name).limit(1)) is not None:
            raise NameTaken(f"There is a model '{alias}': an alias needs a name of its own.")
        _put(connection, tenant_key, alias, named.key)
        return view_of(connection, named)

    return database.transact(write)


def delete_alias(database: Database, tenant_key: int, alias: str) -> None:
    """Take the alias away; the version that it meant stays.

    Raises:
        UnknownModel: there is no such alias.
    """
    statement = delete(model_aliases).where(model_aliases.c.tenant_key == tenant_key, model_aliases.c.alias == alias)
    if database.transact(lambda connection: connection.execute(statement).rowcount) == 0:
        raise UnknownModel(f"There is no alias '{alias[:120]}'. Aliases stand beside their models in: gistmill models list")


def _put(connection: Connection, tenant_key: int, alias: str, model_key: int) -> None:
    is_alias = (model_aliases.c.tenant_key == tenant_key, model_aliases.c.alias == alias)
    if connection.execute(update(model_aliases).where(*is_alias).values(model_key=model_key)).rowcount == 0:
        connection.execute(insert(model_aliases).values(tenant_key=tenant_key, alias=alias, model_key=model_key))

"""Bring a database to this version's tables and views."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select, text

from gistmill.db import reader
from gistmill.db.check import check
from gistmill.db.session import Database
from gistmill.db.tables import tenants
from gistmill.db.views import VIEWS, postgresql_views, sqlite_views

__all__ = ["DEFAULT_TENANT", "check", "current_version", "run_migrations", "upgrade"]

log = structlog.get_logger(__name__)

DEFAULT_TENANT = "default"
# Any number will do, as long as every process takes the same.
ADVISORY_LOCK = 4_715_202_601


def upgrade(database: Database) -> None:
    """Run the missing migrations, make all views anew and see to the tenant 'default': one transaction, whole or not at all.

    Any number of processes may call it at once: each waits for the one before.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    with _alone(database), database.write() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})
        before = _version(connection)
        _drop_views(connection)
        run_migrations(connection)
        _make_views(connection, is_sqlite=database.is_sqlite)
        if connection.scalar(select(tenants.c.key).where(tenants.c.name == DEFAULT_TENANT)) is None:
            connection.execute(insert(tenants).values(name=DEFAULT_TENANT, weight=1))
        after = _version(connection)
    if after != before:
        log.info("database_upgraded", before=before, after=after)


def run_migrations(connection: Connection, revision: str = "head") -> None:
    """Run the missing migrations up to this one in the transaction of the caller, who sees to the views."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def current_version(database: Database) -> str | None:
    """Return the number of the last migration that ran, or None for an empty database."""
    with database.read() as connection:
        return _version(connection)


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _drop_views(connection: Connection) -> None:
    for view in VIEWS:
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {view.name}")


def _make_views(connection: Connection, *, is_sqlite: bool) -> None:
    if is_sqlite:
        for statement in sqlite_views():
            connection.exec_driver_sql(statement)
        return
    reader.install_tokens(connection)
    for statement in postgresql_views():
        connection.exec_driver_sql(statement)
    if not reader.install_role(connection):
        log.warning("no_query_role", role=reader.ROLE, effect="SQL queries are refused until the role exists")


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """Hold a lock file beside an SQLite database: switching a new file to WAL does not wait as BEGIN IMMEDIATE does."""
    path = database.engine.url.database
    if not database.is_sqlite or not path or path == ":memory:":
        yield
        return
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(file.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

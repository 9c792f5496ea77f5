"""Migrations bring any database to the tables and views of this version, whoever calls them and how often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text

from gistmill.db.migrate import current_version, upgrade
from gistmill.db.session import Database, open_database
from gistmill.db.tables import metadata, tenants
from gistmill.db.views import VIEWS


def test_migrations_make_exactly_the_tables_of_the_code(database: Database) -> None:
    with database.read() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_upgrade_makes_every_view_with_its_documented_columns(database: Database) -> None:
    with database.read() as connection:
        for view in VIEWS:
            columns = connection.execute(text(f"SELECT * FROM {view.name}")).keys()
            assert list(columns) == [column.name for column in view.columns]


def test_upgrade_twice_changes_nothing(database: Database) -> None:
    upgrade(database)
    with database.read() as connection:
        assert connection.scalars(select(tenants.c.name)).all() == ["default"]


def test_ten_processes_may_upgrade_an_empty_database_at_once(empty_database_url: str) -> None:
    databases = [open_database(empty_database_url) for _ in range(10)]
    assert current_version(databases[0]) is None
    with ThreadPoolExecutor(len(databases)) as pool:
        list(pool.map(upgrade, databases))
    assert current_version(databases[0]) is not None
    with databases[0].read() as connection:
        assert set(inspect(connection).get_view_names()) == {view.name for view in VIEWS}
    for database in databases:
        database.close()


def test_sqlite_file_gives_freed_pages_back(tmp_path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'new.db'}")
    upgrade(database)
    with database.read() as connection:
        assert connection.scalar(text("PRAGMA auto_vacuum")) == 2
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
    database.close()

"""Migrations bring any database to the tables and views of this version, whoever calls them and how often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text

from gistmill.db.migrate import current_version, run_migrations, upgrade
from gistmill.db.session import Database, open_database
from gistmill.db.tables import chunks, dataset_rows, dialogues, generations, metadata, results, tenants
from gistmill.db.views import VIEWS

# A finished job of one row, as revision 0002 had it.
ROWS_OF_0002 = (
    "INSERT INTO tenants (key, name) VALUES (9, 'old')",
    "INSERT INTO datasets (key, id, tenant_key, name, digest, state, format, mapping, warnings, rows, dialogues, created_at)"
    " VALUES (1, 'ds_1', 9, 'calls', 'd', 'ready', 'jsonl', '{}', '[]', 1, 1, 1)",
    "INSERT INTO dialogues (key, tenant_key, digest, characters, text) VALUES (1, 9, 'e', 6, 'A: Hi.')",
    'INSERT INTO dataset_rows (dataset_key, row_number, id, dialogue_key, occurrence, "references", metadata)'
    " VALUES (1, 0, '1', 1, 0, '[]', '{\"team\": \"a\"}')",
    "INSERT INTO dataset_dialogues (dataset_key, rank, dialogue_key, rows) VALUES (1, 0, 1, 1)",
    "INSERT INTO recipes (key, tenant_key, digest, body) VALUES (1, 9, 'f', '{}')",
    "INSERT INTO jobs (key, id, tenant_key, kind, state, spec_version, spec, labels, warnings, request_digest, dataset_key,"
    " recipe_key, items, succeeded, created_at, claimed_at)"
    " VALUES (1, 'job_1', 9, 'summarize', 'completed', 1, '{}', '{}', '[]', 'g', 1, 1, 1, 1, 1, 1)",
    "INSERT INTO generations (key, recipe_key, dialogue_key, draw, summary, finish_reason, tokens_in, tokens_out, truncated,"
    " engine, device, dtype, chunk_key, epoch, created_at)"
    " VALUES (1, 1, 1, 0, 'Yes.', 'stop', 4, 2, false, 'fake', 'cpu', 'none', 1, 1, 7.5)",
    "INSERT INTO results (job_key, row_number, attempt, arrival, generation_key, chunk_key, epoch, created_at)"
    " VALUES (1, 0, 1, 1, 1, 1, 1, 7.5)",
)


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


def test_upgrade_keeps_the_rows_of_tables_that_it_makes_anew(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    with database.write() as connection:
        run_migrations(connection, "0002")
        for statement in ROWS_OF_0002:
            connection.exec_driver_sql(statement)
    upgrade(database)
    with database.read() as connection:
        query = select(results.c.created_at, generations.c.summary, dataset_rows.c["metadata"], dialogues.c.text).where(
            results.c.generation_key == generations.c.key,
            generations.c.dialogue_key == dialogues.c.key,
            dataset_rows.c.dialogue_key == dialogues.c.key,
        )
        assert connection.execute(query).all() == [(7.5, "Yes.", {"team": "a"}, "A: Hi.")]
        assert {key["name"] for table in ("results", "jobs") for key in inspect(connection).get_foreign_keys(table)} == {
            "fk_jobs_dataset_key", "fk_jobs_model_key", "fk_jobs_recipe_key", "fk_jobs_tenant_key"
        }  # fmt: skip
    database.close()


def test_chunk_of_an_older_database_counts_no_ends(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    with database.write() as connection:
        run_migrations(connection, "0006")
        for statement in ROWS_OF_0002[:-2]:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql(
            "INSERT INTO chunks (job_key, ordinal, first_rank, last_rank, dialogues, state, epoch)"
            " VALUES (1, 0, 0, 0, 1, 'running', 4)"
        )
    upgrade(database)
    with database.read() as connection:
        assert connection.execute(select(chunks.c.epoch, chunks.c.ended)).all() == [(4, 0)]
    database.close()


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

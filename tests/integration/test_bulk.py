"""Many values in one statement: texts of every kind, and lookups that stay fast while their table grows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
from sqlalchemy import event, func, select, text

from gistmill.db import datasets
from gistmill.db.bulk import FEWEST_TRIED, insert_many, insert_returning, is_among
from gistmill.db.datasets import NewDataset
from gistmill.db.session import Database
from gistmill.db.tables import dataset_rows, dialogues
from gistmill.ingest.rows import Row
from tests.support.jobs import first_tenant

ODD = ["plain", "", "a,b", "{}", "{a}", '"', 'say "yes"', "\\", "\\\\", 'ends in \\"', "NULL"]
ODD += [" spaces ", "line\nbreak", "ünï çødé", "'"]
ROWS, BATCH = 12_000, 250


@pytest.fixture
def odd(database: Database) -> Database:
    """A database with a row for every odd text."""
    rows = [(1, number, name, number, 0, "[]", "{}") for number, name in enumerate(ODD)]
    database.transact(lambda connection: insert_many(connection, list(dataset_rows.columns), rows))
    return database


@pytest.mark.parametrize("asked", [[], *([value] for value in ODD), ODD], ids=repr)
def test_texts_are_found_as_they_are_and_no_others(odd: Database, asked: Sequence[str]) -> None:
    with odd.read() as connection:
        query = select(dataset_rows.c.id).where(is_among(connection, dataset_rows.c.id, asked))
        assert sorted(connection.execute(query).scalars()) == sorted(asked)


@pytest.mark.postgresql
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_lookups_of_dialogues_do_not_walk_the_table_that_they_fill(database: Database) -> None:
    new = NewDataset(first_tenant(database), "d", "numbers", "jsonl", {})
    lease = database.transact(partial(datasets.begin, new=new, owner="me"))
    assert lease is not None
    for start in range(0, ROWS, BATCH):
        rows = [Row(number, number + 1, str(number), f"dialogue {number}") for number in range(start, start + BATCH)]
        # A dialogue that was there before makes it look for those of the next page.
        rows[0] = rows[0]._replace(dialogue="dialogue 0")
        lease = database.transact(partial(datasets.write_rows, lease=lease, rows=rows))
    with database.read() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with database.read() as connection:
        query = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'dialogues'"
        touched = connection.scalar(text(query))
    # As long as a table is small, walking it is less work. Each row is looked up once, all but one of a page in vain.
    assert touched < ROWS


@pytest.mark.parametrize("count", [FEWEST_TRIED - 1, FEWEST_TRIED])
@pytest.mark.parametrize("there", [[], [0], [7, 8, 200]], ids=str)
def test_an_insert_returns_what_it_wrote_whoever_was_quicker(database: Database, count: int, there: Sequence[int]) -> None:
    def insert(numbers: Sequence[int]) -> list[str]:
        rows = [(1, f"{number:064}", 1, str(number)) for number in numbers]
        with database.write() as connection:
            written = insert_returning(
                connection,
                datasets.DIALOGUE_COLUMNS,
                rows,
                on_conflict="DO NOTHING",
                returning=[dialogues.c.text],
                seem_new=True,
            )
            # The transaction goes on.
            stored = connection.execute(select(dialogues.c.text)).scalars().all()
        assert set(stored) >= {str(number) for number in numbers}
        return [name for (name,) in written]

    assert insert(there) == [str(number) for number in there]
    assert insert(range(count)) == [str(number) for number in range(count) if number not in there]
    assert insert(range(count)) == []


@pytest.mark.parametrize("count", [3, FEWEST_TRIED])
@pytest.mark.parametrize("returned", [["text"], ["text", "key"]], ids=str)
def test_what_is_the_same_in_all_rows_is_written_to_each(database: Database, count: int, returned: Sequence[str]) -> None:
    tenant, digest, characters, words = datasets.DIALOGUE_COLUMNS
    insert = partial(
        insert_returning,
        columns=[words, digest],
        rows=[(str(number), f"{number:064}") for number in range(count)],
        fixed={characters: 7, tenant: 1},
        on_conflict="DO NOTHING",
        returning=[dialogues.c[name] for name in returned],
        seem_new=True,
    )
    written = database.transact(insert)
    with database.read() as connection:
        columns = (dialogues.c.tenant_key, dialogues.c.characters, dialogues.c.digest, dialogues.c.text)
        stored = connection.execute(select(*columns).order_by(dialogues.c.digest)).all()
        asked = connection.execute(select(*(dialogues.c[name] for name in returned)).order_by(dialogues.c.digest)).all()
    assert [tuple(row) for row in stored] == [(1, 7, f"{number:064}", str(number)) for number in range(count)]
    assert written == [tuple(row) for row in asked]
    assert database.transact(insert) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_pages_of_any_size_make_few_statements_for_sqlite_to_keep(database: Database) -> None:
    statements: set[str] = set()
    event.listen(database.engine, "before_cursor_execute", lambda *values: statements.add(values[2]))
    written = 0
    for count in range(1, 600, 7):
        rows = [(1, f"{number:064}", 1, str(number)) for number in range(written, written + count)]
        insert = partial(
            insert_returning,
            columns=datasets.DIALOGUE_COLUMNS,
            rows=rows,
            on_conflict="DO NOTHING",
            returning=[dialogues.c.text],
        )
        assert database.transact(insert) == [(row[3],) for row in rows]
        items = [(1, number, "", number, 0, "[]", "{}") for number in range(written, written + count)]
        database.transact(partial(insert_many, columns=list(dataset_rows.columns), rows=items))
        written += count
    with database.read() as connection:
        for table in (dialogues, dataset_rows):
            assert connection.scalar(select(func.count()).select_from(table)) == written
    # Of two tables: 1 to 16 rows, 32, 64, 128 and 256.
    assert len({statement for statement in statements if statement.startswith("INSERT")}) <= 2 * (16 + 4)

"""A user's SQL reads the views of one tenant; the database itself refuses everything else."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import select, text

from gistmill.db.query import run_query
from gistmill.db.session import Database, open_database
from gistmill.db.tables import tenants
from gistmill.db.views import VIEWS
from gistmill.errors import QueryRefused, QueryTimeout, StoreUnavailable
from gistmill.views import QueryView
from tests.support.databases import PostgreSQLServer
from tests.support.rows import write_history
from tests.support.servers import wait_until


def ask(database: Database, sql: str, *, tenant_key: int = 1, limit: int = 100, timeout_s: float = 10.0) -> QueryView:
    return run_query(database, tenant_key, sql, limit=limit, timeout_s=timeout_s)


def test_every_view_can_be_read(database: Database) -> None:
    write_history(database, failed=frozenset({2}))
    for view in VIEWS:
        assert ask(database, f"select * from {view.name}").columns == [column.name for column in view.columns]
    answer = ask(database, "SELECT row_number, summary, item_id FROM v_summaries WHERE shared = false ORDER BY 1 LIMIT 2;")
    assert answer.columns == ["row_number", "summary", "item_id"]
    assert answer.rows == [[0, "Secret 0 of 1.", "call-0"], [1, "Secret 1 of 1.", "call-1"]]
    assert ask(database, "select code, item_id from v_errors -- why?").rows == [["input_too_long", "call-2"]]
    assert ask(database, "select model, prompt, items, failed from v_jobs").rows == [["tiny@1", "instruction", 6, 1]]
    assert ask(database, "select architecture, parameters from v_models").rows == [["T5ForConditionalGeneration", 1000]]


def test_any_part_of_a_view_can_be_read_alone(database: Database) -> None:
    write_history(database)
    for view in VIEWS:
        assert ask(database, f"select count(*), 1 from {view.name}").columns[0].startswith("count")
        for column in view.columns[:: 3 if database.is_sqlite else 9]:
            ask(database, f"select {column.name} from {view.name} where {column.name} is not null")


def test_times_are_iso_8601_in_utc(database: Database) -> None:
    write_history(database)
    (moment,) = ask(database, "select finished_at from v_jobs").rows[0]
    assert moment.startswith("2027-01-15T08:00:05")
    assert moment.endswith(("Z", "+00:00"))


def test_joins_subqueries_and_common_table_expressions_work(database: Database) -> None:
    write_history(database)
    answer = ask(
        database,
        "with long as (select job_id, count(*) as n from v_summaries where length(summary) > 3 group by job_id)"
        " select j.state, long.n, (select max(row_number) from v_summaries) from long join v_jobs j on j.job_id = long.job_id",
    )
    assert answer.rows == [["completed", 6, 5]]
    assert ask(database, "select 1 as a, 2 as b").rows == [[1, 2]]
    assert ask(database, "select summary from v_summaries where 1 = 0") == QueryView(columns=["summary"], rows=[])
    assert ask(database, "select 'a;b' as \"50%\" where 'x' not like '%y%'") == QueryView(columns=["50%"], rows=[["a;b"]])


def test_more_rows_than_allowed_are_left_out_and_said_so(database: Database) -> None:
    write_history(database)
    answer = ask(database, "select row_number from v_summaries order by 1", limit=4)
    assert (len(answer.rows), answer.truncated) == (4, True)
    assert not ask(database, "select row_number from v_summaries", limit=6).truncated


def test_rows_of_another_tenant_are_not_seen(database: Database) -> None:
    mine = write_history(database)
    theirs = write_history(database, tenant="other")
    assert theirs.tenant_key != mine.tenant_key
    for view, column in (
        ("v_jobs", "job_id"),
        ("v_summaries", "job_id"),
        ("v_datasets", "dataset_id"),
        ("v_models", "digest"),
    ):
        for tenant_key in (mine.tenant_key, theirs.tenant_key):
            seen = {row[0] for row in ask(database, f"select {column} from {view}", tenant_key=tenant_key).rows}
            assert len(seen) == 1
    (seen_job,) = {row[0] for row in ask(database, "select job_id from v_summaries", tenant_key=theirs.tenant_key).rows}
    assert seen_job == theirs.job_id


ATTACKS = (
    "insert into tenants (name) values ('x')",
    "update jobs set state = 'failed'",
    "delete from results",
    "drop table results",
    "drop view v_jobs",
    "create table t (a integer)",
    "create temp table t (a integer)",
    "create view v as select 1",
    "alter table jobs add column x integer",
    "vacuum",
    "begin",
    "commit",
    "select 1; delete from results",
    "select 1; select * from dialogues",
    "select 1) q; delete from results; select * from (select 1",
    "select * from dialogues",
    "select * from jobs",
    "select * from main.dialogues",
    "select * from public.dialogues",
    "select count(*) from dialogues",
    "select name from tenants",
    "select * from alembic_version",
    "select * from v_jobs where exists (select 1 from dialogues)",
    "select (select max(text) from dialogues)",
    "select * from v_jobs join dialogues on true",
    "with v_jobs as (select * from dialogues) select * from v_jobs",
    "with v_summaries as (select text from dialogues) select * from v_summaries",
    "with own_v_jobs as (select text from dialogues) select * from own_v_jobs",
    "select * from (select text from dialogues) v_jobs",
    "with recursive r(n) as (select count(*) from dialogues union all select n + 1 from r where n < 3) select * from r",
    "with gone as (delete from results returning *) select * from gone",
    "values (1), ((select count(*) from dialogues))",
    "select count(*) from alembic_version",
    "select count(*) from sqlite_master",
    "select count(*) from pragma_database_list",
    "select 1 from dialogues",
    "select 1 from main.dialogues",
    "select 1 from main.v_jobs",
    "select v_jobs.rowid, d.text from v_jobs, dialogues d",
    "select * from main.v_jobs",
    "select load_extension('/tmp/x')",
    "select readfile('/etc/passwd')",
    "select writefile('/tmp/x', 'y')",
    "attach database '/tmp/other.db' as other",
    "pragma query_only = off",
    "pragma table_info(jobs)",
    "select * from pragma_table_info('jobs')",
    "select * from pragma_database_list",
    "select * from sqlite_master",
    "select sql from temp.sqlite_master",
    "select sql from sqlite_temp_schema",
    "reset role",
    "set role postgres",
    "copy dialogues to stdout",
    "copy (select 1) to program 'true'",
    "do $$ begin perform 1; end $$",
    "select set_config('role', session_user, true), query_to_xml('select * from dialogues', true, false, '')",
    "select set_config('role', 'none', true)",
    "select set_config('session_authorization', 'postgres', true)",
    "select query_to_xml('select * from dialogues', true, false, '')",
    "select query_to_xml('set role postgres', true, false, '')",
    "select table_to_xml('dialogues', true, false, '')",
    "select * from gistmill_private.secret",
    "select * from gistmill_private.tokens",
    "select * from gistmill_private.visible",
    "select gistmill_private.run_query('select 1', 1)",
    "select pg_read_file('/etc/passwd')",
    "select lo_create(0)",
    "select lo_import('/etc/passwd')",
    "select * from pg_authid",
    "select * from v_jobs for update",
    "select set_config('transaction_read_only', 'off', true)",
    "select nextval('tenants_key_seq')",
    "select currval('tenants_key_seq')",
    "select last_value from tenants_key_seq",
    "",
    ";",
    "-- nothing",
    "select",
    "nonsense",
)


def test_anything_but_reading_the_views_is_refused(two_tenants: Database) -> None:
    accepted = []
    for attack in ATTACKS:
        try:
            answer = ask(two_tenants, attack)
        except QueryRefused:
            continue
        else:
            # No text is no query on SQLite; a bare SELECT is one without columns on PostgreSQL.
            if answer.columns:
                accepted.append(attack)
    assert accepted == []


@pytest.fixture
def two_tenants(database: Database) -> Database:
    write_history(database)
    write_history(database, tenant="other")
    return database


@pytest.mark.parametrize("condition", ["1/(case when dialogue like '%of 2%' then 0 else 1 end) = 1", "length(dialogue) > 0"])
def test_conditions_are_never_tried_on_rows_of_another_tenant(two_tenants: Database, condition: str) -> None:
    assert len(ask(two_tenants, f"select summary from v_summaries where {condition}").rows) == 6


def test_tenant_cannot_be_changed_from_within_a_query(two_tenants: Database) -> None:
    if two_tenants.is_sqlite:
        pytest.skip("SQLite has no settings: the tenant stands in the views.")
    for value in ("2", "", "1", "%"):
        trick = f"select set_config('gistmill.tenant', '{value}', true), (select count(*) from v_jobs)"
        assert all(row[1] in (0, 1) for row in ask(two_tenants, trick).rows)
        trick = (
            f"with s as materialized (select set_config('gistmill.tenant', '{value}', true) as v)"
            " select j.job_id from s cross join lateral (select * from v_jobs where s.v is not null) j"
        )
        assert len(ask(two_tenants, trick).rows) <= 1
    assert len(ask(two_tenants, "select * from v_jobs").rows) == 1


def test_query_that_takes_too_long_is_ended(database: Database) -> None:
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    began = time.monotonic()
    with pytest.raises(QueryTimeout) as caught:
        ask(database, endless, timeout_s=0.5)
    assert caught.value.code == "query_timeout"
    assert time.monotonic() - began < 5


def test_answers_that_would_fill_the_memory_are_refused(database: Database) -> None:
    big = "replace(hex(zeroblob(1000000)), '00', 'xxxx')" if database.is_sqlite else "repeat('x', 4000000)"
    many = f"with recursive n(i) as (select 1 union all select i + 1 from n where i < 12) select {big} from n"
    with pytest.raises(QueryRefused, match="32 MB"):
        ask(database, many)
    huge = "zeroblob(900000000)" if database.is_sqlite else "repeat('x', 90000000)"
    with pytest.raises(QueryRefused):
        ask(database, f"select {huge}")


def test_locks_taken_by_a_query_end_with_it(database: Database) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite has no advisory locks.")
    taken = lambda: ask(database, "select pg_try_advisory_lock(7)").rows == [[True]]  # noqa: E731
    assert taken()
    # The server ends a session a moment after its connection.
    wait_until(taken, what="the end of the session that had the lock")


def test_database_that_is_away_is_reported_as_such(database: Database, tmp_path, postgresql_server: PostgreSQLServer) -> None:
    away = f"sqlite:///{tmp_path / 'no' / 'such.db'}" if database.is_sqlite else postgresql_server.url("nosuch")
    with pytest.raises(StoreUnavailable):
        ask(open_database(away), "select 1")


def test_missing_role_is_explained(postgresql_server: PostgreSQLServer) -> None:
    url = postgresql_server.make_migrated()
    database = open_database(url)
    with database.write() as connection:
        connection.execute(text("DROP FUNCTION gistmill_private.run_query(text, bigint)"))
    with pytest.raises(QueryRefused, match="CREATE ROLE gistmill_reader NOLOGIN"):
        ask(database, "select 1")
    database.close()
    postgresql_server.drop(url)


def test_owner_without_superuser_rights_can_upgrade_and_query(postgresql_server: PostgreSQLServer) -> None:
    """The usual case of a hosted PostgreSQL: the owner may create roles, or finds the role granted."""
    from gistmill.db.migrate import upgrade

    url = postgresql_server.make_empty()
    name = url.partition("@/")[2].partition("?")[0]
    postgresql_server.execute(f"CREATE ROLE owner_{name} LOGIN CREATEROLE")
    postgresql_server.execute(f"GRANT gistmill_reader TO owner_{name} WITH ADMIN OPTION")
    postgresql_server.execute(f"ALTER DATABASE {name} OWNER TO owner_{name}")
    database = open_database(postgresql_server.url(name, user=f"owner_{name}"))
    upgrade(database)
    upgrade(database)
    write_history(database)
    assert ask(database, "select count(*) from v_summaries").rows == [[6]]
    with pytest.raises(QueryRefused):
        ask(database, "select * from dialogues")
    with database.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM v_jobs")) == 1
        assert connection.scalar(select(tenants.c.name)) == "default"
    database.close()
    postgresql_server.drop(url)

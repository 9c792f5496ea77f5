"""PostgreSQL: the role, the tokens and the one function through which a user's SQL runs.

A user's SELECT runs inside a SECURITY DEFINER function owned by `gistmill_reader`, a role that is granted the views and nothing
else. SET LOCAL ROLE would not do: `select set_config('role', …)` leaves the role again within one SELECT, and query_to_xml()
then reads any table. Inside such a function PostgreSQL itself refuses to change the role.

Which tenant's rows the views show follows from a token in the setting `gistmill.tenant`. Whoever may read the tables sees every
tenant; everyone else sees the tenant whose token the session carries. A user can change the setting, but cannot make a
token: it is a hash with a secret that only the owner of the tables can read.
"""

from __future__ import annotations

from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from gistmill.db.views import PRIVATE_SCHEMA, VIEWS

ROLE = "gistmill_reader"
SETTING = "gistmill.tenant"
RUN = f"{PRIVATE_SCHEMA}.run_query"
TOKENS = f"{PRIVATE_SCHEMA}.tokens"

_MAKE_TOKENS = f"""
CREATE SCHEMA IF NOT EXISTS {PRIVATE_SCHEMA};
CREATE TABLE IF NOT EXISTS {PRIVATE_SCHEMA}.secret (value text NOT NULL);
INSERT INTO {PRIVATE_SCHEMA}.secret SELECT gen_random_uuid()::text || gen_random_uuid()::text
    WHERE NOT EXISTS (SELECT 1 FROM {PRIVATE_SCHEMA}.secret);
CREATE OR REPLACE VIEW {TOKENS} AS
    SELECT t.key AS tenant_key, encode(sha256(convert_to(s.value || ':' || t.key || ':' || s.value, 'UTF8')), 'hex') AS token
    FROM tenants t CROSS JOIN {PRIVATE_SCHEMA}.secret s;
CREATE OR REPLACE VIEW {PRIVATE_SCHEMA}.visible AS
    SELECT tenant_key FROM {TOKENS}
    WHERE token = current_setting('{SETTING}', true) OR has_table_privilege(current_user, 'tenants'::regclass, 'select');
"""

# The line break ends a comment that the user's text may end with.
_FUNCTION = f"""
CREATE FUNCTION {RUN}(query text, most bigint) RETURNS SETOF json
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $body$
BEGIN
    RETURN QUERY EXECUTE 'SELECT row_to_json(q) FROM (' || query || E'\\n) q LIMIT ' || most;
END
$body$;
"""


def install_tokens(connection: Connection) -> None:
    """Make the tokens on which the views rest."""
    connection.exec_driver_sql(_MAKE_TOKENS)


def install_role(connection: Connection) -> bool:
    """Grant the role the views and give it the function. Return false when the role is missing and we may not make it."""
    nested = connection.begin_nested()
    try:
        _make_role(connection)
        nested.commit()
        return True
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":
            raise
        nested.rollback()
        return False


def _make_role(connection: Connection) -> None:
    if not connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname = :role"), {"role": ROLE}):
        # Roles belong to the whole server: the upgrade of another database may make it at the same moment.
        connection.exec_driver_sql(
            f"DO $$ BEGIN CREATE ROLE {ROLE} NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
    # Since PostgreSQL 16 a member need not be able to become the role.
    needed = "SET" if (connection.dialect.server_version_info or ()) >= (16,) else "MEMBER"
    if not connection.scalar(text("SELECT pg_has_role(current_user, :role, :needed)"), {"role": ROLE, "needed": needed}):
        connection.exec_driver_sql(f"GRANT {ROLE} TO CURRENT_USER")
    schema = connection.scalar(text("SELECT quote_ident(current_schema())"))
    views = ", ".join(view.name for view in VIEWS)
    # Owning a function takes CREATE on its schema, at the moment of the handing over only.
    connection.exec_driver_sql(f"""
        DROP FUNCTION IF EXISTS {RUN}(text, bigint);
        GRANT USAGE ON SCHEMA {schema} TO {ROLE};
        GRANT SELECT ON {views} TO {ROLE};
        {_FUNCTION}
        REVOKE ALL ON FUNCTION {RUN}(text, bigint) FROM PUBLIC;
        GRANT USAGE, CREATE ON SCHEMA {PRIVATE_SCHEMA} TO {ROLE};
        ALTER FUNCTION {RUN}(text, bigint) OWNER TO {ROLE};
        REVOKE ALL ON SCHEMA {PRIVATE_SCHEMA} FROM {ROLE};
        GRANT EXECUTE ON FUNCTION {RUN}(text, bigint) TO CURRENT_USER;
    """)

"""Where plain Celery writes its rows, and how: each statement commits, as durable as Gistmill's transactions."""

from __future__ import annotations

import sqlite3
from typing import Any

import psycopg

TABLE = "plain_celery"
CREATE = f"CREATE TABLE {TABLE} (item bigint PRIMARY KEY, summary text NOT NULL, created_at double precision NOT NULL)"
BUSY_S = 60


def connect(url: str) -> Any:
    """Return a connection that commits each statement."""
    if url.startswith("sqlite:///"):
        connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=BUSY_S, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection
    return psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True)


def insert_statement(url: str) -> str:
    """Return the statement that writes one (item, summary)."""
    if url.startswith("sqlite"):
        return f"INSERT INTO {TABLE} VALUES (?, ?, (julianday('now') - 2440587.5) * 86400)"
    return f"INSERT INTO {TABLE} VALUES (%s, %s, extract(epoch FROM clock_timestamp()))"

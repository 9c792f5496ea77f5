"""Fixtures of the fault suite: a fleet with a ledger, and servers of its own to be hurt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet
from tests.support.nursery import Nursery
from tests.support.servers import RedisServer


@pytest.fixture(scope="session", autouse=True)
def nursery() -> Iterator[None]:
    """Workers are forks of one process here. tests/system starts each as a program of its own."""
    Fleet.nursery = made = Nursery()
    yield
    made.close()
    Fleet.nursery = None


@pytest.fixture
def fleet(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[Fleet]:
    """A fleet without workers yet."""
    made = Fleet(tmp_path / "fleet", database_url, redis_url)
    yield made
    made.stop()
    print(made.logs())


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A redis-server of this test's own, running, to be hurt."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_fleet(tmp_path: Path, database_url: str, own_redis: RedisServer) -> Iterator[Fleet]:
    """A fleet on that server."""
    made = Fleet(tmp_path / "fleet", database_url, own_redis.url)
    yield made
    made.stop()
    print(made.logs())

"""Fixtures of the fault suite: a fleet with a ledger, and servers of its own to be hurt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, running_fleet
from tests.support.servers import RedisServer


@pytest.fixture(autouse=True)
def fork_workers(forked_workers: None) -> None:
    """Workers are forks of one process here."""


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
    with running_fleet(tmp_path / "fleet", database_url, own_redis.url) as made:
        yield made

"""Fixtures for tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[Fleet]:
    """A fleet without workers yet."""
    made = Fleet(tmp_path / "fleet", database_url, redis_url)
    yield made
    made.stop()
    print(made.logs())

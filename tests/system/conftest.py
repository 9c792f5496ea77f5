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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let nothing run beside these tests: each starts several processes and waits for them as long as a user would.

    The commands of the files *_cli.py are waited for much longer than they take.
    """
    folder = Path(__file__).parent
    for item in items:
        if folder in item.path.parents and not item.path.name.endswith("_cli.py"):
            item.add_marker("alone")

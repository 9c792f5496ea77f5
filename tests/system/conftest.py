"""Fixtures for tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support.cli import Home, running_stack
from tests.support.nursery import Nursery


@pytest.fixture(scope="session")
def commands() -> Iterator[Nursery]:
    """What forks commands."""
    made = Nursery("command")
    yield made
    made.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, commands: Nursery) -> Iterator[Home]:
    """A running stack with the fake engine, for the tests of one file. Its commands are forks."""
    with running_stack(tmp_path_factory.mktemp("stack") / "home", commands) as home:
        yield home


@pytest.fixture
def programs(stack: Home) -> Home:
    """The same stack, and each command a program that has imported nothing before, as a user's is."""
    return replace(stack, nursery=None)

"""What integration tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gistmill import queue
from gistmill.db import bulk
from gistmill.db.session import Database
from tests.support.bench import Bench, running_bench
from tests.support.nursery import Nursery
from tests.support.trainings import ForkingSubprocess
from workers.training import child


@pytest.fixture
def bench(database: Database, redis_url: str, tmp_path: Path) -> Iterator[Bench]:
    """A worker without its process."""
    with running_bench(database, redis_url, tmp_path) as made:
        yield made


@pytest.fixture
def forked_trainings(training_nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training children of this process are forks. Without, each is a program of its own."""
    monkeypatch.setattr(child, "subprocess", ForkingSubprocess(training_nursery))


@pytest.fixture
def patient_bells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that a busy machine keeps waiting for seconds counts as one that answers."""
    monkeypatch.setattr(queue, "RING_TIMEOUT_S", 10.0)


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handful of rows are inserted into PostgreSQL as hundreds are: first without ON CONFLICT."""
    monkeypatch.setattr(bulk, "FEWEST_TRIED", 1)

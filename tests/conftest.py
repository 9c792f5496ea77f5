"""The real parts that tests share: databases, copied fresh for each test, and one redis-server."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pytest

from gistmill.db.session import Database, open_database
from tests.support.databases import NoPostgreSQL, PostgreSQLServer, SQLiteFiles
from tests.support.fleet import Fleet, running_fleet
from tests.support.nursery import Nursery
from tests.support.servers import RedisServer
from tests.support.turnstile import Turnstile

# `--hypothesis-profile=long` searches on where the short run stops; only the state machine asks for more than the default.
hypothesis.settings.register_profile("long", deadline=None, max_examples=1000, stateful_step_count=80, print_blob=True)

TURNSTILE = pytest.StashKey[Turnstile]()
# Where the processes of one run find its turnstile.
TURNSTILE_FOLDER = "TESTS_TURNSTILE"

BOTH = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql))


def pytest_configure(config: pytest.Config) -> None:
    """Keep tests off the model hub and away from the settings of whoever runs them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    # The models of tests are tiny: threads that wait for each other would take most of the time, above all on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith("GISTMILL_")]:
        del os.environ[name]
    if hasattr(config, "workerinput"):
        config.stash[TURNSTILE] = turnstile = Turnstile(Path(os.environ[TURNSTILE_FOLDER]))
        config.add_cleanup(turnstile.close)
    elif config.getoption("numprocesses", None):
        folder = TemporaryDirectory(prefix="gm-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ[TURNSTILE_FOLDER] = folder.name


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let nothing run beside a test that is marked `alone`. The wait is not part of the test's time."""
    turnstile = item.config.stash.get(TURNSTILE, None)
    if turnstile is None:
        return (yield)
    with turnstile.entered(is_alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer]:
    """One PostgreSQL for the whole run; a missing one fails in CI and skips elsewhere."""
    try:
        server = PostgreSQLServer()
        server.start()
    except NoPostgreSQL as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def sqlite_files(tmp_path_factory: pytest.TempPathFactory) -> SQLiteFiles:
    """Copies of one migrated SQLite file."""
    return SQLiteFiles(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh, migrated database: the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        files: SQLiteFiles = request.getfixturevalue("sqlite_files")
        yield files.make_migrated(tmp_path)
        return
    server: PostgreSQLServer = request.getfixturevalue("postgresql_server")
    url = server.make_migrated()
    yield url
    server.drop(url)


@pytest.fixture(params=BOTH)
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgreSQLServer = request.getfixturevalue("postgresql_server")
    url = server.make_empty()
    yield url
    server.drop(url)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh, migrated database."""
    opened = open_database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_only(sqlite_files: SQLiteFiles, tmp_path: Path) -> Iterator[Database]:
    """A fresh, migrated SQLite database, for what does not depend on the database."""
    opened = open_database(sqlite_files.make_migrated(tmp_path))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One redis-server for the whole run."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture(scope="session")
def worker_nursery() -> Iterator[Nursery]:
    """What forks workers."""
    with closing(Nursery("worker")) as made:
        yield made


@pytest.fixture
def forked_workers(worker_nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a fleet are forks. Without, each is a program of its own."""
    monkeypatch.setattr(Fleet, "nursery", worker_nursery)


@pytest.fixture(scope="session")
def training_nursery() -> Iterator[Nursery]:
    """What forks training children."""
    with closing(Nursery("training")) as made:
        yield made


@pytest.fixture
def fleet(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[Fleet]:
    """A fleet without workers yet."""
    with running_fleet(tmp_path / "fleet", database_url, redis_url) as made:
        yield made

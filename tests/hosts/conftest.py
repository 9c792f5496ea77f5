"""A fleet on hosts of its own: api, redis, postgres and two worker hosts; the tests themselves run on a sixth, the client's."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from gistmill.client import Client
from gistmill.db.session import Database, open_database
from models_store.store import Store
from tests.support.api import answers
from tests.support.databases import NoPostgreSQL, PostgreSQLServer, name_in
from tests.support.fleet import FAST
from tests.support.hosts import NETWORK, Host, Network, NoNetwork
from tests.support.servers import redis_binary, wait_until

TOKEN = "a-token-for-tests"
PORT = 8321
WORKERS = ("worker-a", "worker-b")
# A session whose client is gone keeps its locks for this long at most; the default is 30 s.
STATEMENT_TIMEOUT_S = 4.0
RECOVERED = "recovered"


class Fleet:
    """The processes of one test, each on its host, with a home and a model store of its own."""

    def __init__(self, network: Network, directory: Path, database_url: str) -> None:
        self.network, self.directory, self.database_url = network, directory, database_url
        self.url = f"http://{network['api'].address}:{PORT}"

    def start_redis(self) -> None:
        """Start an empty redis-server."""
        binary, host = redis_binary(), self.network["redis"]
        assert binary is not None
        self._start(host, binary, "--bind", host.address, "--protected-mode", "no", "--save", "", environment={})

    def start_api(self) -> None:
        """Start the api and wait until it answers."""
        self._start(self.network["api"], sys.executable, "-c", "from gistmill.cli import main; main()", "api", environment={})
        log = self.directory / "api" / "log"
        wait_until(lambda: "api_starts" in log.read_text(), timeout_s=120, what="the api")
        wait_until(lambda: answers(self.url), timeout_s=60, what="an answer of the api")

    def start_worker(self, name: str, **environment: str) -> None:
        """Start the launcher on a worker host."""
        launch = ("-m", "workers", "--device", "cpu", "--processes", "1")
        self._start(self.network[name], sys.executable, *launch, environment=environment)

    def start_trusting_worker(self, name: str, **environment: str) -> None:
        """Start a worker that never doubts its lease, without a launcher."""
        pinned = ("--device-uuid", "cpu-0", "--device-kind", "cpu", "--device-name", "CPU", "--device-bytes", str(2**34))
        module = "tests.support.children.trusting_worker"
        self._start(self.network[name], sys.executable, "-m", module, "--child", str(uuid4()), *pinned, environment=environment)

    def store(self, name: str) -> Store:
        """Return the model store of a host."""
        return Store(self.directory / name / "store")

    def events(self, name: str, event: str) -> list[dict[str, object]]:
        """Return what a host logged under this name."""
        path = self.directory / name / "log"
        lines = [line for line in path.read_text().splitlines() if line.startswith("{")] if path.exists() else []
        return [body for line in lines if (body := json.loads(line)).get("event") == event]

    def chunks_of(self, name: str, job: str) -> int:
        """Return how many chunks of a job this host began."""
        return sum(entry.get("job_id") == job for entry in self.events(name, "chunk_started"))

    def _start(self, host: Host, *command: str, environment: dict[str, str]) -> None:
        home = self.directory / host.name
        home.mkdir(exist_ok=True)
        settings = {
            "GISTMILL_HOME": str(home),
            "GISTMILL_STORE__PATH": str(self.store(host.name).root),
            "GISTMILL_DATABASE__URL": self.database_url,
            "GISTMILL_DATABASE__STATEMENT_TIMEOUT_S": str(STATEMENT_TIMEOUT_S),
            "GISTMILL_REDIS__URL": f"redis://{self.network['redis'].address}:6379/0",
            "GISTMILL_API__URL": self.url,
            "GISTMILL_API__HOST": self.network["api"].address,
            "GISTMILL_API__HOSTS": self.network["api"].address,
            "GISTMILL_API__TOKEN": TOKEN,
            "GISTMILL_LOG__FORMAT": "json",
        }
        here = str(Path(__file__).parents[2])
        everything = dict(os.environ) | FAST | settings | {"PYTHONPATH": here} | environment
        host.start(*command, log=home / "log", cwd=home, environment=everything)


class Recovery:
    """Cuts a host off and joins it, and measures how long it takes until things go on."""

    def __init__(self, network: Network, note: Callable[[str, object], None]) -> None:
        self._network, self._note = network, note
        self._cut_at = self._joined_at = 0.0

    def cut(self, name: str) -> None:
        """Cut a host off."""
        self._network[name].cut()
        self._cut_at = time.monotonic()

    def join(self, name: str) -> None:
        """Connect it again."""
        self._network[name].join()
        self._joined_at = time.monotonic()

    def done(self) -> None:
        """Note that things go on now."""
        now = time.monotonic()
        after_join = f", {now - self._joined_at:.1f} s after the host was joined" if self._joined_at else ""
        self._note(RECOVERED, f"{now - self._cut_at:.1f} s after the cut{after_join}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how long each recovery took."""
    for report in terminalreporter.getreports("passed"):
        for seconds in [value for name, value in report.user_properties if name == RECOVERED and report.when == "call"]:
            terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: went on {seconds}")


@pytest.fixture
def recovery(network: Network, record_property: Callable[[str, object], None]) -> Recovery:
    """The cutting and joining of one test."""
    return Recovery(network, record_property)


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    """Six hosts on one switch; skipped where namespaces cannot be made."""
    try:
        made = Network(("client", "api", "redis", "postgres", *WORKERS))
    except NoNetwork as error:
        pytest.skip(f"no network namespaces: {error}")
    with made:
        yield made


@pytest.fixture(scope="session")
def postgres(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQLServer]:
    """PostgreSQL on its host, open to that network only."""
    rules = Path(tempfile.gettempdir()) / f"gm-hba-{os.getpid()}"
    rules.write_text(f"local all all trust\nhost all all {NETWORK}.0/24 trust\n")
    rules.chmod(0o644)
    try:
        server = PostgreSQLServer(f"listen_addresses={network['postgres'].address}", f"hba_file={rules}")
        with network["postgres"].inside():
            server.start()
    except NoPostgreSQL as error:
        pytest.skip(str(error))
    yield server
    server.stop()
    rules.unlink()


@pytest.fixture
def fleet(network: Network, postgres: PostgreSQLServer, tmp_path: Path) -> Iterator[Fleet]:
    """Redis and the api run; no worker does yet. The test itself runs on the client's host."""
    made_url = postgres.make_migrated()
    url = f"postgresql+psycopg://postgres@{network['postgres'].address}/{name_in(made_url)}"
    made = Fleet(network, tmp_path, url)
    try:
        with network["client"].inside():
            made.start_redis()
            made.start_api()
            yield made
    finally:
        # What did not start in time must not hold the ports of the next test.
        for host in network.hosts.values():
            host.speed_up()
            host.join()
            host.kill()
        postgres.drop(made_url)
        for log in sorted(tmp_path.glob("*/log")):
            print(f"--- {log.parent.name}", log.read_text(errors="replace")[-6000:], sep="\n")


@pytest.fixture
def database(fleet: Fleet) -> Iterator[Database]:
    """The fleet's database, as the client's host reaches it."""
    opened = open_database(fleet.database_url)
    yield opened
    opened.close()


@pytest.fixture
def client(fleet: Fleet) -> Iterator[Client]:
    """A client of the api."""
    with Client(fleet.url, TOKEN) as made:
        yield made

"""The stage of the soak: worker processes, api, Redis and a database, with proxies in between. It leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from sqlalchemy import select

from gistmill.db.session import Database, open_database
from gistmill.db.tables import jobs
from gistmill.errors import StoreUnavailable
from gistmill.states import JobState
from tests.soak.host import POLL_S, Host
from tests.soak.trail import Trail
from tests.support.databases import PostgreSQLServer, SQLiteFiles, name_in
from tests.support.faults import Blow, kill_on_dialogue
from tests.support.fleet import FAST, Fleet, WorkerProcess
from tests.support.nursery import Nursery
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer, die_with_parent, free_port, wait_until

T = TypeVar("T")

SEATS = 5
SECONDS_PER_ROW = 0.03
MARK = "SOAK_STAGE"
TOKEN = "a-token-for-the-soak-of-32-letters"
# A dialogue that holds this kills every worker that is about to generate it.
KILLS = "[[kills its worker]]"


class Stage:
    """Everything that is hurt. `over` is set when the storm is: nothing is hurt any more, but all of it still runs."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory, self.kind = directory, kind
        # Every child inherits it, so that one that is left behind can be told.
        os.environ[MARK] = str(directory)
        self.over = threading.Event()
        # What others must know: whether forged bells may hang, when a job was last accepted, which jobs were to be cancelled.
        self.has_forged = False
        self.forging = threading.Lock()
        self.accepted_at = 0.0
        self.cancelled: set[str] = set()
        self.poisonings = count(1)
        self.seats: list[WorkerProcess] = []
        self.redis = RedisServer(directory)
        self.redis_proxy = Proxy(self.redis.port)
        self.api_port = free_port()
        self.api_proxy = Proxy(self.api_port)
        self.postgresql: PostgreSQLServer | None = None
        self.sql_proxy: Proxy | None = None
        self._api: subprocess.Popen[bytes] | None = None
        self._host = Host(self._look_after)
        self._is_closing = False
        self._left: list[WorkerProcess] = []

    def start(self) -> None:
        """Start everything and wait until the api serves."""
        self._host.start()
        # A fleet that dies all the time must not spend its cores on imports: what it waits for is what is measured here.
        Fleet.nursery = self.call(Nursery)
        self.database_url = self._host.call(self._make_database)
        self.database: Database = open_database(self.database_url, connections=16)
        url = self.database_url
        if self.postgresql is not None:
            self.sql_proxy = Proxy(self.postgresql.socket)
            url = f"postgresql+psycopg://postgres@127.0.0.1:{self.sql_proxy.port}/{name_in(url)}"
        self.fleet = Fleet(self.directory / "fleet", url, f"redis://127.0.0.1:{self.redis_proxy.port}/0")
        self.trail = Trail(self.fleet.ledger.path)
        self.call(self.redis.start)
        self.start_api()
        wait_until(self.api_answers, timeout_s=60, what="the api")
        self.call(lambda: self.seats.extend(self._start_worker() for _ in range(SEATS)))

    def call(self, do: Callable[[], T]) -> T:
        """Start a process: whatever does so is done by the host's thread."""
        return self._host.call(do)

    def rearm(self, seat: int, drill: Sequence[Blow], **environment: str) -> WorkerProcess:
        """Replace the worker of a seat, which drains, by one that meets these blows."""

        def replace() -> WorkerProcess:
            if self.seats[seat].is_alive:
                self.seats[seat].send(signal.SIGTERM)
            self._left.append(self.seats[seat])
            self.seats[seat] = self._start_worker(drill, **environment)
            return self.seats[seat]

        return self.call(replace)

    def wait(self, seconds: float) -> None:
        """Let a fault last; the end of the storm ends it early."""
        self.over.wait(seconds)

    def wait_for(self, condition: Callable[[], Any], *, timeout_s: float) -> bool:
        """True as soon as the condition holds, false when it does not in time or the storm is over."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with suppress(StoreUnavailable):
                if condition():
                    return True
            if self.over.wait(POLL_S):
                return False
        return False

    def job_state(self, job: int) -> JobState:
        """Return the state of the job with this key."""
        with self.database.read() as connection:
            return JobState(connection.execute(select(jobs.c.state).where(jobs.c.key == job)).scalar_one())

    def client(self) -> httpx2.Client:
        """Return a client of the api, behind its proxy."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx2.Client(base_url=f"http://127.0.0.1:{self.api_proxy.port}", headers=headers, timeout=10)

    def start_api(self) -> None:
        """Start the api; it needs a moment until it answers."""
        self.call(self._launch_api)

    def kill_api(self) -> None:
        """SIGKILL. It stays away until it is started."""
        api, self._api = self._api, None
        if api is not None:
            api.kill()
            api.wait()

    def api_answers(self) -> bool:
        """True when the api serves."""
        try:
            return httpx2.get(f"http://127.0.0.1:{self.api_port}/healthz", timeout=1).status_code == 200
        except httpx2.TransportError:
            return False

    def close(self) -> None:
        """End every process, whatever state it is in."""
        self.over.set()
        self._is_closing = True
        # Whatever it was starting has started behind this.
        self.call(lambda: None)
        if hasattr(self, "fleet"):
            self.fleet.stop()
        if Fleet.nursery is not None:
            Fleet.nursery.close()
            Fleet.nursery = None
        self.kill_api()
        for proxy in (self.redis_proxy, self.api_proxy, self.sql_proxy):
            if proxy is not None:
                proxy.close()
        self.redis.stop()
        if hasattr(self, "database"):
            self.database.close()
        if self.postgresql is not None:
            self.postgresql.stop()
        self._host.end()

    def _make_database(self) -> str:
        if self.kind == "sqlite":
            return SQLiteFiles(self.directory).make_migrated(self.directory)
        # A crash of the server must not take back what it had acknowledged, so commits wait for the log.
        self.postgresql = PostgreSQLServer("synchronous_commit=on", "deadlock_timeout=100ms")
        self.postgresql.start()
        return self.postgresql.make_migrated()

    def _start_worker(self, drill: Sequence[Blow] = (), **environment: str) -> WorkerProcess:
        return self.fleet.start(seconds_per_row=SECONDS_PER_ROW, drill=[kill_on_dialogue(KILLS), *drill], **environment)

    def _launch_api(self) -> None:
        home = self.directory / "api"
        home.mkdir(exist_ok=True)
        own = {"GISTMILL_API__PORT": str(self.api_port), "GISTMILL_API__TOKEN": TOKEN}
        with (self.directory / "api.log").open("ab") as log:
            self._api = subprocess.Popen(
                [sys.executable, "-m", "api"],
                env=self.fleet.env(home) | FAST | own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def _look_after(self) -> None:
        """Start a worker wherever one has died, as a launcher would, and the api, as a supervisor would.

        An api that finds its database away when it starts says so and ends.
        """
        if self._is_closing:
            return
        if self._api is not None and self._api.poll() is not None:
            self._launch_api()
        for number, worker in enumerate(self.seats):
            if not worker.is_alive:
                self.seats[number] = self._start_worker()
        # Those that have left their seats are asked too: a process that ended goes only when somebody asks how.
        self._left = [worker for worker in self._left if worker.is_alive]


def find_left(stage: Stage) -> list[int]:
    """Return the processes of this stage that still run."""
    mark = f"{MARK}={stage.directory}".encode()
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_ended = ") Z " in (entry / "stat").read_text()
            if not is_ended and mark in (entry / "environ").read_bytes().split(b"\0"):
                left.append(int(entry.name))
    return left

"""The system under test: redis-server, a database, the api and workers, each a process of its own."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from redis import Redis

from benchmarks.orchestration.databases import DatabaseServer, start_database
from benchmarks.orchestration.processes import Child, start_module
from gistmill.client import Client
from gistmill.db.session import Database, open_database
from gistmill.queue import queue_name
from gistmill.settings import RedisSettings, Settings
from gistmill.states import JobKind
from tests.support.servers import RedisServer, free_port, wait_until

TOKEN = "benchmark-" + "t" * 32
STARTUP_S = 120.0
DEVICE = ("--device-uuid", "cpu-0", "--device-kind", "cpu", "--device-name", "CPU", "--device-bytes", str(2**34))


@dataclass
class Worker:
    """A worker process and the file in which it notes the times of its chunks."""

    child: Child
    chunks: Path


@dataclass
class Stack:
    """Everything that runs; `stop` leaves no process behind."""

    directory: Path
    database: DatabaseServer
    redis: RedisServer
    port: int = field(default_factory=free_port)
    api: Child | None = None
    workers: list[Worker] = field(default_factory=list)

    def start_workers(self, count: int, *, seconds_per_row: float = 0.0) -> None:
        """Start so many workers with the fake engine and production settings, and wait until all are registered."""
        for _ in range(count):
            self.workers.append(self._start_worker(seconds_per_row))
        with self.client() as client:
            expected = {worker.child.name for worker in self.workers}
            wait_until(lambda: expected <= self._live(client), timeout_s=STARTUP_S, what=f"{count} workers")

    def stop_workers(self) -> list[dict[str, Any]]:
        """End the workers; return what they noted of each chunk."""
        for worker in self.workers:
            worker.child.process.terminate()
        for worker in self.workers:
            worker.child.stop()
        noted = [worker.chunks for worker in self.workers if worker.chunks.exists()]
        lines = [line for path in noted for line in path.read_text().splitlines()]
        self.workers.clear()
        return [json.loads(line) for line in lines]

    @property
    def url(self) -> str:
        """Where the api answers."""
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Client:
        """Return a client of the api."""
        return Client(self.url, TOKEN)

    def open_database(self) -> Database:
        """Return the same database, for a look past the api."""
        return open_database(self.database.url)

    def bells(self) -> Redis:
        """Return a connection to Redis."""
        return Redis(port=self.redis.port)

    @property
    def redis_pid(self) -> int:
        """The process id of redis-server."""
        with self.bells() as connection:
            return int(connection.info("server")["process_id"])

    @property
    def bell_list(self) -> str:
        """The Redis list of the bells."""
        return RedisSettings().key_prefix + queue_name(JobKind.SUMMARIZE)

    def environment(self, home: Path) -> dict[str, str]:
        """Return the settings of a process with this home."""
        return {
            "GISTMILL_HOME": str(home),
            "GISTMILL_DATABASE__URL": self.database.url,
            "GISTMILL_REDIS__URL": self.redis.url,
            "GISTMILL_WORKER__ENGINE": "fake",
            "OMP_NUM_THREADS": "1",
        }

    def start_api(self) -> None:
        """Start the api, which sets the database up, and wait until it answers."""
        home = self.directory / "api"
        home.mkdir()
        served = {"GISTMILL_API__PORT": str(self.port), "GISTMILL_API__TOKEN": TOKEN}
        self.api = start_module("api", "api", log=home / "log", environment=self.environment(home) | served)
        wait_until(self._is_up, timeout_s=STARTUP_S, what="the api")

    def stop(self) -> None:
        """End everything."""
        self.stop_workers()
        if self.api is not None:
            self.api.stop()
        self.redis.stop()
        self.database.stop()

    def _start_worker(self, seconds_per_row: float) -> Worker:
        name = str(uuid.uuid4())
        home = self.directory / name
        home.mkdir()
        chunks = home / "chunks.jsonl"
        environment = self.environment(home) | {
            "GISTMILL_WORKER__FAKE_SECONDS_PER_ROW": str(seconds_per_row),
            "GISTMILL_BENCHMARK_CHUNKS": str(chunks),
        }
        arguments = ("--child", name, *DEVICE)
        module = "benchmarks.orchestration.timed_worker"
        return Worker(start_module(name, module, *arguments, log=home / "log", environment=environment), chunks)

    def _live(self, client: Client) -> set[str]:
        for worker in self.workers:
            worker.child.require_alive()
        return {view.id for view in client.list_workers() if view.state in ("idle", "busy")}

    def _is_up(self) -> bool:
        assert self.api is not None
        self.api.require_alive()
        try:
            return httpx2.get(f"{self.url}/readyz").status_code == 200
        except httpx2.TransportError:
            return False


@contextmanager
def running_stack(kind: str, directory: Path) -> Iterator[Stack]:
    """Give a stack without workers on a new database of this kind."""
    directory.mkdir(parents=True)
    redis_server = RedisServer(directory)
    redis_server.start()
    try:
        stack = Stack(directory, start_database(kind), redis_server)
    except BaseException:
        redis_server.stop()
        raise
    try:
        stack.start_api()
        yield stack
    finally:
        stack.stop()


def production_settings() -> dict[str, Any]:
    """Return the lease settings that the workers run with: the defaults."""
    worker = Settings().worker
    return {name: getattr(worker, name) for name in ("lease_s", "renew_s", "wish_s", "sweep_s", "margin_s")}

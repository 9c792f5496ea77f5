"""The named faults of the suite. docs/reliability.md lists each with the test that shows it.

A blow is what a drilled worker does to itself at a fault point of the code; the other faults come from outside.
"""

from __future__ import annotations

import resource
import signal
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

from gistmill.db.session import Database
from gistmill.errors import StoreUnavailable
from tests.support.databases import PostgreSQLServer
from tests.support.fleet import WorkerProcess
from tests.support.servers import RedisServer

Blow = dict[str, object]

# Every point at which a worker may be killed in the middle of a chunk, and the n-th time it is passed.
KILLING_POINTS = (
    ("bell.popped", 1),
    ("claim.committed", 1),
    ("load.begun", 1),
    ("generate.begun", 1),
    ("record.begun", 1),
    ("record.committed", 1),
    ("record.begun", 2),
    ("record.committed", 2),
    ("ending.begun", 1),
    ("ending.committed", 1),
)


def blow(point: str, action: str, *, nth: int = 1, marker: str = "", ending: str = "", seconds: float = 0.0) -> Blow:
    """Return what a worker does the n-th time it passes the point."""
    return {"point": point, "action": action, "nth": nth, "marker": marker, "ending": ending, "seconds": seconds}


def kill_at(point: str, *, nth: int = 1, ending: str = "") -> Blow:
    """SIGKILL to itself. With `ending`, only before or after that statement: finish, release, fail."""
    return blow(point, "kill", nth=nth, ending=ending)


def segfault_at(point: str, *, nth: int = 1) -> Blow:
    """SIGSEGV, as a broken driver would."""
    return blow(point, "segfault", nth=nth)


def stop_at(point: str, *, nth: int = 1) -> Blow:
    """SIGSTOP: the process stands still at exactly this point until it gets SIGCONT."""
    return blow(point, "stop", nth=nth)


def hang_at(point: str, seconds: float, *, nth: int = 1) -> Blow:
    """The thread stands still, the others live."""
    return blow(point, "hang", nth=nth, seconds=seconds)


def lose_reply_at(point: str, *, nth: int = 1) -> Blow:
    """The COMMIT before this point was applied, but its reply is lost."""
    return blow(point, "lose_reply", nth=nth)


def die_at(point: str, *, nth: int = 1) -> Blow:
    """The thread that passes ends with an exception that nobody expects."""
    return blow(point, "die", nth=nth)


def kill_during_commit(*, nth: int, seconds: float) -> Blow:
    """SIGKILL that falls so many seconds after the n-th COMMIT was asked for."""
    return blow("commit.begun", "kill_after", nth=nth, seconds=seconds)


def kill_on_dialogue(marker: str) -> Blow:
    """SIGKILL whenever a dialogue with this marker is about to be generated."""
    return blow("generate.begun", "kill", marker=marker)


def stop_for(worker: WorkerProcess, seconds: float) -> None:
    """Stop the process and let it go on later; the fault itself is a time."""
    worker.send(signal.SIGSTOP)
    time.sleep(seconds)
    worker.send(signal.SIGCONT)


def refuse_writes(redis: RedisServer) -> None:
    """READONLY: the server becomes the replica of a master that is not there."""
    redis.command("CONFIG", "SET", "replica-read-only", "yes")
    redis.command("REPLICAOF", "127.0.0.1", "1")


def allow_writes(redis: RedisServer) -> None:
    """The server is its own master again."""
    redis.command("REPLICAOF", "NO", "ONE")


def fill_memory(redis: RedisServer) -> None:
    """OOM: no command that needs memory is taken."""
    redis.command("CONFIG", "SET", "maxmemory", "1")


def free_memory(redis: RedisServer) -> None:
    """Memory is unlimited again."""
    redis.command("CONFIG", "SET", "maxmemory", "0")


def revoke_rights(redis: RedisServer) -> None:
    """The user may do nothing any more, save what it takes to get its rights back."""
    redis.command("ACL", "SETUSER", "default", "-@all", "+acl", "+ping")
    drop_clients(redis)


def grant_rights(redis: RedisServer) -> None:
    """The user may do everything again."""
    redis.command("ACL", "SETUSER", "default", "+@all")


def drop_clients(redis: RedisServer) -> None:
    """CLIENT KILL: every connection is closed by the server."""
    redis.command("CLIENT", "KILL", "TYPE", "normal")


@contextmanager
def loading(port: int) -> Iterator[None]:
    """LOADING: in the place of a server that is down, one that answers everything as Redis does while it reads its files."""
    answer = b"-LOADING Redis is loading the dataset in memory\r\n"

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                while self.request.recv(65536):
                    self.request.sendall(answer)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", port), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


@contextmanager
def stolen_bells(redis: RedisServer, queue: str) -> Iterator[None]:
    """A consumer that is connected and does nothing takes every bell away."""
    stopped = threading.Event()

    def steal() -> None:
        while not stopped.is_set():
            redis.command("LPOP", queue)
            stopped.wait(0.005)

    thief = threading.Thread(target=steal, daemon=True)
    thief.start()
    yield
    stopped.set()
    thief.join()


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Hold what every worker must write: SQLite's one write lock, or PostgreSQL's table of chunks."""
    with database.write() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("LOCK TABLE chunks IN ACCESS EXCLUSIVE MODE")
        yield


@contextmanager
def full_disk(workers: list[WorkerProcess]) -> Iterator[None]:
    """No file of these workers may grow: SQLite's write-ahead log least of all."""
    old = [resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE) for worker in workers]
    for worker, (_, hard) in zip(workers, old, strict=True):
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (4096, hard))
    yield
    for worker, limits in zip(workers, old, strict=True):
        if worker.is_alive:
            resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, limits)


def terminate_backends(server: PostgreSQLServer) -> None:
    """End every other connection to the PostgreSQL server."""
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL"
    )


@contextmanager
def no_connections(server: PostgreSQLServer) -> Iterator[None]:
    """Take every connection that the server has to give, those of the workers too."""
    taken: list[psycopg.Connection[tuple[object, ...]]] = []
    terminate_backends(server)
    with suppress(psycopg.OperationalError):
        while True:
            taken.append(server.connect("postgres"))
    assert taken
    yield
    for connection in taken:
        connection.close()


@contextmanager
def read_only(server: PostgreSQLServer) -> Iterator[None]:
    """Every transaction that writes is refused, on old connections too."""
    server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
    server.execute("SELECT pg_reload_conf()")
    yield
    server.execute("SET default_transaction_read_only = off", "ALTER SYSTEM RESET default_transaction_read_only")
    server.execute("SELECT pg_reload_conf()")


def provoke_deadlock(database: Database, job: int) -> bool:
    """Lock a job's row and then its chunks, against the one order of Gistmill; True when this side was the victim."""
    try:
        with database.write() as connection:
            connection.exec_driver_sql(f"SELECT key FROM jobs WHERE key = {job} FOR UPDATE")
            time.sleep(0.15)  # The fault itself: long enough for a worker to lock its chunk and want the job.
            connection.exec_driver_sql(f"SELECT key FROM chunks WHERE job_key = {job} FOR UPDATE")
    except StoreUnavailable:
        return True
    return False

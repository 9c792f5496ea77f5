"""A TCP proxy that cuts, delays and half-opens the way to a server, and can swallow the reply to one statement."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

BLOCK = 65536
QUICK_S = 0.05


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards to a server's TCP port or Unix socket.

    `delay_s` holds every block up. While `is_half_open`, bytes are taken from both sides and go nowhere, and neither side is
    told. While `is_cut`, connections are reset and new ones refused.
    """

    def __init__(self, server: int | Path) -> None:
        self.server = server
        self.delay_s = 0.0
        self.is_half_open = False
        self.is_cut = False
        self.swallowed = 0
        self._swallow: tuple[bytes, bytes] | None = None
        self._has_seen: set[tuple[socket.socket, socket.socket]] = set()
        self._muted: set[tuple[socket.socket, socket.socket]] = set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._is_closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection and refuse new ones until `mend`."""
        self.is_cut = True
        self._reset()

    def drop(self) -> None:
        """Reset every connection once; new ones are served."""
        self._reset()

    def half_open(self) -> None:
        """Let every connection hang, old and new, until `mend`."""
        self.is_half_open = True

    def mend(self) -> None:
        """Serve again. Connections that hung are reset: what they missed is gone."""
        if self.is_half_open:
            self._reset()
        self.is_half_open, self.is_cut, self.delay_s = False, False, 0.0

    def swallow_reply_to(self, statement: bytes, *, behind: bytes) -> None:
        """Forward the next such request, let the server carry it out, and reset the connection instead of replying.

        Only a request counts that follows `behind` on its connection, with no other such request in between.
        """
        with self._lock:
            self._swallow = (statement, behind)

    @property
    def connections(self) -> int:
        """How many connections go through now."""
        with self._lock:
            return len(self._pairs)

    def close(self) -> None:
        """End the proxy."""
        self._is_closed = True
        self._listener.close()
        self._reset()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                _reset_one(client)
                continue
            try:
                server = self._connect()
            except OSError:
                _reset_one(client)
                continue
            pair = (client, server)
            with self._lock:
                self._pairs.append(pair)
            threading.Thread(target=self._pump, args=(client, server, pair, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, pair, False), daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self.server, int):
            return socket.create_connection(("127.0.0.1", self.server), timeout=5)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.connect(str(self.server))
        return server

    def _pump(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket], is_request: bool
    ) -> None:
        try:
            # The pair may have been reset before this thread began.
            source.settimeout(None)
            while block := source.recv(BLOCK):
                while self.is_half_open and not self._is_closed:
                    time.sleep(QUICK_S)
                if self.delay_s:
                    time.sleep(self.delay_s)
                if not is_request and pair in self._muted:
                    continue
                swallows = is_request and self._swallows(block, pair)
                sink.sendall(block)
                if swallows:
                    # Time for the server to carry it out; nobody on our side will hear of it.
                    time.sleep(QUICK_S)
                    self.swallowed += 1
                    break
        except OSError:
            pass
        self._forget(pair)

    def _swallows(self, block: bytes, pair: tuple[socket.socket, socket.socket]) -> bool:
        with self._lock:
            if self._swallow is None:
                return False
            statement, behind = self._swallow
            if behind in block:
                self._has_seen.add(pair)
            if statement not in block:
                return False
            if pair not in self._has_seen:
                return False
            self._has_seen.clear()
            self._muted.add(pair)
            self._swallow = None
            return True

    def _forget(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            if pair in self._pairs:
                self._pairs.remove(pair)
        for end in pair:
            _reset_one(end)

    def _reset(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _reset_one(end)


def _reset_one(end: socket.socket) -> None:
    # Linger of zero: the other side hears of a reset instead of an orderly end. shutdown wakes the thread that reads.
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()

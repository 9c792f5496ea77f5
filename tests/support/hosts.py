"""Hosts that share nothing but a network: each is a network namespace with a name of its own, on a switch that can cut it off.

A namespace lives as long as a process in it. Each is held by one process that dies with the test run, as everything does that
is started inside, so that nothing is left behind even when the run is killed. Nothing of the machine's own network is touched:
the switch is a bridge in a namespace too, and no route leads out.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.support.servers import die_with_parent, wait_until

NETWORK = "10.213.7"
CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000


class NoNetwork(Exception):
    """Namespaces cannot be made here."""


@dataclass(frozen=True)
class Namespace:
    """A network and a host name of its own, kept by a process that does nothing."""

    name: str
    holder: subprocess.Popen[bytes]

    @classmethod
    def make(cls, name: str) -> Namespace:
        """Return a new one.

        Raises:
            NoNetwork: the kernel does not let us.
        """
        keep = f"echo {name} > /proc/sys/kernel/hostname && exec sleep infinity"
        command = ["unshare", "--net", "--uts", "sh", "-c", keep]
        holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=die_with_parent)
        made = cls(name, holder)
        wait_until(lambda: made._is_ready() or holder.poll() is not None, what=f"the namespace of {name}")
        if holder.poll() is not None:
            _, reason = holder.communicate()
            raise NoNetwork(f"unshare failed: {reason.decode().strip()}")
        return made

    @property
    def inode(self) -> int:
        """The number by which the kernel knows the network."""
        return network_of(self.holder.pid)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be inside: what this thread opens, starts and listens to in the block belongs here."""
        outside = [os.open(f"/proc/thread-self/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts")]
        here = os.pidfd_open(self.holder.pid)
        try:
            _enter(here, CLONE_NEWNET | CLONE_NEWUTS)
            yield
        finally:
            for descriptor in outside:
                _enter(descriptor, 0)
            for descriptor in (here, *outside):
                os.close(descriptor)

    def run(self, *command: str) -> str:
        """Run a command inside and return what it printed.

        Raises:
            NoNetwork: it failed.
        """
        with self.inside():
            done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise NoNetwork(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def close(self) -> None:
        """End the process that holds it."""
        self.holder.kill()
        self.holder.communicate()

    def _is_ready(self) -> bool:
        # The last thing that `keep` does is to become `sleep`: then the namespace and its name are there.
        return Path(f"/proc/{self.holder.pid}/comm").read_text().strip() == "sleep"


@dataclass
class Host:
    """A host on the switch."""

    namespace: Namespace
    switch: Namespace
    address: str
    port: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The host's name."""
        return self.namespace.name

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be on this host."""
        with self.namespace.inside():
            yield

    def start(self, *command: str, log: Path, cwd: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a process on this host."""
        with self.inside(), log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent,
            )
        self.processes.append(process)
        return process

    def cut(self) -> None:
        """Cut the host off: the switch forgets its port. Both ends believe that the link is up; nobody hears of an end."""
        self.switch.run("ip", "link", "set", self.port, "nomaster")

    def join(self) -> None:
        """Connect the host to the others again."""
        self.switch.run("ip", "link", "set", self.port, "master", "switch")

    def forget_neighbours(self) -> None:
        """Know nobody's hardware address, like a host that has just been switched on."""
        self.namespace.run("ip", "neighbour", "flush", "all")

    def slow_down(self, bits_per_s: int) -> None:
        """Let the switch send to this host at this rate only."""
        self._queue("tbf", "rate", f"{bits_per_s}bit", "burst", "16kb", "latency", "400ms")

    def speed_up(self) -> None:
        """Let the switch send as fast as it can."""
        self._queue("noqueue")

    def _queue(self, *how: str) -> None:
        self.switch.run("tc", "qdisc", "replace", "dev", self.port, "root", *how)

    def kill(self) -> None:
        """Kill what `start` started here, and the workers of launchers: left alone they would drain for seconds."""
        for process in self.processes:
            for child in _children_of(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            process.kill()
            process.wait()
        self.processes.clear()


class Network:
    """A switch and hosts around it. Use it as a context: at its end nothing is left."""

    def __init__(self, names: Sequence[str]) -> None:
        missing = [program for program in ("ip", "tc", "unshare") if shutil.which(program) is None]
        if os.geteuid() != 0 or missing:
            raise NoNetwork(f"not installed: {', '.join(missing)}" if missing else "network namespaces need root")
        self._namespaces: list[Namespace] = []
        self.hosts: dict[str, Host] = {}
        try:
            self._switch = self._make_namespace("switch")
            self._switch.run("ip", "link", "add", "name", "switch", "type", "bridge")
            self._switch.run("ip", "link", "set", "switch", "up")
            for number, name in enumerate(names, start=1):
                self.hosts[name] = self._make_host(name, number)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Network:
        """Return the network itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End everything on every host."""
        self.close()

    def __getitem__(self, name: str) -> Host:
        """Return a host by its name."""
        return self.hosts[name]

    @property
    def inodes(self) -> set[int]:
        """The numbers by which the kernel knows the networks."""
        return {namespace.inode for namespace in self._namespaces}

    def close(self) -> None:
        """Kill every process that was started on a host, and those that hold the namespaces."""
        for host in self.hosts.values():
            host.kill()
        for namespace in self._namespaces:
            namespace.close()
        self._namespaces.clear()

    def _make_namespace(self, name: str) -> Namespace:
        self._namespaces.append(Namespace.make(name))
        return self._namespaces[-1]

    def _make_host(self, name: str, number: int) -> Host:
        namespace, address, port = self._make_namespace(name), f"{NETWORK}.{number}", f"port{number}"
        peer = ("peer", "name", "eth0", "netns", str(namespace.holder.pid))
        self._switch.run("ip", "link", "add", "name", port, "type", "veth", *peer)
        self._switch.run("ip", "link", "set", port, "master", "switch", "up")
        namespace.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            namespace.run("ip", "link", "set", link, "up")
        return Host(namespace, self._switch, address, port)


def network_of(process: int) -> int:
    """Return the number by which the kernel knows the network that a process is in."""
    return Path(f"/proc/{process}/ns/net").stat().st_ino


def processes_in(inodes: set[int]) -> list[int]:
    """Return the ids of living processes that are in one of these networks."""
    return _processes_where(lambda process: network_of(process) in inodes)


def processes_of_run(mark: str) -> list[int]:
    """Return the ids of living processes that were started with this "NAME=value" in their environment, or inherited it."""
    return _processes_where(lambda process: mark.encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"))


def _children_of(process: int) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def _processes_where(holds: Callable[[int], bool]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        # One that ends while it is looked at is none.
        with suppress(OSError):
            if entry.name.isdigit() and holds(int(entry.name)):
                found.append(int(entry.name))
    return found


def _enter(descriptor: int, kinds: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, kinds) != 0:
        raise NoNetwork(f"setns: {os.strerror(ctypes.get_errno())}")

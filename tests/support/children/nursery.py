"""Forks what tests start often, with its imports behind it. Arguments: the kind, and the descriptor of a listening socket.

The kinds are `worker`, a drilled worker; `command`, the command line; `training`, a training child. A message asks for one, or
for its end; a message answers. It has one thread, so a fork of it is what a program is after its imports; what follows is the
same as in `python -m tests.support.children.drilled_worker`, `gistmill` or `python -m workers.training`.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tests.support.nursery import MOST_BYTES
from tests.support.servers import die_with_parent
from tests.support.trainings import KILL_AT, LONGEST_WAIT_S, WAIT_AT

# What every one of them imports sooner or later. None of it reads the environment that a fork gets.
IMPORTED = {
    "worker": (
        "workers.app",
        "celery.worker.consumer",
        "celery.concurrency.solo",
        "celery.app.trace",
        "kombu.matcher",
        "billiard.pool",
    ),
    "command": ("gistmill.cli.app", "gistmill.client", "gistmill.local", "httpx2", "typer.rich_utils"),
    "training": ("workers.training.run",),
}
MOST_DESCRIPTORS = 8
# Above every number that a descriptor of a test has.
ASIDE = 900


def main(kind: str, door: socket.socket) -> int:
    """Answer until nobody can ask any more; in a fork, be what was asked for."""
    run = {"worker": find_worker, "command": find_command, "training": find_training}[kind]()
    for name in IMPORTED[kind]:
        importlib.import_module(name)
    gc.freeze()
    lines: list[socket.socket] = []
    while True:
        for ready in select.select([door, *lines], [], [])[0]:
            if ready is door:
                lines.append(door.accept()[0])
                continue
            question, descriptors = hear(ready)
            if not question:
                lines.remove(ready)
                ready.close()
            elif "ended" in question:
                tell(ready, status=find_status(question["ended"]))
            elif pid := os.fork():
                for descriptor in descriptors:
                    os.close(descriptor)
                tell(ready, pid=pid)
            else:
                for mine in (door, *lines):
                    mine.close()
                settle(question, descriptors)
                return run(question["arguments"])


def hear(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return a question and the descriptors that come with it; an empty one when who asked has hung up or died."""
    try:
        message, descriptors, _, _ = socket.recv_fds(line, MOST_BYTES, MOST_DESCRIPTORS)
    except OSError:
        return {}, []
    return json.loads(message or "{}"), descriptors


def tell(line: socket.socket, **answer: int | None) -> None:
    """Answer, unless who asked has died."""
    with suppress(OSError):
        line.send(json.dumps(answer).encode())


def find_worker() -> Callable[[list[str]], int]:
    """Return what a drilled worker runs."""
    from tests.support.children import drilled_worker

    return drilled_worker.work


def find_command() -> Callable[[list[str]], int]:
    """Return what the command line runs."""
    from gistmill.cli import main as command

    def run(arguments: list[str]) -> int:
        sys.argv = ["gistmill", *arguments]
        command()
        return 0

    return run


def find_training() -> Callable[[list[str]], int]:
    """Return what a training child runs."""
    from workers.training import orders
    from workers.training.__main__ import main as train
    from workers.training.events import Event, Stepped

    told: list[str] = []

    class Deadly(orders.Outbox):
        """Kills its process as soon as it has told of a certain step."""

        def send(self, event: Event) -> None:
            super().send(event)
            if isinstance(event, Stepped):
                told.append(str(event.step))
                if told[-1] == os.environ.get(KILL_AT):
                    os.kill(os.getpid(), signal.SIGKILL)

    class Patient(orders.Orders):
        """Waits for the order to stop when a certain step has been told of."""

        def should_stop(self) -> bool:
            if os.environ.get(WAIT_AT) in told:
                self._stop.wait(LONGEST_WAIT_S)
            return super().should_stop()

    def run(arguments: list[str]) -> int:
        module: Any = sys.modules[train.__module__]
        module.Outbox, module.Orders = Deadly, Patient
        return train(arguments)

    return run


def find_status(pid: int) -> int | None:
    """Return how a fork ended, as subprocess does, None while it lives."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def settle(wish: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Give this fork the environment, the descriptors and the end that a program of the test's own would have."""
    die_with_parent()
    if wish["is_leader"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(wish["environment"])
    # Aside first: one may have come with the number that another is to have.
    aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, ASIDE) for descriptor in descriptors]
    for descriptor in descriptors:
        os.close(descriptor)
    for source, target in zip(aside, wish["targets"], strict=True):
        os.dup2(source, target)
        os.close(source)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], socket.socket(fileno=int(sys.argv[2]))))

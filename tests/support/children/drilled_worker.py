"""A real worker that is hurt at fault points and writes down, outside the system, what it does.

The environment names the drill: GISTMILL_TEST_LEDGER a file to append to, GISTMILL_TEST_DRILL a JSON list of blows (see
tests/support/faults.py), GISTMILL_TEST_TRAININGS what forks training children. The rest is `python -m workers`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import make_url

from gistmill import faults
from gistmill.errors import StoreUnavailable
from tests.support.ledger import Ledger
from tests.support.trainings import ADDRESS, fork_trainings
from workers.__main__ import main


class Drill:
    """Notes every fault point that is passed, and strikes where the blows say."""

    def __init__(self, ledger: Ledger, blows: list[dict[str, Any]]) -> None:
        self.ledger = ledger
        self.blows = blows
        self.passed: dict[str, int] = {}

    def __call__(self, name: str, facts: dict[str, object]) -> None:
        """Note the point, then strike if a blow is meant for it."""
        if name not in ("heart.beat", "generate.begun", "commit.begun"):
            self.ledger.note(name, facts)
        self.passed[name] = self.passed.get(name, 0) + 1
        for blow in self.blows:
            if blow["point"] == name and self._is_due(blow, facts):
                self.ledger.note("struck", facts | {"blow": blow.get("label") or blow["action"], "at": name})
                strike(blow)

    def _is_due(self, blow: dict[str, Any], facts: dict[str, object]) -> bool:
        if blow["marker"]:
            rows: Any = facts.get("rows", ())
            return any(blow["marker"] in row.prompt.text for row in rows)
        if blow["ending"] and ending_of(facts) != blow["ending"]:
            return False
        if facts.get("claim", self) is None:
            self.passed[str(blow["point"])] -= 1
            return False
        return bool(self.passed[blow["point"]] == blow["nth"])


def ending_of(facts: dict[str, object]) -> str:
    """Return the name of the statement that ends a chunk."""
    ending = facts.get("ending")
    return ending.func.__name__ if isinstance(ending, partial) else ""


def strike(blow: dict[str, Any]) -> None:
    """Do to this process what the blow says."""
    action = blow["action"]
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "kill_after":
        threading.Thread(target=lambda: (time.sleep(blow["seconds"]), os.kill(os.getpid(), signal.SIGKILL))).start()
    elif action == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif action == "stop":
        stop_between_writes()
    elif action == "hang":
        time.sleep(blow["seconds"])
    elif action == "lose_reply":
        raise StoreUnavailable("The reply to COMMIT was lost (drill).")
    elif action == "die":
        raise RuntimeError("The thread ends here (drill).")
    else:
        raise ValueError(f"no such blow: {action}")


# It holds SQLite's one write lock while it stops its parent, so the parent cannot.
STOPPER = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=10, isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
os.kill(int(sys.argv[2]), signal.SIGSTOP)
"""


def stop_between_writes() -> None:
    """Stop this process at an instant at which no thread of it writes to SQLite.

    The heart writes from a thread of its own: stopped in the middle of that, this process would keep every other from writing
    until it goes on, and no test could see what a zombie does.
    """
    url = make_url(os.environ["GISTMILL_DATABASE__URL"])
    if url.get_backend_name() == "sqlite":
        subprocess.run([sys.executable, "-c", STOPPER, str(url.database), str(os.getpid())], check=True)
    else:
        # To this thread: of a signal to the process another may take notice first, while this one goes on and writes.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def skew(seconds: float) -> None:
    """Let this process believe that it is so much later."""
    real = time.time
    time.time = lambda: real() + seconds


@event.listens_for(Engine, "commit")
def pass_commit(_connection: Connection) -> None:
    """Make the moment before each COMMIT a fault point; the product has none there."""
    faults.point("commit.begun")


def work(arguments: list[str]) -> int:
    """Be the worker that the arguments and the environment describe; return its exit status."""
    skew(float(os.environ.get("GISTMILL_TEST_SKEW_S", "0")))
    faults.arm(Drill(Ledger(Path(os.environ["GISTMILL_TEST_LEDGER"])), json.loads(os.environ.get("GISTMILL_TEST_DRILL", "[]"))))
    if ADDRESS in os.environ:
        fork_trainings(Path(os.environ[ADDRESS]))
    return main(arguments)


if __name__ == "__main__":
    sys.exit(work(sys.argv[1:]))

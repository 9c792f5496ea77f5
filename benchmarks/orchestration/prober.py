"""A stand-in for a heartbeat: `prober DATABASE_URL` renews a row of `workers` in a transaction, again and again, until SIGTERM.

It is registered as a worker that is gone, so that nobody counts on it. Prints "ready", and at the end the
seconds that each write took, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import uuid
from functools import partial

from gistmill.db import workers as worker_rows
from gistmill.db.session import open_database
from gistmill.db.workers import Registration
from gistmill.specs import SPEC_VERSION

EVERY_S = 0.05


def main(url: str) -> None:
    """Write until told to end."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    database = open_database(url, connections=1)
    name = str(uuid.uuid4())
    row = Registration(name, "benchmark", os.getpid(), "none", "prober", 0, "none", (), SPEC_VERSION)
    database.transact(partial(worker_rows.register, registration=row))
    database.transact(partial(worker_rows.see, worker=name, state="gone"))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    seconds: list[float] = []
    while not stopped.wait(EVERY_S):
        started = time.perf_counter()
        database.transact(partial(worker_rows.see, worker=name))
        seconds.append(time.perf_counter() - started)
    database.close()
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

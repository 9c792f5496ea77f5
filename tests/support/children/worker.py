"""A stand-in for a worker: says what it was given and waits for a signal. Arguments: directory, uuid, lifeline, behaviour."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from workers import lifeline


def main() -> int:
    """Write `<uuid>.pid` and `<uuid>.gpu`, then behave as asked; a stubborn one writes `<uuid>.told` where others end."""
    directory, worker, descriptor, behaviour = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    lifeline.hold(descriptor, grace_s=0.5)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, lambda *_: (directory / f"{worker}.told").touch())
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (directory / f"{worker}.gpu").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    (directory / f"{worker}.pid").write_text(str(os.getpid()))
    if behaviour == "crash":
        os._exit(7)
    if behaviour == "misconfigured":
        os._exit(78)
    while True:
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())

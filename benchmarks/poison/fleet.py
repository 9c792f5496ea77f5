"""`fleet WORKERS`: the real launcher over workers that meet the blows of a drill (tests/support/faults.py), until SIGTERM."""

from __future__ import annotations

import sys

from gistmill import logs
from gistmill.db.session import open_database
from gistmill.queue import Bells
from gistmill.settings import load_settings
from gistmill.states import WORKED_KINDS
from workers import obituary
from workers.gpu import Device
from workers.launcher import Launcher, LaunchOptions, worker_command


def main(workers: int) -> int:
    """Launch; each death is reported as the real launcher reports it."""
    settings = load_settings()
    logs.configure(settings.log, process="launcher")
    database = open_database(settings.database_url, connections=1)
    bells = Bells(settings.redis_url, settings.redis.key_prefix)
    real = worker_command(WORKED_KINDS)

    def command(device: Device, worker: str, lifeline: int) -> list[str]:
        python, _, _, *arguments = real(device, worker, lifeline)
        return [python, "-m", "tests.support.children.drilled_worker", *arguments]

    options = LaunchOptions(device="cpu", processes=workers, drain_s=10)
    return Launcher(options, command, lambda worker: obituary.report(database, bells, settings.worker, worker)).run()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))

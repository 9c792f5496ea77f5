"""A launcher of stand-in workers. Arguments: directory, JSON of pretended GPUs, behaviour, drain seconds, and the seats.

The seats are `models` (by itself), `scoring`, or `both`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gistmill.errors import AlreadyRunning
from workers.gpu import Device
from workers.launcher import Launcher, LaunchOptions


def main() -> int:
    """Launch; each death is noted as `<uuid>.dead`."""
    directory, gpus, behaviour, drain_s = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])

    def command(device: Device, worker: str, descriptor: int) -> list[str]:
        module = "tests.support.children.worker"
        return [sys.executable, "-m", module, str(directory), worker, str(descriptor), behaviour]

    seats = sys.argv[5] if len(sys.argv) > 5 else "models"
    options = LaunchOptions(
        pretend_gpus=gpus,
        lock_dir=directory / "locks",
        drain_s=drain_s,
        backoff_s=0.1,
        has_models=seats != "scoring",
        has_scoring=seats != "models",
    )
    launcher = Launcher(options, command, lambda worker: (directory / f"{worker}.dead").touch())
    try:
        return launcher.run()
    except AlreadyRunning as error:
        sys.stderr.write(error.message)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

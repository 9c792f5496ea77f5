"""`python -m workers`: the launcher, and with --child one pinned worker. The app is imported only after the pinning."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import Literal

from gistmill import logs
from gistmill.errors import GistmillError, InvalidInput
from gistmill.settings import Settings, load_settings
from gistmill.states import SCORED_KINDS, WORKED_KINDS
from workers import lifeline
from workers.gpu import Device
from workers.launcher import EXIT_CONFIG, Launcher, LaunchOptions, worker_command


def main(arguments: list[str] | None = None) -> int:
    """Launch workers, or be one."""
    options = _parse(arguments)
    try:
        return _be_worker(options) if options.child else _launch(options)
    except GistmillError as error:
        print(f"error: {error.message}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIG if options.child else error.exit_code


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gistmill worker", description="Start one worker per GPU, or CPU workers.")
    parser.add_argument("--kinds", default=",".join(WORKED_KINDS), help="job kinds to take, separated by commas")
    parser.add_argument("--device", default="auto", help="auto (one worker per GPU, else one on the CPU), cuda or cpu")
    parser.add_argument("--processes", type=int, help="at most this many workers that run models")
    for hidden in ("--child", "--device-uuid", "--device-kind", "--device-name"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    parser.add_argument("--device-bytes", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--lifeline", type=int, default=-1, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [kind for kind in kinds if kind not in set(WORKED_KINDS)]
    if unknown or not kinds:
        raise InvalidInput(f"--kinds takes {', '.join(WORKED_KINDS)}, not '{', '.join(unknown) or text}'.")
    return kinds


def _launch(options: argparse.Namespace) -> int:
    settings = load_settings()
    logs.configure(settings.log, process="launcher")
    if options.processes is not None and options.processes < 1:
        raise InvalidInput(f"--processes takes 1 or more, not {options.processes}.")
    if not settings.redis_url:
        raise InvalidInput("A worker needs Redis: set GISTMILL_REDIS__URL, or start everything with: gistmill up")
    kinds = _kinds(options.kinds)
    launch_options = LaunchOptions(
        device=options.device,
        processes=options.processes,
        has_models=not SCORED_KINDS.issuperset(kinds),
        has_scoring=not SCORED_KINDS.isdisjoint(kinds),
        pretend_gpus=settings.worker.pretend_gpus,
        lock_dir=settings.worker.lock_dir,
        drain_s=settings.worker.drain_s,
    )
    return Launcher(launch_options, worker_command(kinds), _reporter(settings)).run()


def _reporter(settings: Settings) -> Callable[[str], None]:
    from gistmill.db.session import open_database
    from gistmill.queue import Bells
    from workers import obituary

    database = open_database(settings.database_url, connections=1)
    bells = Bells(settings.redis_url, settings.redis.key_prefix)

    def report(worker: str) -> None:
        obituary.report(database, bells, settings.worker, worker)

    return report


def _be_worker(options: argparse.Namespace) -> int:
    kind: Literal["cuda", "cpu"] = "cuda" if options.device_kind == "cuda" else "cpu"
    os.environ["CUDA_VISIBLE_DEVICES"] = options.device_uuid if kind == "cuda" else ""
    settings = load_settings()
    if options.lifeline >= 0:
        lifeline.hold(options.lifeline, grace_s=settings.worker.drain_s)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    device = Device(options.device_uuid, kind, options.device_name, options.device_bytes)
    from workers import app

    return app.run(device, _kinds(options.kinds), options.child)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.soak`: hurt a fleet at random for some minutes, then check that nothing was lost and nothing doubled.

Exit status: 0 when every invariant holds and every class of fault was met often enough, 1 when not, 130 after Ctrl-C. What it
leaves is a temporary folder with the schedule, the report, the ledger, the logs and, on SQLite, the database.
"""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.soak.intake import Intake
from tests.soak.report import count_jobs, find_unmet, format_table, make_lines, write_json
from tests.soak.schedule import make_plan, write_plan
from tests.soak.stage import Stage, find_left
from tests.soak.storm import Storm
from tests.soak.verdict import judge

_printing = threading.Lock()


def main() -> int:
    """Run one soak; return its exit status."""
    options = _parse()
    say(f"seed {options.seed}: {options.minutes:g} minutes on {options.database}")
    directory = Path(tempfile.mkdtemp(prefix="gistmill-soak-"))
    plan = make_plan(options.seed, minutes=options.minutes, database=options.database)
    write_plan(plan, options.schedule or directory / "schedule.json")
    say(f"{len(plan.faults)} faults of {len(plan.classes)} classes, {len(plan.jobs)} jobs; files in {directory}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    stage = Stage(directory, options.database)
    try:
        stage.start()
        intake = Intake(stage)
        storm = Storm(stage, plan, intake, say)
        storm.rage()
        say(f"the storm is over after {time.monotonic() - storm.started_at:.0f} s; draining")
        broken = judge(stage, storm, intake)
        lines = make_lines(stage, plan, storm.told)
        broken += find_unmet(lines, plan.required)
        counts = count_jobs(stage)
        say(format_table(lines))
        say(f"{counts}; {intake.asked_again} submissions were asked for again; at most {storm.most_bells} bells")
    except KeyboardInterrupt:
        say(f"interrupted; logs and ledger in {directory}")
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        stage.close()
    broken += [f"the process {pid} was left behind" for pid in find_left(stage)]
    path = options.json or directory / "report.json"
    write_json(path, plan, storm, lines, counts, broken)
    say(f"report: {path}")
    return _conclude(options, broken, directory)


def say(text: str) -> None:
    """Print a whole line; several threads do."""
    with _printing:
        print(text, flush=True)


def _conclude(options: argparse.Namespace, broken: list[str], directory: Path) -> int:
    if not broken:
        say("nothing was lost and nothing doubled")
        return 0
    for line in broken[:50]:
        say(f"BROKEN: {line}")
    say(f"{len(broken)} broken; seed {options.seed}; logs and ledger in {directory}; to repeat:")
    say(f"  make soak MINUTES={options.minutes:g} SEED={options.seed} DATABASE={options.database}")
    return 1


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32))
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--schedule", type=Path, help="where to write the schedule; by default beside the logs")
    parser.add_argument("--json", type=Path, help="where to write the report; by default beside the logs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

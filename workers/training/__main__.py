"""`python -m workers.training PLAN.json --events FD --orders FD`: train by the plan and report over the descriptors."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gistmill import logs
from gistmill.settings import LogSettings
from workers.training.orders import Orders, Outbox
from workers.training.plan import TrainingPlan


def main(arguments: list[str]) -> int:
    """Train, and send the final event. What nobody foresaw ends the process with its trace on standard error."""
    parser = argparse.ArgumentParser(prog="python -m workers.training", description=__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--events", type=int, required=True, help="descriptor to write events to")
    parser.add_argument("--orders", type=int, required=True, help="descriptor to read orders from")
    options = parser.parse_args(arguments)
    outbox, orders = Outbox(options.events), Orders(options.orders)
    orders.listen()
    plan = TrainingPlan.model_validate_json(options.plan.read_bytes())
    _prepare_environment(plan)
    from workers.training.run import run

    logs.configure(LogSettings(), process="training")
    outbox.send(run(plan, outbox.send, orders.should_stop))
    return 0


def _prepare_environment(plan: TrainingPlan) -> None:
    """Set what torch, tokenizers and the hub read when they are imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    if plan.threads:
        os.environ["OMP_NUM_THREADS"] = str(plan.threads)
    if plan.dataloader_workers:
        # A fork after the tokenizers' threads ran makes them warn, and those of the workers would compete.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
